import numpy as np
import pytest

from maft_jax.proposals.soft_masks import soften_masks
from maft_jax.proposals.superpixels import merge_tree_regions, superpixel_proposals, ward_merges


def _scene(height=60, width=80):
    image = np.full((height, width, 3), (90, 160, 220), np.uint8)
    image[height // 2 :] = (60, 140, 50)
    image[height // 4 : 3 * height // 4, width // 4 : width // 2] = (200, 30, 30)
    noise = np.random.default_rng(0).integers(-5, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_masks_are_nested_or_disjoint():
    masks = merge_tree_regions(_scene(), 60).reshape(60, -1).astype(int)
    overlap, size = masks @ masks.T, masks.sum(axis=1)
    assert np.all((overlap == 0) | (overlap == np.minimum(size[:, None], size)))


def test_whole_image_comes_first_and_children_partition_their_parent():
    masks = merge_tree_regions(_scene(), 3)
    assert masks[0].all()
    np.testing.assert_array_equal(masks[1] ^ masks[2], masks[0])


def test_homogeneous_object_is_found():
    scene = np.zeros(_scene().shape[:2], bool)
    scene[15:45, 20:40] = True
    masks = merge_tree_regions(_scene(), 10)
    iou = (masks & scene).sum(axis=(1, 2)) / (masks | scene).sum(axis=(1, 2))
    assert iou.max() > 0.95


def test_same_image_gives_same_proposals():
    np.testing.assert_array_equal(
        superpixel_proposals(_scene(), 50), superpixel_proposals(_scene(), 50)
    )


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (5, 4), (2, 700), (900, 2), (37, 301)])
@pytest.mark.parametrize("content", ["one colour", "noise"])
def test_any_image_has_proposals_of_a_quarter_of_its_size(size, content):
    image = np.full((*size, 3), 127, np.uint8)
    if content == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    proposals = superpixel_proposals(image, 20)
    assert proposals.dtype == np.uint8
    assert 1 <= len(proposals) <= 20
    assert proposals.shape[1:] == (-(-size[0] // 4), -(-size[1] // 4))
    assert np.all(proposals[0] == 255)


def test_ward_merges_similar_neighbours_first_and_never_across_a_gap():
    means = np.array([[0.0], [10.0], [11.0], [0.0]])
    merges = ward_merges(means, np.ones(4), {(0, 1), (1, 2), (2, 3)})
    assert merges[0] == (1, 2)
    assert len(merges) == 3


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
