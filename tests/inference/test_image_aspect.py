"""Images whose ratio of sides is kept: what the encoder reads of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.eval_pipeline import make_eval_batch
from input_pipeline.examples import PreparedExample, proposal_grid_size
from maft_jax.config import from_config_dict, preset
from maft_jax.evaluators.protocol import EvaluationProtocol
from maft_jax.inference.segmenter import InferenceSpec, Segmenter, eval_geometry
from maft_jax.models.clip import ClipConfig
from maft_jax.models.encoder import EncoderSettings, MaskingSpec, class_logits
from maft_jax.models.preprocess import coarse_masks_on_grid
from maft_jax.models.towers.convnext import ConvNextConfig
from maft_jax.models.towers.tips import TipsConfig
from maft_jax.resolved_config import resolve
from maft_jax.runtime.sharding import one_device_mesh
from tests.runs import SETTINGS

TOWER = ConvNextConfig((1, 1, 1, 1), (8, 8, 8, 8), 12)
SHORT = 64


def make_encoder(image_size=SHORT):
    return TOWER.make_encoder(EncoderSettings(MaskingSpec(0, image_size), one_device_mesh()))


@pytest.fixture(scope="module")
def visual():
    return TOWER.init(jax.random.key(0))


@pytest.fixture(scope="module")
def text():
    text = jax.random.normal(jax.random.key(1), (3, 12))
    return text / jnp.linalg.norm(text, axis=-1, keepdims=True)


def example_of(size, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    masks = rng.integers(0, 2, (4, *proposal_grid_size(*size)), np.uint8) * np.uint8(255)
    labels = np.zeros(size, np.int32)
    return PreparedExample("one", image, labels, masks, np.ones(4, np.float32))


def probabilities(spec, visual, text, example):
    batch = make_eval_batch(example, 4, eval_geometry("keep", SHORT, 4 * SHORT))
    return Segmenter(spec).class_probabilities(visual, text, jax.device_put(batch))[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_the_tower_reads_the_image_as_it_is(size, visual, text):
    encoder, example = make_encoder(), example_of(size)
    spec = InferenceSpec(encoder, (SHORT, SHORT), short_side=SHORT)
    pixels = encoder.normalise(jax.device_put(example.image[None]))
    masks = coarse_masks_on_grid(jax.device_put(example.proposals[None]), size, encoder.grid(size))
    features = encoder.encode_proposals(visual, pixels, masks)
    expected = encoder.probabilities(class_logits(encoder, features, text))[0]
    ours = probabilities(spec, visual, text, example)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    squashed = probabilities(InferenceSpec(encoder, (SHORT, SHORT)), visual, text, example)
    assert np.abs(ours - squashed).max() > 1e-4, "the ratio matters"


def test_sizes_follow_the_arrays_which_are_few():
    spec = InferenceSpec(make_encoder(96), (96, 96), short_side=SHORT, scales=(1.0, 2.0))
    assert spec.view_sizes((64, 128)) == ((96, 192), (192, 384))
    shapes, geometry = set(), eval_geometry("keep", SHORT, 4 * SHORT)
    for long in range(64, 160):
        batch = make_eval_batch(example_of((64, long)), 4, geometry)
        shapes.add(batch["image"].shape[1:3])
    assert shapes == {(64, 64), (64, 96), (64, 128), (64, 160)}


def test_arrays_are_read_in_whole_patches_whatever_the_scale():
    tower = TipsConfig(16, 1, 14, 56, 16, 8)
    masking = MaskingSpec(0, 56, mask_rule="shared_patches")
    encoder = tower.make_encoder(EncoderSettings(masking, one_device_mesh()))
    spec = InferenceSpec(encoder, (56, 56), short_side=56)
    assert spec.view_sizes((64, 96)) == ((70, 98),)


def test_the_setting_reaches_the_program_and_the_key_of_results():
    config = preset("official")
    settings = {"data.root": "nowhere", "model.mask_start_layer": -1, "model.image_aspect": "keep"}
    config.update_from_flattened_dict(SETTINGS | settings)
    clip, mesh = ClipConfig(TOWER, None), one_device_mesh()
    protocol = EvaluationProtocol.of(resolve(from_config_dict(config), clip, None, mesh))
    encoder = make_encoder()
    assert protocol.inference_spec(encoder).short_side == protocol.geometry.short_side
    assert protocol.describe(encoder)["image_aspect"] == "keep"
    squashing = dataclasses.replace(protocol, image_aspect="squash")
    assert squashing.inference_spec(encoder).short_side is None
    assert "image_aspect" not in squashing.describe(encoder)
