"""A tower that the program has never seen trains, evaluates, predicts, plans, saves and resumes.

It is a linear map of patches, averaged over an image or a mask. Nothing of it is known elsewhere.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

import maft_jax
from maft_jax.convert.verification import verify
from maft_jax.evaluators.checkpoint import evaluate_checkpoint
from maft_jax.models.clip import CLIP_SIZES, ClipConfig
from maft_jax.models.encoder import ImageArchitecture, ImageEncoder, MaskingSpec
from maft_jax.models.preprocess import patch_mask
from maft_jax.models.resize import resize
from maft_jax.runtime import tree_rules
from maft_jax.training.train_loop import train_and_evaluate
from maft_jax.weights import open_weights
from tests.runs import command, finish, make_data, read_metrics, small_config, start

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("steps_compiled_once")]

PATCH, PIXELS = 8, 64


@dataclasses.dataclass(frozen=True)
class PatchAverages:
    """The architecture."""

    embed_dim: int = 64

    default_trainable = (r"kernel$",)
    default_masking = MaskingSpec(0, PIXELS)
    default_logit_scale = 100.0
    sharding_rules = ()

    def make_encoder(self, settings):
        return PatchAveragesEncoder(self, settings.dtype, settings.logit_scale)

    def init(self, key):
        shape = (3 * PATCH * PATCH, self.embed_dim)
        return {"kernel": jax.random.normal(key, shape), "bias": jnp.zeros(self.embed_dim)}

    def step_flops(self, masking, num_proposals, *, teacher=True):
        return 6 * (masking.image_size // PATCH) ** 2 * 3 * PATCH**2 * self.embed_dim

    def describe(self):
        return "averages of patches"


@dataclasses.dataclass(frozen=True)
class PatchAveragesEncoder:
    architecture: PatchAverages
    dtype: jnp.dtype
    logit_scale: float

    def normalise(self, images):
        return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images

    def prepare(self, images, size):
        return resize(self.normalise(images), size, axes=(1, 2))

    def grid(self, size):
        return size[0] // PATCH, size[1] // PATCH

    def scaled(self, size, scale):
        return tuple(max(1, round(side * scale / PATCH)) * PATCH for side in size)

    def in_compute_dtype(self, parameters):
        return parameters

    def encode_images(self, parameters, pixels):
        return self.encode_proposals(parameters, pixels, jnp.ones((len(pixels), 1, 2, 2)))[:, 0]

    def encode_proposals(self, parameters, pixels, masks):
        grid = self.grid(pixels.shape[1:3])
        patches = rearrange(
            pixels[:, : grid[0] * PATCH, : grid[1] * PATCH],
            "b (h p) (w q) c -> b (h w) (p q c)",
            p=PATCH,
            q=PATCH,
        )
        weights = patch_mask(masks, grid).astype(jnp.float32)
        means = weights @ patches / jnp.maximum(weights.sum(-1, keepdims=True), 1)
        features = means @ parameters["kernel"] + parameters["bias"] + 1e-6
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    def encode_both(self, parameters, pixels, masks):
        return (
            self.encode_proposals(parameters, pixels, masks),
            self.encode_images(parameters, pixels),
        )

    def logits(self, features, text):
        return self.logit_scale * features @ text.T

    def probabilities(self, logits):
        return jax.nn.softmax(logits, axis=-1)


TOY = ClipConfig(PatchAverages(), CLIP_SIZES["tiny"].text)


@pytest.fixture(scope="module", autouse=True)
def known():
    """Random weights of the toy, by the name that any size has."""
    CLIP_SIZES["toy"] = TOY
    yield
    del CLIP_SIZES["toy"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("toy"))


TOY_SETTINGS = {
    "model__pretrained": "random:toy",
    "model__mask_start_layer": -1,
    "model__image_size": 0,
}


def config_of(data, **changes):
    return small_config(data, **TOY_SETTINGS, **changes)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run that evaluates before its first step and after its last."""
    workdir = tmp_path_factory.mktemp("finished")
    config = config_of(data, evaluation__roots__folder=data["data.root"])
    return train_and_evaluate(config, workdir), workdir


def test_toy_keeps_to_the_interface():
    assert isinstance(TOY.vision, ImageArchitecture)
    assert isinstance(PatchAveragesEncoder(TOY.vision, jnp.float32, 1.0), ImageEncoder)


def test_it_trains_what_it_says_is_trained(finished):
    state, workdir = finished
    assert list(tree_rules.flatten(state.trainable)) == ["kernel"]
    assert int(state.step) == 6
    assert [record["step"] for record in read_metrics(workdir) if "loss" in record] == [2, 4, 6]
    begun = maft_jax.load("random:toy").parameters["visual"]["kernel"]
    assert 1e-4 < np.abs(state.trainable["kernel"] - begun).max() < 1e-2


def test_its_run_loads_and_predicts(finished):
    state, workdir = finished
    clip = maft_jax.load(workdir)
    kernel = clip.parameters["visual"]["kernel"]
    np.testing.assert_array_equal(kernel, state.trainable["kernel"])
    assert clip.image_size == PIXELS
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    result = maft_jax.segment(clip, image, ["cat", "dog"])
    assert result.label_map.shape == (48, 64) and set(np.unique(result.label_map)) <= {-1, 0, 1}


def test_its_run_is_evaluated_frozen_and_tuned(data, finished, tmp_path):
    _, workdir = finished
    for step in (0, 6):
        assert (workdir / f"evaluation/step_{step}/folder.json").is_file()
    config = config_of(
        data, task="evaluate", checkpoint=str(workdir), evaluation__roots__folder=data["data.root"]
    )
    report = evaluate_checkpoint(config, tmp_path / "evaluated")
    assert not report.frozen and "folder" in report.table()
    stated = dataclasses.replace(config.model, activation="gelu")
    with pytest.raises(ValueError, match="a training run, whose architecture is known"):
        evaluate_checkpoint(dataclasses.replace(config, model=stated), tmp_path / "refused")


def test_it_resumes_with_the_same_bits(data, finished, tmp_path, caplog):
    config = config_of(data, num_steps=6, checkpointing__every_steps=2)
    straight = train_and_evaluate(config, tmp_path / "straight")
    resumed = tmp_path / "resumed"
    train_and_evaluate(config, resumed)
    for step in (resumed / "checkpoints").iterdir():
        if step.name == "6":
            step.rename(tmp_path / "forgotten")
    with caplog.at_level("INFO"):
        again = train_and_evaluate(config, resumed)
    assert "resuming from the checkpoint of step" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, again, straight)


PLAN = """
from maft_jax.cli import plan
plan.prepare_environment()
plan.prepare_environment = lambda: None
from maft_jax.models.clip import CLIP_SIZES
from tests.test_toy_tower import TOY
CLIP_SIZES["toy"] = TOY
plan.run()
"""


def test_its_step_is_planned(data, tmp_path):
    program = [sys.executable, "-c", PLAN, *command(data, tmp_path, **TOY_SETTINGS)[3:]]
    program = [flag for flag in program if not flag.startswith("--workdir")]
    report = finish(start([*program, "--topology=v5e:2x2"]))
    assert "averages of patches" in report and "fits" in report
    trained = 3 * PATCH**2 * TOY.vision.embed_dim
    assert f"{trained:,}" in report


def test_no_format_holds_it_and_that_is_said(finished, tmp_path):
    with pytest.raises(ValueError, match="PatchAverages"):
        maft_jax.load(finished[1]).save(tmp_path / "toy.safetensors")


def test_it_is_not_verified_and_what_is_is_said():
    with pytest.raises(ValueError, match=r"compares VisionConfig, .* this tower is PatchAverages"):
        verify(None, open_weights("random:toy"))
