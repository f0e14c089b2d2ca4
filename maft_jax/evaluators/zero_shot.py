"""Metrics of zero-shot segmentation: classes that were trained on, and those that were not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from maft_jax.evaluators.semantic import SemanticMetrics, mean_ious


@dataclass(frozen=True)
class ZeroShotMetrics:
    """Fractions; nan where no class of the group has ground truth.

    Papers give the numbers without a suffix, whose mIoU is gt_or_pred.
    """

    seen_miou: float
    unseen_miou: float
    hiou: float
    seen_miou_gt_only: float
    unseen_miou_gt_only: float
    hiou_gt_only: float


def zero_shot_metrics(metrics: SemanticMetrics, unseen: Sequence[int]) -> ZeroShotMetrics:
    """mIoU of seen and of unseen classes, whose ids are `unseen`, and their harmonic mean.

    Raises:
        ValueError: an id that is no class, or twice.
    """
    is_unseen = unseen_mask(unseen, len(metrics.iou))
    seen, seen_gt_only = mean_ious(metrics, ~is_unseen)
    new, new_gt_only = mean_ious(metrics, is_unseen)
    return ZeroShotMetrics(
        seen_miou=seen,
        unseen_miou=new,
        hiou=harmonic_mean(seen, new),
        seen_miou_gt_only=seen_gt_only,
        unseen_miou_gt_only=new_gt_only,
        hiou_gt_only=harmonic_mean(seen_gt_only, new_gt_only),
    )


def unseen_mask(unseen: Sequence[int], num_classes: int) -> Bool[np.ndarray, " c"]:
    """Which of the classes are unseen.

    Raises:
        ValueError: an id that is no class, or twice.
    """
    mask = np.zeros(num_classes, bool)
    for class_id in unseen:
        if isinstance(class_id, bool) or not 0 <= class_id < num_classes or mask[class_id]:
            raise ValueError(
                f"unseen classes: expected different class ids of 0 .. {num_classes - 1}, got "
                f"{class_id!r} in {list(unseen)}"
            )
        mask[class_id] = True
    return mask


def harmonic_mean(seen: float, unseen: float) -> float:
    """2 / (1 / seen + 1 / unseen); 0 if one of them is 0, nan if one is undefined."""
    if np.isnan(seen) or np.isnan(unseen):
        return float("nan")
    return 2 / (1 / seen + 1 / unseen) if seen > 0 and unseen > 0 else 0.0
