"""Metrics against the official numbers, torchmetrics and scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics
from PIL import Image

from input_pipeline.examples import IGNORE
from input_pipeline.folder_source import FolderSource
from maft_jax.evaluators.semantic import semantic_metrics
from maft_jax.evaluators.zero_shot import harmonic_mean, zero_shot_metrics
from tests.evaluators.label_maps import confusion_of, golden_maps, random_maps
from tests.golden_files import golden


def assert_exact(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=0)


def assert_single_precision(actual, expected):
    """torchmetrics divides in float32."""
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=0)


def test_golden_metrics():
    predicted, labels, _ = golden_maps()
    metrics = semantic_metrics(confusion_of(predicted, labels, 8))
    arrays = golden("pipeline_ops")
    assert_exact(metrics.iou, arrays["eval_iou"])
    assert_exact(100 * metrics.miou_gt_only, arrays["eval_mIoU_gt_only"])
    assert_exact(100 * metrics.miou_gt_or_pred, arrays["eval_mIoU_gt_or_pred"])
    assert_exact(100 * metrics.fwiou, arrays["eval_fwIoU"])
    assert_exact(100 * metrics.macc, arrays["eval_mACC"])
    assert_exact(100 * metrics.pacc, arrays["eval_pACC"])


def test_golden_zero_shot_metrics():
    predicted, labels, _ = golden_maps()
    arrays = golden("pipeline_ops")
    unseen = np.flatnonzero(arrays["seen"] == 0).tolist()
    result = zero_shot_metrics(semantic_metrics(confusion_of(predicted, labels, 8)), unseen)
    assert_exact(100 * result.seen_miou, arrays["eval_seen_mIoU"])
    assert_exact(100 * result.unseen_miou, arrays["eval_unseen_mIoU"])
    assert_exact(100 * result.hiou, arrays["eval_hIoU"])


def assert_agrees_with_sklearn(metrics, predicted, labels):
    labelled = labels != IGNORE
    truth, guess = labels[labelled], predicted[labelled]
    present, occurring = np.unique(truth), np.unique([truth, guess])
    present_probability = {"labels": present, "zero_division": 0}

    ious = sklearn.metrics.jaccard_score(truth, guess, average=None, **present_probability)
    assert_exact(metrics.iou[present], ious)
    assert np.isnan(np.delete(metrics.iou, present)).all()
    gt_only = sklearn.metrics.jaccard_score(truth, guess, average="macro", **present_probability)
    assert_exact(metrics.miou_gt_only, gt_only)
    gt_or_pred = sklearn.metrics.jaccard_score(
        truth, guess, average="macro", labels=occurring, zero_division=0
    )
    assert_exact(metrics.miou_gt_or_pred, gt_or_pred)
    assert_exact(
        metrics.fwiou,
        sklearn.metrics.jaccard_score(truth, guess, average="weighted", **present_probability),
    )
    recalls = sklearn.metrics.recall_score(truth, guess, average=None, **present_probability)
    assert_exact(metrics.accuracy[present], recalls)
    assert_exact(metrics.macc, recalls.mean())
    assert_exact(metrics.pacc, sklearn.metrics.accuracy_score(truth, guess))


def assert_agrees_with_torchmetrics(metrics, predicted, labels):
    """Its macro average leaves out classes that neither occur nor are predicted: gt_or_pred."""
    pair = torch.from_numpy(predicted), torch.from_numpy(labels)
    options = {"num_classes": len(metrics.iou), "ignore_index": IGNORE}
    jaccard = torchmetrics.classification.MulticlassJaccardIndex
    assert_single_precision(metrics.miou_gt_or_pred, jaccard(average="macro", **options)(*pair))
    assert_single_precision(metrics.fwiou, jaccard(average="weighted", **options)(*pair))
    ious = jaccard(average="none", **options)(*pair)
    assert_single_precision(np.nan_to_num(metrics.iou), ious)
    accuracy = torchmetrics.classification.MulticlassAccuracy
    assert_single_precision(metrics.pacc, accuracy(average="micro", **options)(*pair))
    per_class = accuracy(average="none", **options)(*pair)
    assert_single_precision(np.nan_to_num(metrics.accuracy), per_class)


@pytest.mark.parametrize("num_classes", [4, 20, 171, 847])
def test_random_maps_with_absent_predicted_only_and_ignored_classes(num_classes):
    predicted, labels = random_maps(num_classes, seed=num_classes)
    metrics = semantic_metrics(confusion_of(predicted, labels, num_classes))
    assert metrics.miou_gt_or_pred < metrics.miou_gt_only
    assert_agrees_with_sklearn(metrics, predicted, labels)
    assert_agrees_with_torchmetrics(metrics, predicted, labels)


def test_label_maps_of_16_bits_through_the_reader(tmp_path):
    rng = np.random.default_rng(0)
    values = np.array([300, 7, 60000, 65535], np.uint16)
    stored = values[rng.integers(0, 4, (3, 20, 30))]
    (tmp_path / "classes.txt").write_text("60000\ttree\n7\tsky\n300\tlake\n")
    for name in ("images", "annotations"):
        (tmp_path / name).mkdir()
    for i, label_map in enumerate(stored):
        Image.new("RGB", (30, 20)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(label_map).save(tmp_path / "annotations" / f"{i}.png")
    source = FolderSource(tmp_path, ignore_labels=(65535,))
    labels = np.stack([source[i].label_map for i in range(3)])
    predicted = rng.integers(0, 3, labels.shape).astype(np.int32)

    confusion = confusion_of(predicted, labels, 3)

    counts = [(stored == value).sum() for value in (60000, 7, 300, 65535)]
    np.testing.assert_array_equal(confusion.sum(axis=0), counts)
    metrics = semantic_metrics(confusion)
    assert_agrees_with_sklearn(metrics, predicted, labels)
    assert_agrees_with_torchmetrics(metrics, predicted, labels)


def test_single_class():
    labels = np.array([[[0, 0], [0, IGNORE]]])
    metrics = semantic_metrics(confusion_of(np.zeros_like(labels), labels, 1))
    assert metrics.iou.tolist() == metrics.accuracy.tolist() == [1]
    averages = (metrics.miou_gt_or_pred, metrics.miou_gt_only, metrics.fwiou, metrics.macc)
    assert (*averages, metrics.pacc) == (1,) * 5


def test_nothing_labelled_gives_nan_without_a_warning():
    labels = np.full((1, 4, 4), IGNORE)
    metrics = semantic_metrics(confusion_of(np.zeros_like(labels), labels, 3))
    zero_shot = zero_shot_metrics(metrics, [1])
    averages = [metrics.miou_gt_or_pred, metrics.miou_gt_only, metrics.fwiou, metrics.macc]
    groups = [zero_shot.seen_miou, zero_shot.unseen_miou, zero_shot.hiou, zero_shot.hiou_gt_only]
    assert np.isnan([*metrics.iou, *metrics.accuracy, *averages, metrics.pacc, *groups]).all()


def test_prediction_on_unlabelled_pixels_counts_nowhere():
    labels = np.array([[[0, 1], [IGNORE, IGNORE]]])
    right, wrong = np.array([[[0, 1], [0, 1]]]), np.array([[[0, 1], [2, 2]]])
    for predicted in (right, wrong):
        metrics = semantic_metrics(confusion_of(predicted, labels, 3))
        assert metrics.miou_gt_or_pred == metrics.miou_gt_only == metrics.pacc == 1


def test_labelled_pixel_without_prediction_is_an_error_of_its_class():
    labels = np.array([[[0, 0, 1, 1]]])
    predicted = np.array([[[0, IGNORE, 1, 1]]])
    metrics = semantic_metrics(confusion_of(predicted, labels, 2))
    assert metrics.iou.tolist() == metrics.accuracy.tolist() == [0.5, 1]
    assert (metrics.miou_gt_or_pred, metrics.pacc, metrics.fwiou) == (0.75, 0.75, 0.75)


def test_groups_of_classes_by_hand_in_both_conventions():
    """Seen 0 and 1 (predicted only), unseen 2 and 3 (absent)."""
    labels = np.array([[[0, 0, 2, 2]]])
    predicted = np.array([[[0, 1, 2, 0]]])
    result = zero_shot_metrics(semantic_metrics(confusion_of(predicted, labels, 4)), [2, 3])
    assert (result.seen_miou, result.seen_miou_gt_only) == (1 / 3 / 2, 1 / 3)
    assert (result.unseen_miou, result.unseen_miou_gt_only) == (0.5, 0.5)
    assert result.hiou == pytest.approx(0.25, rel=1e-15)
    assert result.hiou_gt_only == pytest.approx(0.4, rel=1e-15)


def test_group_that_is_only_predicted_is_undefined():
    labels, predicted = np.array([[[0, 0]]]), np.array([[[0, 1]]])
    result = zero_shot_metrics(semantic_metrics(confusion_of(predicted, labels, 2)), [1])
    assert result.seen_miou == 0.5
    assert np.isnan([result.unseen_miou, result.hiou, result.unseen_miou_gt_only]).all()


def test_harmonic_mean_of_zero_and_of_nothing():
    assert harmonic_mean(0.6, 0.3) == pytest.approx(0.4, rel=1e-15)
    assert harmonic_mean(0.0, 0.5) == harmonic_mean(0.5, 0.0) == harmonic_mean(0.0, 0.0) == 0
    assert np.isnan([harmonic_mean(np.nan, 0.0), harmonic_mean(0.0, np.nan)]).all()


@pytest.mark.parametrize("unseen", [[3], [-1], [1, 1], [False, True, False]])
def test_unseen_that_are_not_ids_of_classes_are_refused(unseen):
    metrics = semantic_metrics(np.eye(4, dtype=np.int64))
    with pytest.raises(ValueError, match=r"different class ids of 0 \.\. 2"):
        zero_shot_metrics(metrics, unseen)
