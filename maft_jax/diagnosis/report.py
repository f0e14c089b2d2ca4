"""All numbers of a diagnosis as JSON values, column by column: frozen and tuned, or one CLIP."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from maft_jax.diagnosis.statistics import (
    LOW_IOU,
    MOSTLY,
    FalsePositive,
    ImageScores,
    ImageTruth,
    binned_means,
    confident_false_positives,
    is_judged,
    joined,
    mean_of,
    mean_row_spearman,
    pearson,
    spearman,
    top_false_positives,
)


@dataclasses.dataclass(frozen=True)
class Measurements:
    """What was found out about the images of one data set; lists are in the images' order."""

    dataset: str
    class_names: tuple[str, ...]
    truths: list[ImageTruth]
    scores: dict[str, list[ImageScores]]
    """Of each column, by its title, from left to right."""


def summarise(measured: Measurements, num_false_positives: int) -> dict[str, Any]:
    """Everything that the pictures show, and what they leave out for want of room."""
    truths = measured.truths
    return {
        "dataset": measured.dataset,
        "num_images": len(truths),
        "num_classes": len(measured.class_names),
        "num_proposals": sum(len(truth.proposals) for truth in truths),
        "num_triples": sum(truth.iou.size for truth in truths),
        "columns": {
            title: {
                "score_against_iou": _correlations(truths, scores),
                "classes": _classes(measured, scores),
                "similarity": _similarity(truths, scores),
                "false_positives": _false_positives(measured, scores, num_false_positives),
            }
            for title, scores in measured.scores.items()
        },
    }


def best_known_classes(measured: Measurements, count: int) -> list[int]:
    """The classes that the most images have, most frequent first, then in their order."""
    found = np.bincount(
        joined([truth.present_classes for truth in measured.truths]).astype(int),
        minlength=len(measured.class_names),
    )
    order = np.argsort(-found, kind="stable")[:count]
    return order[found[order] > 0].tolist()


def triples_of_class(
    truths: Sequence[ImageTruth], scores: Sequence[ImageScores], class_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """IoU and score of all proposals in the images that have the class."""
    rows = [
        (truth.iou[row], score.present_probability[row])
        for truth, score in zip(truths, scores, strict=True)
        for row in np.flatnonzero(truth.present_classes == class_id)
    ]
    return joined([iou for iou, _ in rows]), joined([score for _, score in rows])


def _correlations(truths: Sequence[ImageTruth], scores: Sequence[ImageScores]) -> dict[str, Any]:
    iou = joined([truth.iou for truth in truths])
    normalised = joined([truth.normalised_iou for truth in truths])
    score = joined([one.present_probability for one in scores])
    bins = binned_means(iou, score)
    iou_rows = [row for truth in truths for row in truth.iou]
    return {
        "pearson": pearson(iou, score),
        "spearman": spearman(iou, score),
        "mean_row_spearman": mean_row_spearman(
            iou_rows, [row for one in scores for row in one.present_probability]
        ),
        "pearson_with_normalised_iou": pearson(normalised, score),
        "spearman_with_normalised_iou": spearman(normalised, score),
        "bins": {
            "iou_edges": bins.edges.round(6).tolist(),
            "mean_score": [None if np.isnan(mean) else float(mean) for mean in bins.mean],
            "num_triples": bins.count.tolist(),
        },
    }


def _classes(measured: Measurements, scores: Sequence[ImageScores]) -> list[dict[str, Any]]:
    rows = []
    for class_id in best_known_classes(measured, len(measured.class_names)):
        iou, score = triples_of_class(measured.truths, scores, class_id)
        present = [class_id in truth.present_classes for truth in measured.truths]
        rows.append(
            {
                "name": measured.class_names[class_id],
                "num_images": sum(present),
                "num_triples": len(iou),
                "mean_score": mean_of(score),
                "pearson": pearson(iou, score),
                "spearman": spearman(iou, score),
            }
        )
    return rows


def _similarity(truths: Sequence[ImageTruth], scores: Sequence[ImageScores]) -> dict[str, Any]:
    images = [
        {
            "example_id": truth.example_id,
            "cosine": one.cosine,
            "entropy": one.entropy,
            "max_probability": one.max_probability,
        }
        for truth, one in zip(truths, scores, strict=True)
    ]
    means = {
        f"mean_{name}": mean_of([image[name] for image in images if image[name] is not None])
        for name in ("cosine", "entropy", "max_probability")
    }
    return means | {"images": images}


def _false_positives(
    measured: Measurements, scores: Sequence[ImageScores], count: int
) -> dict[str, Any]:
    truths = measured.truths
    judged = [is_judged(truth) for truth in truths]
    low = [one.predicted_iou[kept] < LOW_IOU for one, kept in zip(scores, judged, strict=True)]
    return {
        "iou_below": LOW_IOU,
        "judged_if_labelled_share_is_at_least": MOSTLY,
        "confident_if_score_is_at_least": MOSTLY,
        "num_judged": int(sum(kept.sum() for kept in judged)),
        "share_of_judged": mean_of(joined(low)),
        "share_of_judged_and_confident": confident_false_positives(truths, scores),
        "top": [
            describe_false_positive(one, measured.class_names)
            for one in top_false_positives(truths, scores, count)
        ],
    }


def describe_false_positive(one: FalsePositive, class_names: Sequence[str]) -> dict[str, Any]:
    """Its fields, with classes by name."""
    return {
        "example_id": one.example_id,
        "proposal": one.proposal,
        "predicted": class_names[one.predicted],
        "score": one.score,
        "iou": one.iou,
        "majority": class_names[one.majority],
        "majority_share": one.majority_share,
    }
