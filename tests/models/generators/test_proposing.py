"""From logits to proposals: masks over images, scores, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maft_jax.config.sections import MeshConfig
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.proposing import masks_over_images, proposal_scores, propose
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.text_interaction import TextConfig
from maft_jax.runtime.sharding import batch_sharding, make_mesh, place


@pytest.mark.parametrize("align_corners", [True, False])
def test_masks_at_image_size_are_enlarged_to_the_padding_and_cropped(align_corners):
    logits = np.random.default_rng(0).normal(size=(1, 3, 16, 24)).astype(np.float32)
    height, width = 61, 83
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(logits), size=(64, 96), mode="bilinear", align_corners=align_corners
    )
    found = masks_over_images(
        jnp.asarray(logits),
        jnp.array([[height, width]]),
        (height, width),
        align_corners=align_corners,
    )
    expected = enlarged.sigmoid()[:, :, :height, :width].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_masks_of_every_image_cover_it_and_nothing_beyond():
    """A ramp along the rows, whose values say where they were read."""
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None], (2, 1, 8, 8))
    sizes = jnp.array([[32, 32], [16, 32]])
    masks = masks_over_images(ramp, sizes, (4, 4), align_corners=False)
    rows = np.log(masks / (1 - masks))[:, 0, :, 0]
    np.testing.assert_allclose(rows[0], [0.5, 2.5, 4.5, 6.5], atol=1e-4)
    np.testing.assert_allclose(rows[1], [0, 1, 2, 3], atol=1e-4)


def test_scores_are_the_class_times_the_mean_inside_of_the_image():
    logits = np.full((1, 3, 4, 4), -1.0, np.float32)
    logits[0, 0, :2, :2] = 2.0
    logits[0, 1, 3, 3] = 9.0  # in the padding alone
    classes = np.log(np.array([[[0.2, 0.3, 0.5]] * 3], np.float32))
    scores = proposal_scores(jnp.asarray(logits), jnp.asarray(classes), jnp.array([[12, 13]]))
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
    run = jax.jit(functools.partial(propose, config.make_module()))
    return config, functools.partial(run, config.init(jax.random.key(0)))


def test_proposals_depend_on_images_and_names_and_not_on_what_is_beyond(freeseg):
    _, run = freeseg
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (2, 64, 64, 3), np.uint8)
    sizes = jnp.array([[64, 50], [40, 64]])
    text = np.eye(8, dtype=np.float32)[:4]
    first = run(jnp.asarray(pixels), sizes, text)
    assert first.mask_logits.shape == (2, 5, 16, 16)
    assert first.class_logits.shape == (2, 5, 4)
    assert first.scores.shape == (2, 5)
    beyond = pixels.copy()
    beyond[0, :, 50:], beyond[1, 40:] = 9, 200
    again = run(jnp.asarray(beyond), sizes, text)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    other = run(jnp.asarray(pixels), sizes, text[[1, 0, 2, 3]])
    np.testing.assert_allclose(
        other.class_logits, first.class_logits[..., [1, 0, 2, 3]], rtol=0, atol=1e-3
    )
    opposite = run(jnp.asarray(pixels), sizes, -text)
    assert not np.array_equal(opposite.mask_logits, first.mask_logits)


@pytest.mark.slow
def test_devices_share_images_and_parameters(freeseg):
    config, run = freeseg
    pixels = np.random.default_rng(2).integers(0, 255, (4, 64, 64, 3), np.uint8)
    sizes, text = np.full((4, 2), 64), np.eye(8, dtype=np.float32)[:3]
    expected = run(jnp.asarray(pixels), jnp.asarray(sizes), jnp.asarray(text))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=1), jax.devices()[:4])
    parameters = place(config.init(jax.random.key(0)), mesh, config.sharding_rules)
    images = batch_sharding(mesh)
    found = jax.jit(functools.partial(propose, config.make_module()), out_shardings=images)(
        parameters, jax.device_put(pixels, images), jax.device_put(sizes, images), text
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_a_generator_that_reads_names_asks_for_them(freeseg):
    config, _ = freeseg
    module, images = config.make_module(), jnp.zeros((1, 64, 64, 3))
    with pytest.raises(ValueError, match="expected the rows of the class names"):
        jax.eval_shape(module.init, jax.random.key(0), images)


def test_a_generator_has_classes_or_reads_them():
    for one in ({}, {"num_classes": 3, "text": TextConfig()}):
        with pytest.raises(ValueError, match="expected one of the two"):
            Mask2FormerConfig(**one)
