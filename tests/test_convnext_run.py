"""A ConvNeXt CLIP trains, is saved, resumed, exported and read by open_clip, on any mesh."""

import dataclasses

import jax
import numpy as np
import pytest

import maft_jax
from maft_jax.config.sections import MeshConfig, OptimizerConfig
from maft_jax.convert.formats import read_weights
from maft_jax.convert.verification import verify
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.runtime import sharding, tree_rules
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import make_data, small_config
from tests.tower_steps import step_on

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("steps_compiled_once")]

SIZE = "convnext_tiny-random"
VISION = CLIP_SIZES[SIZE].vision


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("convnext"))


def config_of(data, **changes):
    own = {"model__pretrained": f"random:{SIZE}", "model__mask_start_layer": -1}
    return small_config(data, **own | changes)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    config = config_of(data, model__mask_pooling="soft", checkpointing__every_steps=2)
    return config, train_and_evaluate(config, workdir), workdir


def test_stem_and_stages_are_trained_and_the_head_is_not(finished):
    _, state, _ = finished
    trained = tree_rules.flatten(state.trainable)
    assert {path.split("/")[0] for path in trained} == {
        "stem",
        "ln_stem",
        *(f"stages_{stage}" for stage in range(4)),
    }
    begun = maft_jax.load(f"random:{SIZE}").parameters["visual"]
    moved = np.abs(trained["stem/kernel"] - begun["stem"]["kernel"]).max()
    assert 1e-5 < moved < 1e-2


def test_what_it_was_tuned_with_is_noted_and_used(finished):
    _, state, workdir = finished
    for source in (workdir, workdir / "tuned.safetensors"):
        clip = maft_jax.load(source)
        assert (clip.mask_pooling, clip.mask_start_layer, clip.image_size) == ("soft", 0, 64)
        np.testing.assert_array_equal(
            clip.parameters["visual"]["stem"]["kernel"], state.trainable["stem"]["kernel"]
        )
    assert maft_jax.load(workdir, mask_pooling="hard").mask_pooling == "hard"
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    result = maft_jax.segment(clip, image, ["cat", "dog"])
    assert result.label_map.shape == (48, 64)


def test_open_clip_reads_the_tuned_tower(finished):
    _, _, workdir = finished
    path = workdir / "tuned.safetensors"
    weights = read_weights(path)
    assert weights.format_name == "open_clip"
    for comparison in verify(path, weights):
        assert comparison.library.startswith("open_clip")
        assert comparison.largest_difference < 1e-5


def test_it_resumes_with_the_same_bits(finished, tmp_path, caplog):
    config, straight, _ = finished
    resumed = tmp_path / "resumed"
    train_and_evaluate(config, resumed)
    (resumed / "checkpoints/6").rename(tmp_path / "forgotten")
    (resumed / "tuned.safetensors").unlink()
    with caplog.at_level("INFO"):
        again = train_and_evaluate(config, resumed)
    assert "resuming from the checkpoint of step" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, again, straight)
    hard = dataclasses.replace(config.model, mask_pooling="hard")
    with pytest.raises(ValueError, match="mask_pooling='soft', this run has mask_pooling=None"):
        train_and_evaluate(dataclasses.replace(config, model=hard), resumed)


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "model": 2}, {"data": 8}])
def test_eight_devices_compute_what_one_does(mesh):
    settings, one = OptimizerConfig(), sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    metrics, trained = step_on(VISION, one, settings)
    other_metrics, other = step_on(VISION, sharding.make_mesh(MeshConfig(**mesh)), settings)
    for name in ("loss", "mask_aware_loss", "distillation_loss"):
        np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-4, atol=1e-8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), other, trained)
