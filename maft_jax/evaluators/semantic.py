"""Metrics of semantic segmentation, from exact counts, in float64.

IoU of a class = intersection / (labelled + predicted - intersection), over labelled pixels alone.
Two mean IoUs are in use, which agree where every predicted class also has ground truth:

gt_or_pred  sum of IoUs / number of classes with ground truth or predicted pixels; the papers' one
gt_only     sum of IoUs / number of classes with ground truth
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64


@dataclass(frozen=True, eq=False)
class SemanticMetrics:
    """Fractions; nan where there is nothing to measure. Pixels without a label count nowhere."""

    iou: Float64[np.ndarray, " c"]
    """nan for classes without ground truth."""
    accuracy: Float64[np.ndarray, " c"]
    """Share of a class's pixels that are predicted as such; nan without ground truth."""
    ground_truth_pixels: Int64[np.ndarray, " c"]
    predicted_pixels: Int64[np.ndarray, " c"]
    """Of labelled pixels."""
    correct_pixels: Int64[np.ndarray, " c"]
    miou_gt_or_pred: float
    miou_gt_only: float
    fwiou: float
    """Mean of the IoUs, weighted with the classes' pixels."""
    macc: float
    """Mean of the accuracies of classes with ground truth."""
    pacc: float
    """Share of labelled pixels that are predicted right."""


def semantic_metrics(confusion: Int64[np.ndarray, "c1 c1"]) -> SemanticMetrics:
    """Metrics of counts by predicted class (row) and label (column), IGNORE last.

    A labelled pixel without a prediction (last row) is an error of its class; a prediction on a
    pixel without a label (last column) counts nowhere.
    """
    labelled = confusion[:, :-1]
    truth = labelled.sum(axis=0)
    predicted = labelled[:-1].sum(axis=1)
    correct = np.diagonal(labelled).copy()
    present = truth > 0
    iou = _ratio(correct, np.where(present, truth + predicted - correct, 0))
    accuracy = _ratio(correct, truth)
    total = int(truth.sum())
    return SemanticMetrics(
        iou=iou,
        accuracy=accuracy,
        ground_truth_pixels=truth,
        predicted_pixels=predicted,
        correct_pixels=correct,
        miou_gt_or_pred=_mean(iou, present, int((present | (predicted > 0)).sum())),
        miou_gt_only=_mean(iou, present, int(present.sum())),
        fwiou=_mean(iou * truth, present, total),
        macc=_mean(accuracy, present, int(present.sum())),
        pacc=_mean(correct, present, total),
    )


def mean_ious(metrics: SemanticMetrics, classes: Bool[np.ndarray, " c"]) -> tuple[float, float]:
    """mIoU of some of the classes, gt_or_pred and gt_only; nan if none has ground truth."""
    present = classes & (metrics.ground_truth_pixels > 0)
    occurring = present | (classes & (metrics.predicted_pixels > 0))
    return (
        _mean(metrics.iou, present, int(occurring.sum())),
        _mean(metrics.iou, present, int(present.sum())),
    )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Float64[np.ndarray, " c"]:
    undefined = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def _mean(values: np.ndarray, chosen: Bool[np.ndarray, " c"], number: int) -> float:
    return float(values[chosen].sum() / number) if chosen.any() else float("nan")
