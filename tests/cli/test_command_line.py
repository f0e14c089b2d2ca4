"""The command line: every setting can be given, and every mistake has a short answer."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from maft_jax.cli import command_line
from maft_jax.cli.config_flags import check_override
from maft_jax.config import Config, from_config_dict
from maft_jax.config.sections import METHOD_LOSSES
from maft_jax.methods import registry
from tests.command_lines import answers
from tests.test_config import GIVEN, all_fields

# ml_collections loads configuration files through an old interface of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

REPOSITORY = pathlib.Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
VARIANTS = ["folder.py", "folder.py:tiny", "shapes_world.py", "shapes_world.py:learned", "coco.py"]
VARIANTS += [
    f"coco.py:{name}" for name in ("paper", "l14", "l14,paper", "b16,official", "zero_shot")
]
GENERATOR_VARIANTS = [
    "generator_shapes_world.py",
    *(f"generator_coco.py:{name}" for name in ("mask2former", "agnostic", "freeseg")),
]
METHODS = [f"{name}.py" for name in registry.METHODS]
METHODS += [f"maft_plus.py:{name}" for name in ("base", "tiny")]
METHODS += [f"maskclippp.py:{name}" for name in ("vit", "eva02", "convnext", "tiny")]
METHODS += ["mask_adapter.py:mixed", "mask_adapter.py:tiny"]


def parse(variant: str, **overrides) -> ml_collections.ConfigDict:
    """What ml_collections makes of a command line."""
    given = GIVEN | {name.replace("__", "."): value for name, value in overrides.items()}
    argv = ["program", f"--config={CONFIGS / variant}"]
    argv += [f"--config.{name}={value}" for name, value in given.items()]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    assert values(argv) == ["program"]
    return holder.value


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_config_file_is_valid(variant):
    config = from_config_dict(parse(variant))
    paper = variant.endswith("paper")
    assert config.loss.distillation_weight == (1.0 if paper else 0.1)
    assert config.optimizer.weight_decay == (1e-5 if paper else 1e-4)
    if variant.startswith("coco"):
        assert dataclasses.asdict(config.data) == dataclasses.asdict(Config().data) | {
            "root": "photos",
            "dataset": "coco_stuff",
            "unseen_classes": ("published",) if "zero_shot" in variant else (),
        }


@pytest.mark.parametrize("variant", GENERATOR_VARIANTS)
def test_generators_are_trained_by_official_numbers(variant):
    config = from_config_dict(parse(variant))
    optimizer, settings = config.optimizer, config.generator
    assert (config.task, optimizer.clip_norm) == ("train_generator", 0.01)
    if variant.startswith("generator_coco"):
        freeseg = variant.endswith("freeseg")
        expected = (1.5e-4, 1.5e-4, 0.1) if freeseg else (1e-4, 0.05, 0.1)
        found = optimizer.learning_rate, optimizer.weight_decay, optimizer.pretrained_rate
        assert found == expected
        expected = (32, 60_000, 10, 640) if freeseg else (16, 368_750, 9, 1024)
        found = config.batch_size, config.num_steps, settings.decoder_layers, config.data.crop_size
        assert found == expected
        assert (settings.queries, settings.width, settings.num_points) == (100, 256, 12544)


def test_every_config_file_is_tested():
    files = {path.name for path in CONFIGS.glob("*.py")} - {"__init__.py"}
    variants = [*VARIANTS, *METHODS, *GENERATOR_VARIANTS, "eval_only.py"]
    assert files == {variant.split(":")[0] for variant in variants}


@pytest.mark.parametrize("variant", METHODS)
def test_recipes_of_methods_are_valid(variant):
    config = from_config_dict(parse(variant))
    assert config.method == variant.split(".")[0]
    assert registry.make_method(config) is not None


def test_evaluation_alone_leaves_start_layer_and_image_size_to_the_weights():
    given = {"data__root": "", "model__pretrained": "", "checkpoint": "runs/first"}
    config = from_config_dict(parse("eval_only.py", **given, evaluation__roots__voc2012="VOC2012"))
    assert config.task == "evaluate" and config.model.given_masking[:2] == (None, None)
    assert config.evaluation.roots.voc2012 == "VOC2012"
    with pytest.raises(ValueError, match=r"config\.evaluation\.roots: no data set"):
        from_config_dict(parse("eval_only.py", **given))


@pytest.mark.parametrize(
    "variant", ["folder.py:big", "coco.py:l16", "coco.py:l14,papr", "generator_coco.py:maskformer"]
)
def test_unknown_variant_is_refused_by_name(variant):
    unknown = re.split("[:,]", variant)[-1]
    with pytest.raises(flags.IllegalFlagValueError, match=f"{unknown}.*(expected|known)"):
        parse(variant)


OTHER_VALUES = {
    "model.compute_dtype": "float32",
    "data.dataset": "voc2012",
    "data.split": "val",
    "data.unseen_classes": ("published",),
    "proposals.generator": "ground_truth",
    "proposals.kinds": ("regions", "parts"),
    "loss.mask_aware": "kl",
    "batch_size": 32,
    "data.ignore_labels": (0, 255),
    "data.short_sides": (320, 400),
    "data.templates": ("a {}.", "the {}"),
    "model.activation": "gelu",
    "model.image_aspect": "keep",
    "model.mask_pooling": "soft",
    "model.mask_rule": "shared_patches",
    "loss.probabilities": "sigmoid",
    "loss.alignment": "none",
    "loss.transfer": "panoptic",
    "loss.transfer_memory": "in_order",
    "loss.adapter_masks": "mixed",
    "method": "maskclippp",
    "tracking": "mlflow",
    "optimizer.schedule": "drops",
    "optimizer.trainable": (r"/attn/", r"^blocks_[0-9]/ln_1"),
    "optimizer.no_weight_decay": ("ln_", "bias"),
    "optimizer.accumulation_steps": 4,
    "optimizer.learning_rate_drops": (500, 900),
    "optimizer.final_learning_rate": 1e-6,
    "generator.backbone": "swin_tiny",
    "generator.classes": "agnostic",
    "generator.criterion": "dense",
    "mesh.data": 2,
    "model.attention": "xla",
    "task": "evaluate",
    "evaluation.scales": (0.75, 1.0),
    "evaluation.ensemble_weight": 0.8,
    "evaluation.ensemble_exponents": (0.4, 0.8),
    "evaluation.task": "panoptic",
    "evaluation.segment_rules": "fcclip",
    "evaluation.things": ("cat", "dog"),
    "data.max_long_side": 3000,
    "checkpointing.keep_every_steps": 400,
    "checkpointing.every_steps": 400,
}

_EVALUATION = {"task": "evaluate", "evaluation.roots.folder": "photos"}
NEEDED = {
    "checkpoint": _EVALUATION,
    "checkpointing.keep_every_steps": {"checkpointing.every_steps": 400},
    "data.short_sides": {"data.max_long_side": 4000},
    "evaluation.every_steps": _EVALUATION,
    "evaluation.frozen": _EVALUATION,
    "evaluation.segment_rules": _EVALUATION | {"evaluation.task": "panoptic"},
    "evaluation.task": _EVALUATION,
    "evaluation.things": _EVALUATION | {"evaluation.task": "instance"},
    "evaluation.write_segments": _EVALUATION | {"evaluation.task": "instance"},
    "evaluation.trained_classes": {"evaluation.ensemble_exponents": (0.4, 0.8)},
    "loss.cached_teacher": {"data.augment": False},
    "optimizer.learning_rate_drops": {"optimizer.schedule": "drops"},
    "optimizer.schedule": {"optimizer.learning_rate_drops": (500, 900)},
    "task": _EVALUATION,
}
"""Other settings without which such a value is refused."""
NEEDED |= {
    f"loss.{field}": {"method": method}
    for method, fields in METHOD_LOSSES.items()
    for field in fields
    if field not in METHOD_LOSSES["maft"]
}


def other_value(name: str, default):
    """A valid value that is not the default."""
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return "some/where"
    return default / 2 or 0.5 if isinstance(default, float) else default + 1


@pytest.mark.parametrize(("name", "field"), [*all_fields()])
def test_every_field_can_be_set_on_the_command_line(name, field):
    value = other_value(name, field.default)
    more = NEEDED.get(name, {})
    check_override(f"--config.{name}={value}")
    config = from_config_dict(parse("folder.py", **(more | {name: value})))
    for key in name.split("."):
        config = getattr(config, key)
    assert config == value and config != field.default


@pytest.mark.parametrize(
    ("value", "expected"), [("400", (400,)), ("(320, 400)", (320, 400)), ("320,400", (320, 400))]
)
def test_sizes_can_be_written_as_one_or_several(value, expected):
    config = from_config_dict(parse("folder.py", data__short_sides=value))
    assert config.data.short_sides == expected


def test_one_rule_is_written_without_parentheses():
    config = from_config_dict(parse("folder.py", optimizer__trainable="/attn/"))
    assert config.optimizer.trainable == ("/attn/",)


@pytest.mark.parametrize(
    ("argument", "closest"),
    [
        ("--config.batchsize=3", "--config.batch_size"),
        ("--noconfig.model.remta", "--config.model.remat"),
        ("-config.learning_rate=1", "--config.optimizer.learning_rate"),
        ("--config.data", "--config.data."),
    ],
)
def test_misspelt_setting_is_refused_with_the_closest_one(argument, closest):
    option = argument.lstrip("-").split("=")[0]
    with pytest.raises(ValueError, match=f"--{option}: there is no such setting.*{closest}"):
        check_override(argument)


@pytest.mark.parametrize(
    "argument", ["--workdir=x", "--config=x.py", "x", "--noconfig.model.remat"]
)
def test_other_arguments_are_left_alone(argument):
    check_override(argument)


WRONG_COMMANDS = {
    "misspelt field": (
        ["--config.model.image_sise=3"],
        "no such setting; did you mean .*image_size",
    ),
    "unknown section": (["--config.modle.remat"], "no such setting; did you mean .*model.remat"),
    "wrong type": (["--config.batch_size=many"], r"--config\.batch_size=many: invalid literal"),
    "wrong value": (["--config.batch_size=0"], r"config\.batch_size: expected at least 1, got 0"),
    "wrong element": (
        ["--config.data.short_sides=(1,'a')"],
        r"config\.data\.short_sides\[1\]: expected int, got 'a'",
    ),
    "setting of version 0.1": (
        ["--config.loss.temperature=50"],
        r"--config\.loss\.temperature: this setting is --config\.loss\.logit_scale now",
    ),
    "no weights": ([], r"config\.model\.pretrained: no weights; give a file"),
    "unknown variant": (["--config=configs/folder.py:big"], "big: expected one of default, tiny"),
    "unknown file": (["--config=configs/nope.py"], "No such file.*'configs/nope.py'"),
    "unknown file and setting": (
        ["--config=configs/nope.py", "--config.batch_size=3"],
        "No such file.*'configs/nope.py'",
    ),
    "folder for file": (["--config=configs"], "Is a directory: 'configs'"),
    "other file": (
        ["--config=maft_jax/weights.py"],
        "--config: .* has no attribute 'get_config'",
    ),
    "unknown flag": (["--learning_rate=3"], "Unknown command line flag 'learning_rate'"),
    "no flag": (["images"], r"unexpected \['images'\]; settings look like --config\.NAME=VALUE"),
    "no workdir": (["--workdir="], "--workdir=: expected the run's folder"),
}


WITHOUT_FLAGS = {"help": ["--help"], "nothing": [], "no folder": ["--config=configs/folder.py"]}


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """What main says to each of these command lines, and the folder that none may make."""
    workdir = tmp_path_factory.mktemp("command_line") / "run"
    commands = dict(WITHOUT_FLAGS)
    for case, (arguments, _) in WRONG_COMMANDS.items():
        given = any(argument.startswith("--config=") for argument in arguments)
        first = [] if given else ["--config=configs/folder.py"]
        commands[case] = [f"--workdir={workdir}", *first, *arguments]
    return answers("maft_jax.main", commands), workdir


def test_help_lists_every_setting(answered):
    result = answered[0]["help"]
    assert result.returncode == 0
    assert result.stderr == ""
    for name, field in all_fields():
        assert f"--config.{name}=" in result.stdout and field.metadata["help"] in result.stdout
    assert "--workdir" in result.stdout


@pytest.mark.parametrize("case", WRONG_COMMANDS)
def test_wrong_command_exits_with_2_and_one_line(case, answered):
    answers_by_case, workdir = answered
    result = answers_by_case[case]
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and re.search(WRONG_COMMANDS[case][1], lines[0]), result.stderr
    assert not workdir.exists()


def test_missing_flags_are_named(answered):
    result = answered[0]["nothing"]
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert (
        len(lines) == 2 and "--workdir=None: expected" in lines[0] and "--config=None" in lines[1]
    )
    result = answered[0]["no folder"]
    assert result.returncode == 2 and "--workdir=None: expected" in result.stderr


def test_mistakes_are_answered_without_loading_jax():
    program = (
        "import sys; from maft_jax import main; sys.argv = ['main', '--config=configs/folder.py']\n"
        "try: main.run()\n"
        "except SystemExit: print(sorted({'jax', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.stdout == "[]\n" and "--workdir=None: expected" in result.stderr


def test_home_is_resolved_in_flags_of_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((CONFIGS / "folder.py").read_text())
    given = ["--weights=random:tiny", "--image=a.jpg", "--classes_file=~/names.txt"]
    answer = answers("maft_jax.cli.predict", {"file": given})["file"]
    assert answer.returncode == 2 and f"{tmp_path}/names.txt" in answer.stderr
    given = ["--config=~/mine.py", "--workdir=$HOME/run", "--config.data.root=~/photos"]
    answer = answers("maft_jax.main", {"config": given})["config"]
    assert "config.model.pretrained: no weights" in answer.stderr


@pytest.mark.parametrize("command", ["predict", "web_page", "convert_weights"])
def test_commands_that_read_runs_can_be_told_where_the_first_weights_are(command):
    answer = answers(f"maft_jax.cli.{command}", {"help": ["--help"]})["help"]
    assert answer.returncode == 0
    for flag in ("--pretrained", "--step", "--activation", "--head_width"):
        assert flag in answer.stdout


def test_flags_of_paths_expand_what_no_shell_does(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parse = command_line._PathParser().parse
    assert parse("~/runs/first") == "/home/me/runs/first" == parse("$HOME/runs/first")
    assert parse("a~b/$UNKNOWN/c") == "a~b/$UNKNOWN/c"
