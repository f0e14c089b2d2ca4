"""Ground-truth masks: which there are, how they come to patches, and how they are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maft_jax.evaluators.mask_accuracy import MaskTotal, classes_shown, count_masks, mask_accuracy
from maft_jax.models.padded_inputs import patch_grid_regions


def test_classes_of_each_label_map_are_listed_once_and_unlabelled_pixels_are_none():
    maps = jnp.array([[[4, -1, 0], [4, 4, 2]], [[-1, -1, -1], [-1, -1, -1]]], jnp.int32)
    shown = np.asarray(jax.jit(classes_shown, static_argnums=(1, 2))(maps, 5, 3))
    assert shown.shape == (2, 32)
    assert shown[0, :4].tolist() == [0, 2, 4, -1] and (shown[1] == -1).all()


def test_masks_of_padding_rows_and_of_no_class_are_not_counted():
    probabilities = jnp.array([[[0.2, 0.8], [0.7, 0.3], [1.0, 0.0]], [[0.9, 0.1]] * 3])
    classes = jnp.array([[0, 0, -1], [1, 1, 1]], jnp.int32)
    both = count_masks(probabilities, classes, jnp.array([True, True]))
    assert both.tolist() == [[2, 1], [3, 0]]
    assert count_masks(probabilities, classes, jnp.array([True, False])).tolist() == [
        [2, 1],
        [0, 0],
    ]


def test_regions_are_resized_to_the_padded_image_and_its_patches_as_torch_does():
    labels = np.random.default_rng(0).integers(-1, 3, (12, 15)).astype(np.int32)
    labels = np.repeat(np.repeat(labels, 5, axis=0), 4, axis=1)[:57, :58]
    array = np.full((64, 64), 2, np.int32)  # what lies outside of the label map plays no part
    array[:57, :58] = labels
    sizes = (jnp.array(size) for size in ((57, 58), (90, 92), (96, 96)))
    classes = jnp.array([0, 2, -1], jnp.int32)
    regions = jax.jit(patch_grid_regions, static_argnums=5)
    ours = np.asarray(regions(array, classes, *sizes, (7, 9)))
    masks = torch.tensor(np.stack([labels == 0, labels == 2]).astype(np.float32))[None]
    masks = F.interpolate(masks, (90, 92), mode="bilinear", align_corners=False)
    masks = F.pad(masks, (0, 4, 0, 6))
    expected = F.interpolate(masks, (7, 9), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(ours[:2], expected, atol=1e-5)
    assert not ours[2].any()


def test_parts_add_up_and_a_saved_total_is_taken_up():
    counts = np.array([[4, 1], [0, 0], [2, 2]])
    whole, first = MaskTotal(3), MaskTotal(3)
    whole.add(counts + counts)
    first.add(counts)
    second = MaskTotal.from_state(first.state(), 3)
    second.add(counts)
    np.testing.assert_array_equal(second.counts, whole.counts)
    with pytest.raises(ValueError, match="expected the array 'masks', got"):
        MaskTotal.from_state({"confusion": counts}, 3)
    with pytest.raises(ValueError, match="another class list"):
        MaskTotal.from_state(first.state(), 4)


def test_classes_that_no_image_shows_have_no_part_in_means():
    found = mask_accuracy(np.array([[4, 1], [0, 0], [2, 2]]), unseen=(1,))
    assert found.mask_accuracy == 0.5 and found.mean_mask_accuracy == (1 / 4 + 1) / 2
    assert found.seen_mask_accuracy == (1 / 4 + 1) / 2 and np.isnan(found.unseen_mask_accuracy)
    nothing = mask_accuracy(np.zeros((3, 2), np.int64))
    assert np.isnan(nothing.mask_accuracy) and np.isnan(nothing.mean_mask_accuracy)
