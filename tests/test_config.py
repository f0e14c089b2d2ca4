"""Defaults are the published numbers; what a user can get wrong is refused by name."""

import dataclasses
import pathlib
import re

import ml_collections
import pytest

from maft_jax.config import (
    Config,
    config_of_run,
    from_config_dict,
    preset,
    to_config_dict,
)
from maft_jax.config.fields import describe_fields
from maft_jax.config.sections import ENCODER_LOSSES, METHOD_LOSSES, LossConfig
from maft_jax.methods.registry import METHODS
from maft_jax.models.clip import CLIP_SIZES

GIVEN = {"model.pretrained": "random:tiny", "data.root": "photos"}


def build(**changes) -> Config:
    """A valid configuration with changes; "__" stands for the dot of a section."""
    values = dataclasses.asdict(Config())
    for name, value in (GIVEN | changes).items():
        *sections, field = name.replace("__", ".").split(".")
        section = values
        for key in sections:
            section = section[key]
        section[field] = value
    return from_config_dict(ml_collections.ConfigDict(values))


def all_fields(kind: type = Config, prefix: str = ""):
    """(dotted name, field) of every setting."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from all_fields(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def test_defaults_are_the_official_numbers():
    config = build()
    assert (config.batch_size, config.num_steps) == (16, 1000)
    assert (config.model.mask_start_layer, config.model.image_size) == (8, 480)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.learning_rate_power) == (1e-5, 0.9)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (1e-4, 0.01)
    assert (config.loss.logit_scale, config.loss.distillation_weight) == (0.0, 0.1)
    assert CLIP_SIZES["ViT-B-16"].vision.default_logit_scale == 100.0, "which 0 stands for"
    assert config.loss.mask_aware == "smooth_l1"
    data = config.data
    assert (data.crop_size, data.max_long_side) == (640, 2560)
    assert config.proposals.num_proposals == 100
    assert data.short_sides == (320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960)
    assert data.ignore_labels == (-1,)


def test_default_templates_are_the_fourteen_of_the_paper():
    scene, sizes = "in the scene", ("small", "medium", "large")
    assert build().data.templates == (
        "a photo of a {}.",
        "This is a photo of a {}",
        f"There is a {{}} {scene}",
        f"There is the {{}} {scene}",
        f"a photo of a {{}} {scene}",
        *(f"a photo of a {size} {{}}." for size in sizes),
        *(f"This is a photo of a {size} {{}}." for size in sizes),
        *(f"There is a {size} {{}} {scene}." for size in sizes),
    )


def test_presets_differ_in_distillation_weight_and_weight_decay_alone():
    official, paper = preset("official"), preset("paper")
    assert official.to_dict() == to_config_dict(Config()).to_dict()
    assert (paper.loss.distillation_weight, paper.optimizer.weight_decay) == (1.0, 1e-5)
    paper.loss.distillation_weight, paper.optimizer.weight_decay = 0.1, 1e-4
    assert paper.to_dict() == official.to_dict()
    with pytest.raises(ValueError, match=r"'offical': expected one of \['official', 'paper'\]"):
        preset("offical")


WRONG_VALUES = {
    "bool for int": ({"batch_size": True}, r"config\.batch_size: expected int, got True"),
    "float for int": ({"num_steps": 1.0}, r"config\.num_steps: expected int, got 1\.0"),
    "str for int": ({"seed": "1"}, r"config\.seed: expected int, got '1'"),
    "str for float": (
        {"optimizer.learning_rate": "1e-5"},
        r"config\.optimizer\.learning_rate: expected float, got '1e-5'",
    ),
    "bool for float": (
        {"loss.logit_scale": True},
        r"config\.loss\.logit_scale: expected float, got True",
    ),
    "int for bool": ({"model.remat": 1}, r"config\.model\.remat: expected bool, got 1"),
    "None for str": ({"data.images": None}, r"config\.data\.images: expected str, got None"),
    "str for tuple": (
        {"data.templates": "a {}"},
        r"config\.data\.templates: expected a list, got 'a \{\}'",
    ),
    "wrong element": (
        {"data.short_sides": (320, "a")},
        r"config\.data\.short_sides\[1\]: expected int, got 'a'",
    ),
    "no section": ({"model": 3}, r"config\.model: expected a section of settings, got 3"),
    "too low": ({"batch_size": 0}, r"config\.batch_size: expected at least 1, got 0"),
    "too high": (
        {"data.ignore_labels": (255, 65536)},
        r"config\.data\.ignore_labels: expected at most 65535, got 65536",
    ),
    "ignored by default and not": (
        {"data.ignore_labels": (-1, 0)},
        r"config\.data\.ignore_labels: expected -1 alone, or the values themselves, got \(-1, 0\)",
    ),
    "element too low": (
        {"data.short_sides": (320, 1)},
        r"config\.data\.short_sides: expected at least 2, got 1",
    ),
    "negative": (
        {"loss.distillation_weight": -0.1},
        r"config\.loss\.distillation_weight: expected at least 0, got -0\.1",
    ),
    "NaN": (
        {"optimizer.learning_rate": float("nan")},
        r"config\.optimizer\.learning_rate: expected a finite number, got nan",
    ),
    "choice": (
        {"loss.mask_aware": "no such loss"},
        r"config\.loss\.mask_aware: expected one of \['smooth_l1',.*\], got 'no such loss'",
    ),
    "dtype": (
        {"model.compute_dtype": "float16"},
        r"config\.model\.compute_dtype: expected one of .*'bfloat16'.*, got 'float16'",
    ),
    "unknown field": (
        {"model.widht": 3},
        r"config\.model: unknown fields \['widht'\]; known fields are \[.*'image_size'",
    ),
    "no weights": ({"model.pretrained": ""}, r"config\.model\.pretrained: no weights; give a file"),
    "no data": ({"data.root": ""}, r"config\.data\.root: no data; give the folder"),
    "accumulation": (
        {"optimizer.accumulation_steps": 3},
        r"config\.optimizer\.accumulation_steps=3: expected a divisor of config\.batch_size=16",
    ),
    "teacher of augmented images": (
        {"loss.cached_teacher": True},
        r"config\.loss\.cached_teacher: expected config\.data\.augment=False.*got True and 0\.1",
    ),
    "teacher without distillation": (
        {"loss.cached_teacher": True, "data.augment": False, "loss.distillation_weight": 0},
        r"config\.loss\.cached_teacher: .*distillation_weight above 0; got False and 0\.0",
    ),
    "mesh": ({"mesh.data": 0}, r"config\.mesh\.data: expected -1 or at least 1, got 0"),
    "no size": ({"data.short_sides": ()}, r"config\.data\.short_sides: expected at least one"),
    "long side": (
        {"data.max_long_side": 959},
        r"config\.data\.max_long_side=959: expected at least the largest of .*short_sides, 960",
    ),
    "keep every": (
        {"checkpointing.keep_every_steps": 300},
        r"keep_every_steps=300: expected a multiple of config\.checkpointing\.every_steps=200",
    ),
    "checkpoint of a training": (
        {"checkpoint": "runs/first"},
        r"config\.checkpoint=runs/first: only for --config=configs/eval_only\.py",
    ),
    "frozen training": (
        {"evaluation.frozen": True},
        r"config\.evaluation\.frozen: only for --config=configs/eval_only\.py; training eval",
    ),
    "nothing to evaluate": (
        {"task": "evaluate"},
        r"config\.evaluation\.roots: no data set; say where one lies, such as --config\.eval",
    ),
    "curves of an evaluation": (
        {"task": "evaluate", "tracking": "wandb", "evaluation.roots.voc2012": "VOC2012"},
        r"config\.tracking=wandb: only for training, which has curves",
    ),
    "evaluations of nothing": (
        {"evaluation.every_steps": 5},
        r"config\.evaluation\.every_steps=5: no data set; say where one lies",
    ),
    "things of label maps": (
        {"evaluation.things": ("cat",), "evaluation.roots.folder": "photos"},
        r"config\.evaluation\.things=\('cat',\): only for config\.evaluation\.task=panoptic or",
    ),
    "things of a data set that knows its own": (
        {
            "task": "evaluate",
            "evaluation.task": "panoptic",
            "evaluation.things": ("cat",),
            "evaluation.roots.cityscapes": "city",
        },
        r"config\.evaluation\.things=\('cat',\): of config\.evaluation\.roots\.folder alone",
    ),
    "segments of label maps": (
        {"evaluation.segment_rules": "fcclip"},
        r"config\.evaluation\.segment_rules=fcclip: only for config\.evaluation\.task=panoptic",
    ),
    "no segments of label maps": (
        {"evaluation.write_segments": False},
        r"config\.evaluation\.write_segments=False: only for config\.evaluation\.task=panoptic",
    ),
    "no scale": (
        {"evaluation.scales": ()},
        r"config\.evaluation\.scales: expected at least one positive factor, got \(\)",
    ),
    "evaluated long side": (
        {"evaluation.max_long_side": 639},
        r"config\.evaluation\.max_long_side=639: expected at least .*short_side, 640",
    ),
    "no template": ({"data.templates": ()}, r"config\.data\.templates: expected at least one"),
    "misspelt method": (
        {"method": "maskclipp"},
        r"config\.method: expected one of .*'maskclippp'\], got 'maskclipp'",
    ),
    "another method's loss": (
        {"method": "maskclippp", "loss.mask_aware": "kl"},
        r"config\.loss\.mask_aware=kl: config\.method=maskclippp does not read it; leave it out "
        r"or at its default, 'smooth_l1', or set config\.method to one of \['maft', 'maft_plus'\]",
    ),
    "a loss that is not MAFT's": (
        {"loss.alignment": "none"},
        r"config\.loss\.alignment=none: config\.method=maft does not .* of \['maskclippp'\]",
    ),
    "template": ({"data.templates": ("a",)}, r"config\.data\.templates: expected one \{\} in 'a'"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_value_is_refused_by_name(case):
    changes, message = WRONG_VALUES[case]
    with pytest.raises(ValueError, match=f"^.*{message}"):
        build(**changes)


def test_settings_of_the_loss_that_did_nothing_in_a_run_have_their_defaults():
    loss = {"mask_aware": "kl", "distillation_weight": 0.0, "alignment": "none"}
    values = {"method": "maskclippp", "loss": loss, "data": {"root": "photos"}}
    config = config_of_run(values | {"model": {"pretrained": "random:tiny"}})
    assert config.method == "maskclippp"
    assert config.loss == LossConfig(alignment="none")


def test_methods_are_declared_made_and_described_alike():
    page = (pathlib.Path(__file__).parent.parent / "docs/methods.md").read_text()
    table = page.partition("| `config.method` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(rows) == sorted(METHOD_LOSSES) == sorted(["maft", *METHODS])


def test_every_setting_of_the_loss_is_read_by_the_encoder_or_a_method():
    read = {*ENCODER_LOSSES, *(name for names in METHOD_LOSSES.values() for name in names)}
    assert read == {field.name for field in dataclasses.fields(LossConfig)}


def test_missing_field_is_refused_by_name():
    values = to_config_dict(Config()).to_dict()
    del values["mesh"]["fsdp"]
    with pytest.raises(ValueError, match=r"config\.mesh: missing fields \['fsdp'\]"):
        from_config_dict(ml_collections.ConfigDict(values))


def test_int_is_accepted_for_float_and_list_for_tuple():
    config = build(loss__logit_scale=50, data__short_sides=[320, 640])
    assert type(config.loss.logit_scale) is float and config.loss.logit_scale == 50.0
    assert config.data.short_sides == (320, 640)


def test_sizes_may_be_absent_where_nothing_is_drawn():
    assert build(data__short_sides=(), data__augment=False).data.short_sides == ()


def test_every_field_has_a_meaning_that_help_shows():
    text = describe_fields(Config, "--config.")
    for name, field in all_fields():
        assert len(field.metadata["help"]) > 5, name
        assert f"--config.{name}=" in text and field.metadata["help"] in text
        assert all(choice in text for choice in field.metadata["choices"])


def test_home_and_variables_are_resolved_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STORE", "/store")
    places = {
        "model.pretrained", "checkpoint", "data.root", "data.images", "data.annotations",
        "data.classes", "data.records", "data.cache_dir", "proposals.path", "evaluation.records",
            "model.tokenizer", "model.modules", "generator.weights", "generator.backbone_weights",
            "evaluation.trained_classes",
    }  # fmt: skip
    places |= {name for name, _ in all_fields() if name.startswith("evaluation.roots.")}
    assert {name for name, field in all_fields() if field.metadata["path"]} == places
    config = build(
        **{"model.pretrained": "~/clip.pt", "data.root": "$HOME/photos", "data.classes": "~/c.txt"},
        **{"proposals.path": "${STORE}/{dataset}", "evaluation.roots.voc2012": "~/VOC2012"},
    )
    assert config.model.pretrained == "/home/me/clip.pt" and config.data.root == "/home/me/photos"
    assert config.data.classes == "/home/me/c.txt"
    assert config.proposals.path == "/store/{dataset}"
    assert config.evaluation.roots.voc2012 == "/home/me/VOC2012"


@pytest.mark.parametrize(
    ("changes", "most"),
    [({"learning_rate": 2e-6}, "2e-06"), ({"schedule": "drops", "learning_rate_drops": (5,)}, "0")],
)
def test_a_rate_that_would_rise_or_has_no_meaning_is_refused(changes, most):
    changes = {f"optimizer.{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=rf"final_learning_rate=1e-05: expected at most {most},"):
        build(**{"optimizer.final_learning_rate": 1e-5} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "maft_plus"}, r"config\.method: tunes CLIP, which config\.task=train_gen"),
        ({"optimizer.lora_rank": 4}, r"config\.optimizer\.lora_rank: tunes CLIP"),
        ({"model.modules": "a"}, r"config\.model\.modules: tunes CLIP"),
        ({"data.crop_size": 100}, r"config\.data\.crop_size=100: expected a multiple of 32"),
        ({"generator.width": 100}, r"config\.generator\.width=100: expected a multiple of 32"),
        (
            {"generator.weights": "a", "generator.backbone_weights": "b"},
            r"config\.generator\.backbone_weights=b: .*weights=a have a backbone",
        ),
        (
            {"generator.backbone_weights": "b", "generator.backbone": "swin_tiny"},
            r"config\.generator\.backbone_weights=b: those of a ResNet",
        ),
        (
            {"generator.classes": "text", "generator.backbone": "swin_tiny"},
            r"config\.generator\.backbone=swin_tiny: expected a ResNet",
        ),
        ({"generator.classes": "text", "model.pretrained": ""}, r"config\.model\.pretrained: no"),
    ],
)
def test_generators_that_cannot_be_trained_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**{"task": "train_generator"} | changes)


def test_a_generator_without_text_needs_no_clip():
    assert build(**{"task": "train_generator", "model.pretrained": ""}).generator.queries == 100


def test_names_that_are_no_paths_stay_as_they_are():
    config = build(**{"model.pretrained": "random:tiny", "data.root": "gs://bucket/a~b"})
    assert config.model.pretrained == "random:tiny" and config.data.root == "gs://bucket/a~b"
