import numpy as np
import pytest
from skimage.transform import resize

from input_pipeline.examples import proposal_grid_size
from maft_jax.proposals.soft_masks import soften_masks


def _blobs(height, width, num_masks=3):
    noise = np.random.default_rng(0).normal(size=(num_masks, 6, 8))
    return np.stack([resize(layer, (height, width), order=1) > 0 for layer in noise])


def test_softened_partition_sums_to_one():
    labels = np.random.default_rng(0).integers(0, 3, (50, 30))
    soft = soften_masks(np.stack([labels == i for i in range(3)]), (100, 60))
    assert soft.shape == (3, 25, 15)
    assert np.abs(soft.sum(axis=0, dtype=int) - 255).max() <= 2


def test_softened_edge_lies_where_the_mask_edge_lies():
    mask = np.zeros((1, 64, 64), bool)
    mask[:, :, 32:] = True
    row = soften_masks(mask, (64, 64))[0, 8].astype(float)
    pixels = np.linspace(0, 63, 16)
    assert abs(np.interp(127.5, row, pixels) - 31.5) < 0.1


def test_weights_are_triangles_around_the_grid_points():
    # Grid points lie on pixels 0, 4 and 8 of 9; weights fall to zero four pixels away.
    line = np.zeros((9, 9, 9), np.float32)
    for pixel in range(9):
        line[pixel, :, pixel] = 1.0
    middle = soften_masks(line, (9, 9))[:, 1, 1]
    np.testing.assert_array_equal(
        middle, np.round(255 * np.array([0, 1, 2, 3, 4, 3, 2, 1, 0]) / 16)
    )
    corner = soften_masks(line, (9, 9))[:, 1, 0]
    np.testing.assert_array_equal(
        corner, np.round(255 * np.array([4, 3, 2, 1, 0, 0, 0, 0, 0]) / 10)
    )


def test_bool_uint8_and_float_of_the_same_mask_agree():
    masks = _blobs(48, 64)
    expected = soften_masks(masks, (48, 64))
    np.testing.assert_array_equal(soften_masks(masks.astype(np.float32), (48, 64)), expected)
    np.testing.assert_array_equal(soften_masks(masks.astype(np.uint8) * 255, (48, 64)), expected)


@pytest.mark.parametrize("mask_size", [(48, 64), (77, 103), (144, 192), (288, 384)])
def test_resolution_of_the_masks_hardly_matters(mask_size):
    masks = _blobs(192, 256).astype(np.float32)
    resized = np.stack([resize(mask, mask_size, order=1, anti_aliasing=True) for mask in masks])
    expected = soften_masks(masks, (96, 128)).astype(int)
    got = soften_masks(resized.astype(np.float32), (96, 128)).astype(int)
    assert np.abs(got - expected).mean() < 5


def test_mask_of_the_grid_itself_is_interpolated_at_corner_aligned_points():
    rng = np.random.default_rng(1)
    mask = rng.random((1, 80, 120)).astype(np.float32)
    soft = soften_masks(mask, (320, 480))[0] / 255
    rows = np.clip((np.linspace(0, 319, 80) + 0.5) / 4 - 0.5, 0, 79)
    columns = np.clip((np.linspace(0, 479, 120) + 0.5) / 4 - 0.5, 0, 119)
    first = np.stack([np.interp(columns, np.arange(120), row) for row in mask[0]])
    expected = np.stack([np.interp(rows, np.arange(80), column) for column in first.T]).T
    assert np.abs(soft - expected).max() < 0.02


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 700), (6000, 4000)])
def test_full_and_empty_masks_stay_full_and_empty_at_any_size(size):
    masks = np.stack([np.ones((7, 9), bool), np.zeros((7, 9), bool)])
    soft = soften_masks(masks, size)
    assert soft.shape == (2, *proposal_grid_size(*size))
    assert np.all(soft[0] == 255) and np.all(soft[1] == 0)


def test_no_masks_give_no_soft_masks():
    assert soften_masks(np.zeros((0, 48, 64), bool), (48, 64)).shape == (0, 12, 16)
