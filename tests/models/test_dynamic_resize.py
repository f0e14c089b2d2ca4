"""Resampling by sizes known at run time only, against the one by sizes known when compiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from maft_jax.models.dynamic_resize import composed_taps, dynamic_taps, resample
from maft_jax.models.padded_inputs import encoder_image, patch_grid_masks
from maft_jax.models.preprocess import clip_input, coarse_masks_on_grid, normalised, patch_mask
from maft_jax.models.resize import taps
from tests.golden_files import golden

FITS_ALL = 700


def sizes(*values) -> jax.Array:
    return jax.device_put(np.array(values, np.int32))


@pytest.mark.parametrize("align_corners", [False, True])
def test_taps_are_those_of_known_sizes(align_corners):
    rng = np.random.default_rng(0)
    pairs = [(1, 1), (1, 7), (7, 1), (2, 2), (640, 480), (864, 480), (160, 640), (2560, 480)]
    pairs += [(int(rng.integers(1, 2600)), int(rng.integers(1, FITS_ALL))) for _ in range(300)]

    def dynamic(source, target):
        return dynamic_taps(jnp.arange(FITS_ALL), source, target, align_corners=align_corners)

    of_all = jax.tree.map(np.asarray, jax.jit(jax.vmap(dynamic))(*jnp.array(pairs).T))
    for (source, target), indices, weights in zip(pairs, *of_all, strict=True):
        expected = taps(source, target, method="bilinear", align_corners=align_corners)
        np.testing.assert_array_equal(indices[:target], expected[0], err_msg=f"{source} {target}")
        np.testing.assert_array_equal(weights[:target], expected[1], err_msg=f"{source} {target}")
        assert np.all(indices < source)


@pytest.mark.parametrize("target", [7, 30, 480])
def test_taps_are_the_same_where_one_size_is_known(target):
    dynamic = jax.jit(dynamic_taps, static_argnums=2, static_argnames="align_corners")
    for source in (5, 31, 640, 864, 1333):
        ours = dynamic(jnp.arange(target), jnp.int32(source), target, align_corners=False)
        expected = taps(source, target, method="bilinear", align_corners=False)
        np.testing.assert_array_equal(ours.indices, expected[0])
        np.testing.assert_array_equal(ours.weights, expected[1])


@pytest.mark.parametrize("stored, image, native", [(5, 18, 40), (9, 9, 9), (1, 3, 8), (20, 10, 7)])
def test_composed_taps_are_one_resampling_after_the_other(stored, image, native):
    x = np.random.default_rng(0).random((1, 1, stored, 1), np.float32)

    @jax.jit
    def resampled(x, stored, image, native_size):
        outer = dynamic_taps(jnp.arange(native), image, native_size, align_corners=False)
        return resample(x, composed_taps(outer, stored, image, align_corners=True), axis=2)

    ours = resampled(x, *np.array([stored, image, native], np.int32))
    expected = interpolate(torch.tensor(x), (image, 1), mode="bilinear", align_corners=True)
    expected = interpolate(expected, (native, 1), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_encoder_image_matches_the_official_preprocessing():
    arrays = golden("pipeline_ops")
    image = np.zeros((384, 512, 3), np.uint8)
    height, width = arrays["image_uint8"].shape[:2]
    image[:height, :width] = arrays["image_uint8"]
    ours = np.asarray(
        jax.jit(encoder_image, static_argnums=3)(
            normalised(jax.device_put(image[None]))[0],
            sizes(height, width),
            sizes(*arrays["padded_size"]),
            (480, 480),
        )
    )
    exact = arrays["clip_input_480_rows_f32"]
    np.testing.assert_allclose(ours[arrays["clip_input_480_rows"]], exact, atol=1e-5, rtol=0)
    np.testing.assert_allclose(ours, arrays["clip_input_480_nhwc_f16"], atol=2e-3, rtol=0)


@pytest.mark.parametrize("image_size", [(61, 90), (96, 64), (1, 1), (96, 96)])
def test_encoder_image_is_the_padded_normalised_image_resized(image_size):
    rng = np.random.default_rng(0)
    height, width = image_size
    padded = tuple(-(-side // 32) * 32 for side in image_size)
    image = rng.integers(0, 256, (128, 128, 3), np.uint8)  # what is outside must not matter
    ours = jax.jit(encoder_image, static_argnums=3)(
        normalised(jax.device_put(image[None]))[0], sizes(*image_size), sizes(*padded), (48, 80)
    )
    x = np.asarray(normalised(jax.device_put(image[None, :height, :width])))
    x = np.pad(x, ((0, 0), (0, padded[0] - height), (0, padded[1] - width), (0, 0)))
    expected = clip_input(jax.device_put(x), (48, 80))[0]
    np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "stored, image_size, grid",
    [
        ((160, 160), (640, 640), (30, 30)),
        ((160, 160), (640, 640), (34, 34)),
        ((160, 214), (640, 864), (30, 30)),
        ((24, 24), (96, 96), (6, 6)),
        ((24, 32), (96, 128), (8, 8)),
        ((96, 96), (96, 96), (6, 6)),
        ((64, 64), (64, 64), (16, 16)),
        ((64, 64), (64, 64), (8, 8)),
    ],
)
def test_patch_masks_are_those_of_known_sizes(stored, image_size, grid):
    rng = np.random.default_rng(0)
    # half of the values around the threshold, where the last bit decides
    masks = rng.integers(0, 256, (60, *stored), np.uint8)
    masks[30:] = rng.integers(110, 146, (30, *stored), np.uint8)
    in_bucket = np.zeros((60, stored[0] + 16, stored[1] + 5), np.uint8)
    in_bucket[:, : stored[0], : stored[1]] = masks
    ours = jax.jit(patch_grid_masks, static_argnums=4)(
        jax.device_put(in_bucket), sizes(*stored), sizes(*image_size), sizes(*image_size), grid
    )
    known = jax.jit(coarse_masks_on_grid, static_argnums=(1, 2))(
        jax.device_put(masks[None]), image_size, grid
    )
    np.testing.assert_allclose(ours, known[0], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(patch_mask(ours[None], grid), patch_mask(known, grid))


def test_padding_is_outside_of_every_mask():
    masks = jnp.full((1, 8, 8), 255, jnp.uint8)
    on_grid = jax.jit(patch_grid_masks, static_argnums=4)(
        masks, sizes(5, 8), sizes(20, 32), sizes(32, 32), (8, 8)
    )
    np.testing.assert_allclose(on_grid[0, :5], 1, atol=1e-6)
    np.testing.assert_array_equal(on_grid[0, 5:], 0)
