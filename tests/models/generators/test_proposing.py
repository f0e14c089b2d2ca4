"""From logits to proposals: masks over images, scores, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maft_jax.config.sections import MeshConfig
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.proposing import masks_at, pixel_weights, proposal_scores
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.text_interaction import TextConfig
from maft_jax.proposals.mask2former_family import FamilyNetwork
from maft_jax.runtime.sharding import batch_sharding, make_mesh, place


@pytest.mark.parametrize("align_corners", [True, False])
def test_masks_at_image_size_are_enlarged_to_the_padding_and_cropped(align_corners):
    logits = np.random.default_rng(0).normal(size=(1, 3, 16, 24)).astype(np.float32)
    height, width = 61, 83
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(logits), size=(64, 96), mode="bilinear", align_corners=align_corners
    )
    rows, columns = (
        jax.device_put(
            pixel_weights(np.arange(float(side)), padded, shape, align_corners=align_corners)[None]
        )
        for side, padded, shape in ((height, 64, (64, 16)), (width, 96, (96, 24)))
    )
    found = masks_at(jax.device_put(logits), rows, columns)
    expected = enlarged.sigmoid()[:, :, :height, :width].numpy()
    np.testing.assert_allclose(found[:, :, :height, :width], expected, rtol=0, atol=2e-6)
    assert not found[:, :, height:].any() and not found[..., width:].any()


@pytest.mark.parametrize("align_corners", [True, False])
def test_pixels_beyond_the_padded_input_have_no_weights(align_corners):
    pixels = np.array([-0.25, 31.0, 31.5, 31.75])
    weights = pixel_weights(pixels, 32, (5, 9), align_corners=align_corners)
    np.testing.assert_allclose(weights.sum(1), [1, 1, 1, 0, 0])
    assert weights.shape == (5, 9) and not weights[:, 8].any()


def test_scores_are_the_class_times_the_mean_inside_of_the_image():
    logits = np.full((1, 3, 4, 4), -1.0, np.float32)
    logits[0, 0, :2, :2] = 2.0
    logits[0, 1, 3, 3] = 9.0  # in the padding alone
    classes = np.log(np.array([[[0.2, 0.3, 0.5]] * 3], np.float32))
    scores = proposal_scores(jax.device_put(logits), jax.device_put(classes), jnp.array([[12, 13]]))
    inside = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(scores, [[0.3 * inside, 0, 0]], rtol=1e-5)


@pytest.fixture(scope="module")
def freeseg():
    """A tiny random generator that reads class names."""
    config = Mask2FormerConfig(
        backbone=ResNetConfig((1, 1, 1, 1), (16, 16, 16, 32), (4, 4, 4, 8), (4, 4, 8)),
        pixel_decoder=PixelDecoderConfig(32, 32, 1, 16),
        decoder=DecoderConfig(32, 5, 3, 16),
        text=TextConfig(8, 16, 12, 2),
    )
    network = config.init(jax.random.key(0))
    run = jax.jit(FamilyNetwork(config))
    return config, lambda pixels, sizes, text: run(
        {"network": network, "text": text}, pixels, sizes
    )


@pytest.mark.slow
def test_proposals_depend_on_images_and_names_and_not_on_what_is_beyond(freeseg):
    _, run = freeseg
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (2, 64, 64, 3), np.uint8)
    sizes = jnp.array([[64, 50], [40, 64]])
    text = np.eye(8, dtype=np.float32)[:4]
    first = masks, classes = run(jax.device_put(pixels), sizes, text)
    assert masks.shape == (2, 5, 16, 16) and classes.shape == (2, 5, 5)
    beyond = pixels.copy()
    beyond[0, :, 50:], beyond[1, 40:] = 9, 200
    again = run(jax.device_put(beyond), sizes, text)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    _, others = run(jax.device_put(pixels), sizes, text[[1, 0, 2, 3]])
    np.testing.assert_allclose(others, classes[..., [1, 0, 2, 3, 4]], rtol=0, atol=1e-3)
    opposite, _ = run(jax.device_put(pixels), sizes, -text)
    assert not np.array_equal(opposite, masks)


@pytest.mark.slow
def test_devices_share_images_and_parameters(freeseg):
    config, run = freeseg
    pixels = np.random.default_rng(2).integers(0, 255, (4, 64, 64, 3), np.uint8)
    sizes, text = np.full((4, 2), 64), np.eye(8, dtype=np.float32)[:3]
    expected = run(jax.device_put(pixels), jax.device_put(sizes), jax.device_put(text))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=1), jax.devices()[:4])
    network = place(config.init(jax.random.key(0)), mesh, config.sharding_rules)
    images = batch_sharding(mesh)
    found = jax.jit(FamilyNetwork(config), out_shardings=images)(
        {"network": network, "text": text}, *jax.device_put((pixels, sizes), images)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.slow
def test_a_generator_that_reads_names_asks_for_them(freeseg):
    config, _ = freeseg
    module, images = config.make_module(), jnp.zeros((1, 64, 64, 3))
    with pytest.raises(ValueError, match="expected the rows of the class names"):
        jax.eval_shape(module.init, jax.random.key(0), images)


def test_a_generator_has_classes_or_reads_them():
    for one in ({}, {"num_classes": 3, "text": TextConfig()}):
        with pytest.raises(ValueError, match="expected one of the two"):
            Mask2FormerConfig(**one)
