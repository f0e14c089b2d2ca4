"""Training a generator: the step on any mesh, whole runs, what they leave behind."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest

from input_pipeline.examples import Example
from input_pipeline.sample_folder import write_sample_folder
from maft_jax.config import from_config_dict, preset
from maft_jax.config.sections import MeshConfig, ProposalsConfig
from maft_jax.convert.generators import open_generator
from maft_jax.losses.mask_criteria import DenseCriterion, PointCriterion
from maft_jax.models.array_types import Batch
from maft_jax.models.generators.initialisation import initial_parameters
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.swin import SwinConfig
from maft_jax.models.generators.text_interaction import TextConfig
from maft_jax.proposals.generators import make_generator
from maft_jax.runtime import tree_rules
from maft_jax.runtime.sharding import make_mesh
from maft_jax.state.optimizer import make_optimizer
from maft_jax.training.generator_architecture import BACKBONES, TRAINABLE, make_architecture
from maft_jax.training.generator_objective import GeneratorObjective
from maft_jax.training.generator_task import (
    make_generator_setup,
    open_generator_task,
    resolve_generator,
)
from maft_jax.training.step_setup import StepSetup
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import read_metrics

ARCHITECTURE = Mask2FormerConfig(
    SwinConfig(8, (1, 1, 1, 1), (1, 1, 2, 2), 2),
    PixelDecoderConfig(64, 64, 1, 32),
    DecoderConfig(64, 6, 2, 32),
    num_classes=1,
)
pytestmark = pytest.mark.usefixtures("steps_compiled_once")

RESNET = ResNetConfig((1, 1, 1, 1), (8, 16, 24, 32), (2, 4, 6, 8), (8,))

SETTINGS = {
    "task": "train_generator",
    "batch_size": 8,
    "num_steps": 4,
    "log_every_steps": 1,
    "data.crop_size": 64,
    "data.short_sides": (64, 80),
    "data.reading_processes": 1,
    "proposals.generator": "ground_truth",
    "generator.backbone": "swin_nano",
    "generator.classes": "agnostic",
    "generator.num_points": 32,
    "generator.queries": 6,
    "generator.width": 32,
    "generator.encoder_layers": 1,
    "generator.decoder_layers": 2,
    "optimizer.learning_rate": 1e-3,
    "evaluation.short_side": 64,
    "evaluation.max_long_side": 96,
    "checkpointing.every_steps": 2,
}


def batch_of(size: int, num_classes: int = 3) -> Batch:
    """Images whose left part is a class and whose right part is another, or nothing."""
    rng = np.random.default_rng(1)
    label_map = np.full((size, 64, 64), -1, np.int32)
    present = np.full((size, 3), -1, np.int32)
    for image in range(size):
        classes = rng.permutation(num_classes)[: image % 3]
        for number, label in enumerate(sorted(classes)):
            label_map[image, :, 16 * number : 16 * number + 30] = label
        present[image, : len(classes)] = sorted(classes)
    return Batch(
        image=rng.integers(0, 256, (size, 64, 64, 3), np.uint8),
        label_map=label_map,
        present_classes=present,
        proposals=np.zeros((size, 1, 16, 16), np.uint8),
        proposal_valid=np.zeros((size, 1), bool),
        position=np.arange(40, 40 + size, dtype=np.int32),
    )


def one_step(mesh_config, devices, parts=1):
    """State and metrics after a step, on the host."""
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    objective = GeneratorObjective(
        ARCHITECTURE,
        PointCriterion(num_points=16),
        mesh,
        "float32",
        seed=5,
        agnostic=True,
        accumulation_steps=parts,
        drop_path=0.5,
    )
    config = from_config_dict(preset_with({}))
    setup = StepSetup(objective, make_optimizer(config.optimizer, 10), mesh, TRAINABLE)
    parameters = initial_parameters(ARCHITECTURE, 0)
    frozen = setup.frozen(parameters)
    state = setup.place_state(parameters)
    step = setup.jitted(jax.eval_shape(setup.init_state, parameters), frozen)
    state, metrics = step(state, frozen, None, batch_of(16))
    return jax.device_get((state, metrics))


def preset_with(changes):
    config = preset("official")
    config.update_from_flattened_dict(SETTINGS | {"data.root": "photos"} | changes)
    return config


@pytest.mark.slow
def test_a_step_on_eight_devices_and_in_parts_is_that_of_one():
    expected_state, expected = one_step(MeshConfig(), 1)
    assert set(expected) >= {"class_loss", "mask_loss", "dice_loss", "loss", "grad_norm"}
    assert expected["example_finite"].all()
    state, metrics = one_step(MeshConfig(fsdp=2), devices=8, parts=2)
    for name in ("class_loss", "mask_loss", "dice_loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, err_msg=name)
    moments = tree_rules.flatten(state.opt_state[1].mu)
    for path, moment in tree_rules.flatten(expected_state.opt_state[1].mu).items():
        scale = max(np.abs(moment).max(), 1e-9)
        np.testing.assert_allclose(
            moments[path] / scale, moment / scale, atol=2e-4, rtol=0, err_msg=path
        )


def test_constants_of_a_resnets_norms_are_not_trained():
    architecture = dataclasses.replace(ARCHITECTURE, backbone=RESNET)
    shapes = jax.eval_shape(functools.partial(architecture.init, jax.random.key(0)))
    trained = tree_rules.flatten(tree_rules.select(TRAINABLE, shapes, where="trainable"))
    frozen = set(tree_rules.flatten(shapes)) - set(trained)
    assert {path.rsplit("/", 2)[1] for path in frozen} == {"norm"}
    assert all(path.startswith("backbone/") for path in frozen)
    assert len(frozen) == 4 * (1 + 3 + 3 * 4), "stem and stages, of which the first adds as it is"
    assert "pixel_decoder/fusion/norm/scale" in trained


@pytest.mark.parametrize("backbone", [ARCHITECTURE.backbone, RESNET], ids=["swin", "resnet"])
def test_devices_have_no_second_copy_of_what_is_trained(backbone):
    architecture = dataclasses.replace(ARCHITECTURE, backbone=backbone)
    mesh = make_mesh(MeshConfig())
    setup = make_generator_setup(
        resolve_generator(from_config_dict(preset_with({})), mesh), architecture, mesh
    )
    parameters = jax.eval_shape(functools.partial(architecture.init, jax.random.key(0)))
    state, frozen = jax.eval_shape(lambda x: (setup.init_state(x), setup.frozen(x)), parameters)
    paths = [set(tree_rules.flatten(tree)) for tree in (state.trainable, frozen, parameters)]
    assert not paths[0] & paths[1] and paths[0] | paths[1] == paths[2]
    assert bool(frozen) == (backbone is RESNET)


def test_stochastic_depth_is_refused_for_a_backbone_without_it():
    changes = {"generator.drop_path": 0.3, "generator.backbone": "resnet50"}
    mesh = make_mesh(MeshConfig())
    config = resolve_generator(from_config_dict(preset_with(changes)), mesh)
    architecture = make_architecture(config.generator, 1, None)
    with pytest.raises(ValueError, match=r"drop_path=0\.3: .* a ResNet-50; set it to 0"):
        make_generator_setup(config, architecture, mesh)


def test_freesegs_prediction_before_the_last_has_no_loss():
    text = dataclasses.replace(ARCHITECTURE, num_classes=None, text=TextConfig(16, 32, 32, 8))
    for architecture, expected in ((ARCHITECTURE, [0, 1, 2]), (text, [0, 2])):
        objective = GeneratorObjective(
            architecture, DenseCriterion(), make_mesh(MeshConfig()), "float32", 0
        )
        assert objective.supervised == expected


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample_folder(folder / "data")
    return {
        "data.root": str(folder / "data"),
        "data.cache_dir": str(folder / "cache"),
        "evaluation.roots.folder": str(folder / "data"),
    }


def run_config(data, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return from_config_dict(preset_with(data | changes))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return train_and_evaluate(run_config(data), workdir), workdir


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("", r"pretrained_rate=0\.1: .*begins at random.*--config\.optimizer\.pretrained_rate"),
        ("nowhere", "nowhere"),
    ],
)
def test_a_random_backbone_is_not_slowed_as_if_it_were_pretrained(weights, message):
    """configs/generator_coco.py has this rate; runs from nothing of this file have 1."""
    changes = {"optimizer.pretrained_rate": 0.1, "generator.weights": weights}
    with pytest.raises(ValueError, match=message):
        open_generator_task(from_config_dict(preset_with(changes)), make_mesh(MeshConfig()))


@pytest.mark.slow
def test_the_trained_generator_makes_proposals_at_once(finished):
    state, workdir = finished
    opened = open_generator(workdir / "generator")
    trained, written = tree_rules.flatten(state.trainable), tree_rules.flatten(opened.parameters())
    assert all(np.array_equal(written[path], leaf) for path, leaf in trained.items())
    settings = ProposalsConfig("mask2former", path=str(workdir / "generator"))
    generator = make_generator(settings, ("object",))
    image = np.zeros((64, 96, 3), np.uint8)
    made = generator(Example("a", image, np.zeros((64, 96), np.int32)), 4)
    assert made.masks.shape == (4, 16, 24) and made.class_logits.shape == (4, 2)


@pytest.mark.slow
def test_a_freeseg_is_trained_and_reads_the_names_of_other_classes(data, tmp_path, monkeypatch):
    deeplab = dataclasses.replace(RESNET, stem_widths=(4, 4, 8))
    monkeypatch.setitem(BACKBONES, "resnet50c", deeplab)
    changes = {
        "num_steps": 1,
        "model.pretrained": "random:tiny",
        "generator.backbone": "resnet50c",
        "generator.classes": "text",
        "generator.criterion": "dense",
        "evaluation.max_images": 1,
    }
    train_and_evaluate(run_config(data | changes), tmp_path)
    settings = ProposalsConfig("freeseg", path=str(tmp_path / "generator"))
    generator = make_generator(settings, ("sky", "dog", "water"))
    assert generator.align_corners
    image = np.zeros((64, 96, 3), np.uint8)
    made = generator(Example("a", image, np.zeros((64, 96), np.int32)), 4)
    assert made.class_logits.shape == (4, 4) and np.isfinite(made.class_logits).all()
    changes |= {"generator.weights": str(tmp_path / "generator"), "generator.width": 64}
    task = open_generator_task(run_config(data | changes), make_mesh(MeshConfig()))
    assert task.architecture.text.inner_width == 8 * SETTINGS["generator.width"], "its own sizes"


@pytest.mark.slow
def test_a_trained_generator_goes_on_with_other_classes_and_its_own_sizes(data, finished):
    state, workdir = finished
    changes = {"generator.weights": str(workdir / "generator"), "generator.classes": "data"}
    changes |= {"generator.width": 256, "generator.queries": 100}
    task = open_generator_task(run_config(data | changes), make_mesh(MeshConfig()))
    assert task.architecture.decoder.queries == SETTINGS["generator.queries"]
    head = task.parameters["class_embed"]["kernel"]
    assert head.shape == (SETTINGS["generator.width"], 1 + len(task.class_names)) != (32, 2)
    begun = tree_rules.flatten(task.parameters)
    for path, leaf in tree_rules.flatten(state.trainable).items():
        assert path.startswith("class_embed/") or np.array_equal(begun[path], leaf), path
    with pytest.raises(ValueError, match="expected weights of FreeSeg for this CLIP"):
        text = {"generator.classes": "text", "model.pretrained": "random:tiny"}
        changes |= text | {"generator.backbone": "resnet50c"}
        open_generator_task(run_config(data | changes), make_mesh(MeshConfig()))


@pytest.mark.slow
def test_recall_is_measured_before_the_first_step_and_after_the_last(finished):
    records = read_metrics(finished[1])
    measured = {
        record["step"]: record for record in records if "evaluation/folder/best_iou" in record
    }
    assert set(measured) == {0, 4}
    for record in measured.values():
        assert 0 < record["evaluation/folder/best_iou"] < 1
        assert 0 <= record["evaluation/folder/recall_at_half"] <= 1


def losses_of(workdir) -> list[float]:
    return [record["loss"] for record in read_metrics(workdir) if "loss" in record]


@pytest.mark.slow
def test_it_resumes_with_the_same_bits(data, finished, tmp_path, caplog):
    """Also where branches are left out, which `finished` keeps."""
    config = run_config(data, generator__drop_path=0.5, evaluation__max_images=1)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_and_evaluate(config, whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "generator")
    shutil.rmtree(resumed / "checkpoints/4")
    with caplog.at_level("INFO"):
        train_and_evaluate(config, resumed)
    assert "resuming from the checkpoint of step 2" in caplog.text
    file = "generator/model.safetensors"
    assert (whole / file).read_bytes() == (resumed / file).read_bytes()
    assert losses_of(whole) == losses_of(resumed)
    assert losses_of(whole)[0] != losses_of(finished[1])[0]
