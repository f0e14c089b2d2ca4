"""Numbers of the diagnosis, with numpy: correlations, similarity of scores, false positives.

What is undefined (a correlation with constant scores, the similarity of a single proposal) is
None here and null in JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

LOW_IOU = 0.1
"""A proposal whose IoU with the class that it is given is below this is a false positive."""
MOSTLY = 0.5
"""Share of a mask that must be labelled before the mask is judged; a confident score."""


@dataclass(frozen=True)
class ImageTruth:
    """What one image's label map says about its proposals, whatever the weights."""

    example_index: int
    example_id: str
    proposals: Int[np.ndarray, " n"]
    """Index of each in the example, that is rank of the generator's score, from 0."""
    present_classes: Int[np.ndarray, " g"]
    iou: Float[np.ndarray, "g n"]
    """Soft IoU of every proposal with every present class."""
    normalised_iou: Float[np.ndarray, "g n"]
    """The target of training: IoU from 0 to 1 within each row."""
    shares: Float[np.ndarray, "n g"]
    """How much of each proposal every present class covers."""


@dataclass(frozen=True)
class ImageScores:
    """What some weights say about one image's proposals."""

    present_probability: Float[np.ndarray, "g n"]
    """Probability of every present class."""
    predicted: Int[np.ndarray, " n"]
    """Class with the highest probability."""
    predicted_score: Float[np.ndarray, " n"]
    predicted_iou: Float[np.ndarray, " n"]
    """IoU with the predicted class, 0 if the image has none of it."""
    cosine: float | None
    """Mean cosine similarity of the probability vectors of two proposals."""
    entropy: float | None
    """Mean entropy of a proposal's probabilities, as a share of the largest possible."""
    max_probability: float | None
    """Mean of the largest probability of each proposal."""


@dataclass(frozen=True)
class BinnedMeans:
    """Mean of y in equal bins of x between 0 and 1; nan where a bin is empty."""

    edges: Float[np.ndarray, " e"]
    mean: Float[np.ndarray, " k"]
    count: Int[np.ndarray, " k"]


@dataclass(frozen=True)
class FalsePositive:
    """A proposal with a high score for a class that it hardly overlaps."""

    example_index: int
    example_id: str
    proposal: int
    """Index in the example."""
    predicted: int
    score: float
    iou: float
    majority: int
    """The class that covers most of the proposal."""
    majority_share: float


def score_image(truth: ImageTruth, probabilities: Float[np.ndarray, "n c"]) -> ImageScores:
    """Reduces the class probabilities of an image's proposals to what the diagnosis needs."""
    probabilities = probabilities.astype(np.float64)
    predicted = probabilities.argmax(axis=1)
    indices = np.arange(len(probabilities))
    largest = probabilities[indices, predicted]
    iou_of = np.zeros((probabilities.shape[1], len(probabilities)))
    iou_of[truth.present_classes] = truth.iou
    return ImageScores(
        present_probability=probabilities[:, truth.present_classes].T,
        predicted=predicted,
        predicted_score=largest,
        predicted_iou=iou_of[predicted, indices],
        cosine=mean_pairwise_cosine(probabilities),
        entropy=mean_of(entropy_share(probabilities)),
        max_probability=mean_of(largest),
    )


def pearson(x: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"]) -> float | None:
    """Linear correlation; None where x or y is constant or has fewer than two values."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (x, y))
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def spearman(x: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"]) -> float | None:
    """Correlation of ranks, equal values sharing their mean rank; None as for `pearson`."""
    return pearson(rankdata(x), rankdata(y))


def mean_row_spearman(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> float | None:
    """Mean over rows of their own `spearman`, rows without one left out.

    A row is one class in one image: do its best proposals come first, whatever other rows do?
    """
    found = [spearman(*row) for row in zip(x, y, strict=True)]
    return mean_of([value for value in found if value is not None])


def mean_pairwise_cosine(vectors: Float[np.ndarray, "n c"]) -> float | None:
    """Mean cosine similarity over all pairs of different rows; None with fewer than two."""
    count = len(vectors)
    if count < 2:
        return None
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float((np.square(unit.sum(0)).sum() - np.square(unit).sum()) / (count * (count - 1)))


def entropy_share(probabilities: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """Entropy of each row over log(c): 0 = certain of one class, 1 = all classes alike.

    Rows are scaled to add up to 1, which an ensemble's do not.
    """
    num_classes = probabilities.shape[1]
    if num_classes == 1:
        return np.zeros(len(probabilities))
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return -(probabilities * logs).sum(axis=1) / np.log(num_classes)


def binned_means(
    x: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"], num_bins: int = 20
) -> BinnedMeans:
    """Mean y for x in [0, 1/num_bins), ..., the last bin with its upper end."""
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.floor(x * num_bins).astype(int), 0, num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    sums = np.bincount(bins, weights=y, minlength=num_bins)
    mean = np.divide(sums, count, out=np.full(num_bins, np.nan), where=count > 0)
    return BinnedMeans(edges, mean, count)


def is_judged(truth: ImageTruth) -> Bool[np.ndarray, " n"]:
    """Which proposals lie mostly on labelled pixels; of others nobody knows what they show."""
    return truth.shares.sum(axis=1) >= MOSTLY


def top_false_positives(
    truths: Sequence[ImageTruth], scores: Sequence[ImageScores], count: int
) -> list[FalsePositive]:
    """Judged proposals of IoU below LOW_IOU, highest score first, one from each image."""
    found = []
    for truth, score in zip(truths, scores, strict=True):
        wrong = np.flatnonzero(is_judged(truth) & (score.predicted_iou < LOW_IOU))
        if not len(wrong):
            continue
        worst = wrong[np.argmax(score.predicted_score[wrong])]
        majority = truth.shares[worst].argmax()
        found.append(
            FalsePositive(
                example_index=truth.example_index,
                example_id=truth.example_id,
                proposal=int(truth.proposals[worst]),
                predicted=int(score.predicted[worst]),
                score=float(score.predicted_score[worst]),
                iou=float(score.predicted_iou[worst]),
                majority=int(truth.present_classes[majority]),
                majority_share=float(truth.shares[worst, majority]),
            )
        )
    return sorted(found, key=lambda one: (-one.score, one.example_index))[:count]


def confident_false_positives(
    truths: Sequence[ImageTruth], scores: Sequence[ImageScores]
) -> float | None:
    """Share of the judged proposals with a score of at least MOSTLY and an IoU below LOW_IOU."""
    return mean_of(
        joined(
            [
                ((score.predicted_iou < LOW_IOU) & (score.predicted_score >= MOSTLY))[
                    is_judged(truth)
                ]
                for truth, score in zip(truths, scores, strict=True)
            ]
        )
    )


def joined(rows: Sequence[np.ndarray]) -> Float[np.ndarray, " k"]:
    """All values of all rows, one after the other, as float64."""
    return np.concatenate([np.zeros(0), *(np.ravel(row) for row in rows)])


def mean_of(values: Sequence[float] | np.ndarray) -> float | None:
    """The mean, None of nothing."""
    return float(np.mean(values)) if len(values) else None
