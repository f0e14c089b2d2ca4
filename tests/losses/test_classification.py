"""Losses of masks of known classes by literal numbers; tests/models has the authors' own."""

import jax.numpy as jnp
import numpy as np

from maft_jax.losses.classification import best_matches, cross_entropies, weights_by_class


def test_every_image_and_every_class_in_it_counts_alike():
    labels = jnp.array([[3, 3, 1, -1], [0, -1, -1, -1], [-1, -1, -1, -1]])
    expected = [[1 / 4, 1 / 4, 1 / 2, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(weights_by_class(labels), expected, rtol=1e-6)


def test_padding_has_no_cross_entropy():
    logits = jnp.array([[0.0, np.log(3)], [5.0, 1.0]])
    np.testing.assert_allclose(
        cross_entropies(logits, jnp.array([1, -1])), [np.log(4 / 3), 0], rtol=1e-6
    )


def test_proposals_are_matched_with_the_mask_that_they_overlap_best():
    iou = jnp.array([[[0.9, 0.1, 0.8, 0.95], [0.2, 0.6, 0.75, 0.1]]])
    valid = jnp.array([[True, True, True, False]])
    proposals, truths, matched = best_matches(iou, valid, 0.7, 3)
    np.testing.assert_array_equal(proposals, [[0, 2, 1]])
    np.testing.assert_array_equal(truths, [[0, 0, 1]])
    np.testing.assert_array_equal(matched, [[True, True, False]])
