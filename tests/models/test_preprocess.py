"""Resizing and preprocessing against the official pipeline's golden outputs, and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

from maft_jax.models.preprocess import (
    PIXEL_MEAN,
    PIXEL_STD,
    clip_input,
    coarse_masks_on_grid,
    mask_probability,
    patch_mask,
    soft_patch_mask,
)
from maft_jax.models.resize import bilinear_matrix, resize
from maft_jax.models.towers.clip_vit import resize_position_embedding
from tests.golden_files import golden


def padded_image():
    """Normalised, then padded with zeros right and below, as at test time."""
    arrays = golden("pipeline_ops")
    image, (height, width) = arrays["image_uint8"], arrays["padded_size"]
    normalised = (image.astype(np.float32) - PIXEL_MEAN) / PIXEL_STD
    padding = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    return jax.device_put(np.pad(normalised, padding)[None])


def test_clip_input_matches_the_official_preprocessing():
    arrays = golden("pipeline_ops")
    ours = np.asarray(clip_input(padded_image(), (480, 480))[0])
    exact = arrays["clip_input_480_rows_f32"]
    np.testing.assert_allclose(ours[arrays["clip_input_480_rows"]], exact, atol=1e-5, rtol=0)
    np.testing.assert_allclose(ours, arrays["clip_input_480_nhwc_f16"], atol=2e-3, rtol=0)


def test_uint8_pixels_are_normalised():
    image = golden("pipeline_ops")["image_uint8"][None]
    ours = clip_input(jax.device_put(image), image.shape[1:3])
    np.testing.assert_allclose(ours, (image - PIXEL_MEAN) / PIXEL_STD, atol=1e-6)


@pytest.mark.parametrize("side", [30, 34])
def test_patch_masks_match_the_official_ones(side):
    arrays = golden("pipeline_ops")
    logits = jax.device_put(arrays["mask_logits_stride4_f16"].astype(np.float32))
    size = tuple(int(side) for side in arrays["padded_size"])
    masks = jax.nn.sigmoid(resize(logits[None], size, axes=(2, 3), align_corners=True))
    ours = np.asarray(patch_mask(masks, (side, side))).reshape(100, side, side)
    np.testing.assert_array_equal(ours, arrays[f"mask_grid_{side}_bool"])
    assert not ours[3].any() and ours[4].all()


@pytest.mark.parametrize("grid", [(30, 30), (10, 10), (20, 34)])
def test_position_embeddings_match_the_official_ones(grid):
    arrays = golden("pipeline_ops")
    ours = resize_position_embedding(jax.device_put(arrays["posemb_14x14"]), (14, 14), grid)
    expected = arrays[f"posemb_{grid[0]}x{grid[1]}"]
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def test_native_position_embedding_is_unchanged():
    embedding = jax.device_put(golden("pipeline_ops")["posemb_14x14"])
    np.testing.assert_array_equal(
        resize_position_embedding(embedding, (14, 14), (14, 14)), embedding
    )


@pytest.fixture(params=["default", "tpu"])
def platform(request, monkeypatch):
    """The branch of lax.platform_dependent that is taken."""

    def take(*operands, default, **branches):
        return branches.get(request.param, default)(*operands)

    monkeypatch.setattr(lax, "platform_dependent", take)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(5, 11), (13, 29), (1, 1), (7, 8)])
def test_resize_matches_torch(platform, method, align_corners, size):
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    ours = resize(jax.device_put(x), size, axes=(1, 2), method=method, align_corners=align_corners)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size, mode=method, align_corners=align_corners
    )
    np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5, rtol=0)


def test_bilinear_matrix_is_the_resize():
    x = np.random.default_rng(0).normal(size=(1, 6, 1, 1)).astype(np.float32)
    expected = resize(jax.device_put(x), (17, 1), axes=(1, 2), align_corners=True)
    np.testing.assert_allclose(
        bilinear_matrix(6, 17, align_corners=True) @ x[0, :, 0], expected[0, :, 0], atol=1e-6
    )


def test_uint8_masks_are_exact_parts_of_255():
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    expected = values.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(mask_probability(jax.device_put(values)), expected)
    np.testing.assert_array_equal(jax.jit(mask_probability)(values), expected)


@pytest.mark.parametrize("grid", [4, 8, 16])
def test_patch_masks_decide_ties_as_torch(grid):
    # an even number of pixels per patch: patch values are means of four pixels
    masks = np.random.default_rng(0).integers(110, 146, (1, 50, 64, 64), np.uint8)
    ours = np.asarray(jax.jit(patch_mask, static_argnums=1)(masks, (grid, grid)))
    values = torch.nn.functional.interpolate(
        torch.from_numpy(masks.astype(np.float32) / np.float32(255)), (grid, grid), mode="bilinear"
    )
    near = (values - 0.5).abs() < 1e-6
    assert near.sum() > 10, "the case is there"
    np.testing.assert_array_equal(ours, (values >= 0.5).flatten(2).numpy())


@pytest.mark.parametrize(("stored", "grid"), [((20, 29), (5, 7)), ((80, 116), (10, 10))])
def test_stored_masks_reach_the_grid_by_way_of_the_image(stored, grid):
    masks = np.random.default_rng(0).integers(0, 256, (2, 3, *stored), np.uint8)
    ours = coarse_masks_on_grid(jax.device_put(masks), (80, 116), grid)
    full = torch.from_numpy(masks.astype(np.float32) / np.float32(255))
    resize = torch.nn.functional.interpolate
    full = resize(full, (80, 116), mode="bilinear", align_corners=True)
    expected = resize(full, grid, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6, rtol=0)


def test_no_proposals_read_no_patches():
    assert soft_patch_mask(jnp.zeros((2, 0, 6, 6), jnp.uint8), (3, 2)).shape == (2, 0, 6)
