import numpy as np

from input_pipeline.examples import IGNORE
from maft_jax.proposals.ground_truth import ground_truth_proposals


def _two_classes():
    labels = np.full((40, 80), IGNORE, np.int32)
    labels[:, :10] = 3
    labels[:, 70:] = 3
    labels[:20, 70:] = IGNORE
    labels[:, 20:60] = 5
    return labels


def test_classes_come_first_then_pieces_each_largest_first():
    proposals = ground_truth_proposals(_two_classes(), 10)
    assert proposals.shape == (4, 10, 20)
    areas = proposals.sum(axis=(1, 2), dtype=int)
    assert areas[0] > areas[1] > areas[2] > areas[3]
    np.testing.assert_allclose(proposals[2].astype(int) + proposals[3], proposals[1], atol=1)


def test_pieces_of_a_fully_labelled_image():
    labels = np.zeros((40, 80), np.int32)
    labels[:, 30:40] = 4
    proposals = ground_truth_proposals(labels, 10)
    assert len(proposals) == 4
    np.testing.assert_allclose(proposals[2].astype(int) + proposals[3], proposals[0], atol=1)


def test_number_of_proposals_is_a_limit():
    assert len(ground_truth_proposals(_two_classes(), 1)) == 1


def test_unlabelled_image_has_no_proposals():
    assert ground_truth_proposals(np.full((9, 9), IGNORE, np.int32), 5).shape == (0, 3, 3)
