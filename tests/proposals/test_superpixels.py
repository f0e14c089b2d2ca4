import pickle

import numpy as np
import pytest

from input_pipeline.examples import IGNORE, Example
from maft_jax.proposals.generator import ProposalGenerator
from maft_jax.proposals.region_graph import adjacent_pairs
from maft_jax.proposals.superpixels import SuperpixelProposals, merge_tree_regions, ward_merges


def _scene(height=60, width=80):
    image = np.full((height, width, 3), (90, 160, 220), np.uint8)
    image[height // 2 :] = (60, 140, 50)
    image[height // 4 : 3 * height // 4, width // 4 : width // 2] = (200, 30, 30)
    noise = np.random.default_rng(0).integers(-5, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _propose(image, num_proposals):
    labels = np.full(image.shape[:2], IGNORE, np.int32)
    return SuperpixelProposals()(Example("scene", image, labels), num_proposals)


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


def test_same_image_gives_same_proposals_in_another_process():
    here, there = _propose(_scene(), 50), pickle.loads(pickle.dumps(SuperpixelProposals()))
    labels = np.full((60, 80), IGNORE, np.int32)
    again = there(Example("another id", _scene(), labels), 50)
    np.testing.assert_array_equal(here.masks, again.masks)
    np.testing.assert_array_equal(here.scores, again.scores)


def test_scores_fall_along_the_order_however_many_are_asked_for():
    few, many = _propose(_scene(), 10), _propose(_scene(), 200)
    assert isinstance(SuperpixelProposals(), ProposalGenerator)
    assert np.all(np.diff(many.scores) < 0)
    np.testing.assert_array_equal(few.scores, many.scores[:10])
    np.testing.assert_array_equal(few.masks, many.masks[:10])


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 3), (5, 4), (2, 700), (900, 2), (37, 301)])
@pytest.mark.parametrize("content", ["one colour", "noise"])
def test_any_image_has_proposals_that_begin_with_the_whole(size, content):
    image = np.full((*size, 3), 127, np.uint8)
    if content == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    proposals = _propose(image, 20)
    assert 1 <= len(proposals.masks) == len(proposals.scores) <= 20
    assert proposals.masks[0].all()
    assert proposals.input_size is None and proposals.class_logits is None


def test_adjacent_pairs_share_a_side_not_a_corner():
    labels = np.array([[0, 0, 4], [7, 2, 2]])
    assert adjacent_pairs(labels) == [(0, 2), (0, 4), (0, 7), (2, 4), (2, 7)]
    assert adjacent_pairs(np.array([[0, 1], [2, 0]])) == [(0, 1), (0, 2)]
    assert adjacent_pairs(np.zeros((3, 3), int)) == []


def test_ward_merges_similar_neighbours_first_and_never_across_a_gap():
    means = np.array([[0.0], [10.0], [11.0], [0.0]])
    merges = ward_merges(means, np.ones(4), {(0, 1), (1, 2), (2, 3)})
    assert merges[0] == (1, 2)
    assert len(merges) == 3
