"""Correlations, similarity and false positives against scipy, loops, and cases worked by hand."""

import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from maft_jax.diagnosis.statistics import (
    ImageTruth,
    binned_means,
    confident_false_positives,
    entropy_share,
    is_judged,
    joined,
    mean_of,
    mean_pairwise_cosine,
    mean_row_spearman,
    pearson,
    score_image,
    spearman,
    top_false_positives,
)


def make_truth(iou, present=(0, 2), shares=None, index=0):
    iou = np.asarray(iou, np.float64)
    count = iou.shape[1]
    if shares is None:
        shares = np.full((count, len(present)), 1 / max(1, len(present)))
    return ImageTruth(
        example_index=index,
        example_id=f"photo {index}",
        proposals=np.arange(count) + 10,
        present_classes=np.array(present, np.int32),
        iou=iou,
        normalised_iou=iou,
        shares=np.asarray(shares, np.float64),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_correlations_are_those_of_scipy(dtype):
    rng = np.random.default_rng(0)
    x = rng.random(500).astype(dtype)
    y = (np.round(x + rng.normal(0, 0.4, 500), 1) + 100).astype(dtype)  # with many ties
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(*np.float64([x, y]))[0], abs=1e-12)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)


def test_correlation_with_itself_is_one():
    x = np.random.default_rng(1).random(99)
    assert pearson(x, x) == pytest.approx(1, abs=1e-12)
    assert pearson(x, -3 * x) == pytest.approx(-1, abs=1e-12)
    assert spearman(x, np.exp(9 * x)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("x", [np.zeros(0), np.ones(1), np.full(7, 0.1)])
def test_correlation_with_constant_scores_is_none(x):
    for correlate in (pearson, spearman):
        assert correlate(x, np.linspace(0, 1, len(x))) is None
        assert correlate(np.linspace(0, 1, len(x)), x) is None


def test_rows_without_a_correlation_do_not_count():
    rising, constant = np.array([0.1, 0.2, 0.3]), np.ones(3)
    assert mean_row_spearman([rising, rising], [rising, -rising]) == pytest.approx(0)
    assert mean_row_spearman([rising, rising], [rising, constant]) == pytest.approx(1)
    assert mean_row_spearman([rising], [constant]) is None


def test_mean_cosine_is_that_of_all_pairs():
    vectors = np.random.default_rng(2).random((6, 4))
    pairs = [
        1 - scipy.spatial.distance.cosine(vectors[i], vectors[j])
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    assert mean_pairwise_cosine(vectors) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert mean_pairwise_cosine(np.eye(5)) == pytest.approx(0, abs=1e-12)
    assert mean_pairwise_cosine(np.ones((5, 3))) == pytest.approx(1, abs=1e-12)
    assert mean_pairwise_cosine(np.ones((1, 3))) is None


def test_entropy_is_that_of_scipy_over_the_largest_possible():
    probabilities = np.random.default_rng(3).dirichlet(np.full(7, 0.3), 20)
    expected = scipy.stats.entropy(probabilities, axis=1) / np.log(7)
    np.testing.assert_allclose(entropy_share(probabilities), expected, atol=1e-12)
    np.testing.assert_allclose(entropy_share(0.3 * probabilities), expected, atol=1e-12)
    np.testing.assert_array_equal(entropy_share(np.eye(3)), 0)
    np.testing.assert_allclose(entropy_share(np.full((1, 9), 1 / 9)), 1)
    np.testing.assert_array_equal(entropy_share(np.ones((2, 1))), 0)


def test_binned_means_are_those_of_scipy():
    rng = np.random.default_rng(4)
    x, y = np.append(rng.random(200) ** 3, [0, 1]), rng.random(202)
    found = binned_means(x, y, 10)
    expected = scipy.stats.binned_statistic(x, y, "mean", bins=10, range=(0, 1))
    np.testing.assert_allclose(found.mean, expected.statistic)
    np.testing.assert_allclose(found.edges, expected.bin_edges)
    assert found.count.sum() == 202
    assert np.isnan(binned_means(np.array([0.95]), np.array([1.0]), 2).mean[0])


def test_scores_of_an_image_are_reduced_to_what_counts():
    truth = make_truth([[0.5, 0.0], [0.1, 0.7]])
    probabilities = np.array([[0.2, 0.7, 0.1], [0.1, 0.0, 0.9]])
    scores = score_image(truth, probabilities)
    np.testing.assert_array_equal(scores.present_probability, [[0.2, 0.1], [0.1, 0.9]])
    np.testing.assert_array_equal(scores.predicted, [1, 2])
    np.testing.assert_array_equal(scores.predicted_score, [0.7, 0.9])
    np.testing.assert_array_equal(scores.predicted_iou, [0, 0.7])  # class 1 is not in the image
    assert scores.max_probability == pytest.approx(0.8)


def test_image_without_proposals_or_classes_has_numbers_for_nothing():
    scores = score_image(make_truth(np.zeros((2, 0))), np.zeros((0, 3)))
    assert scores.cosine is scores.entropy is scores.max_probability is None
    scores = score_image(
        make_truth(np.zeros((0, 2)), present=(), shares=np.zeros((2, 0))), np.eye(3)[:2]
    )
    assert scores.present_probability.shape == (0, 2) and scores.cosine == 0


def test_worst_false_positive_of_each_image_comes_first():
    sure = make_truth([[0.05, 0.9, 0.0], [0.0, 0.0, 0.09]], shares=[[0.3, 0.6], [1, 0], [0, 1]])
    weak = make_truth([[0.0], [0.0]], shares=[[0.9, 0.1]], index=1)
    scores = [
        score_image(sure, np.array([[0.8, 0.1, 0.1], [1.0, 0, 0], [0.3, 0.3, 0.4]])),
        score_image(weak, np.array([[0.1, 0.9, 0]])),
    ]
    first, second = top_false_positives([sure, weak], scores, 5)
    assert (first.example_id, first.predicted, first.majority) == ("photo 1", 1, 0)
    assert (second.example_index, second.proposal, second.majority) == (0, 10, 2)
    assert (second.score, second.iou, second.majority_share) == (0.8, 0.05, 0.6)
    assert top_false_positives([sure, weak], scores, 1) == [first]
    assert confident_false_positives([sure, weak], scores) == pytest.approx(2 / 4)


def test_proposals_on_unlabelled_pixels_are_not_judged():
    truth = make_truth([[0.0, 0.0], [0.0, 0.0]], shares=[[0.2, 0.29], [0.2, 0.31]])
    np.testing.assert_array_equal(is_judged(truth), [False, True])
    scores = score_image(truth, np.array([[1.0, 0, 0], [0.6, 0.4, 0]]))
    assert [one.proposal for one in top_false_positives([truth], [scores], 5)] == [11]
    nothing = make_truth(np.zeros((0, 1)), present=(), shares=np.zeros((1, 0)))
    assert not is_judged(nothing).any()
    assert top_false_positives([nothing], [score_image(nothing, np.eye(1))], 5) == []
    assert confident_false_positives([nothing], [score_image(nothing, np.eye(1))]) is None


def test_nothing_has_no_mean():
    assert mean_of([]) is None and mean_of([0.25, 0.75]) == 0.5
    np.testing.assert_array_equal(joined([np.eye(2), np.array([3])]), [1, 0, 0, 1, 3])
    assert joined([]).dtype == np.float64
