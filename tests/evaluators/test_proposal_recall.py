"""Recall of proposals: counted per class, by hand."""

import numpy as np
import pytest

from maft_jax.evaluators.proposal_recall import ProposalRecall
from maft_jax.proposals.precompute_summary import best_ious


def test_regions_are_counted_by_class():
    """Two images: a class found well, one by just half, one not at all."""
    recall = ProposalRecall.of_nothing(4)
    recall.add({0: 1_000_000, 2: 500_000})
    recall.add({0: 499_999, 3: 0})
    np.testing.assert_array_equal(
        recall.counts, [[2, 0, 1, 1], [1_499_999, 0, 500_000, 0], [1, 0, 1, 0]]
    )
    scalars = recall.scalars(unseen=(2, 3))
    assert scalars["best_iou"] == pytest.approx(1_999_999 / 4e6, abs=1e-12)
    assert (scalars["recall_at_half"], scalars["recall_at_half_unseen"]) == (0.5, 0.5)
    assert (scalars["best_iou_unseen"], scalars["recall_at_half_seen"]) == (0.25, 0.5)
    assert set(recall.scalars()) == {"best_iou", "recall_at_half"}


def test_what_the_best_proposal_leaves_out_counts():
    """The left half is found but for a quarter of it; what is unlabelled counts nowhere."""
    labels = np.zeros((32, 32), np.int32)
    labels[:, 16:] = -1
    proposals = np.zeros((2, 8, 8), np.uint8)
    proposals[0, :2] = 255
    proposals[1, 2:] = 255
    recall = ProposalRecall.of_nothing(1)
    recall.add(best_ious(proposals, labels, (32, 32)))
    assert recall.scalars()["best_iou"] == pytest.approx(0.75, abs=1e-6)
