"""Panoptic quality by the rules of COCO's panopticapi, from counts that add up exactly.

A predicted segment and a true one of its class match if their IoU exceeds 1/2; pixels of the
prediction that are void in the truth count in neither. Crowds match nothing and are not missed. A
prediction without a match counts as wrong unless more than half of it is void or, of the same
class, crowd. Of a class: PQ = sum of IoUs / (TP + FP / 2 + FN / 2) = SQ * RQ, and SQ is the mean
IoU of matches.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from maft_jax.evaluators.zero_shot import unseen_mask
from maft_jax.inference.segments import VOID, Segment

IOU_UNITS = 2**40
"""IoUs are added as whole numbers of these parts, whose sums no order of images changes."""

PanopticCounts = Int64[np.ndarray, "c 4"]
"""By class: true positives, false positives, false negatives, sum of IoUs in IOU_UNITS."""


@dataclass(frozen=True, eq=False)
class LabelledSegments:
    """The segments of one image.

    Raises:
        ValueError: the map has other ids than the segments, but for void, or one comes twice.
    """

    id_map: Int[np.ndarray, "h w"]
    """VOID where there is no segment."""
    ids: Sequence[int]
    classes: Sequence[int]
    """Class ids from 0."""
    crowds: Sequence[bool] | None = None
    """Which segments are groups of objects; None: none is."""

    @classmethod
    def of(cls, id_map: Int[np.ndarray, "h w"], segments: Sequence[Segment]) -> "LabelledSegments":
        """Those of a panoptic result."""
        ids = [segment.id for segment in segments]
        return cls(id_map, ids, [segment.class_index for segment in segments])

    def __post_init__(self):
        there = set(np.unique(self.id_map).tolist()) - {VOID}
        if len(set(self.ids)) < len(self.ids) or VOID in self.ids:
            raise ValueError(f"expected ids other than {VOID} that are unique, got {self.ids}")
        if there != set(self.ids):
            without_pixels, unknown = set(self.ids) - there, there - set(self.ids)
            raise ValueError(
                f"expected a map of the segments {sorted(self.ids)}, without pixels are "
                f"{sorted(without_pixels)}, without a segment {sorted(unknown)}"
            )


def count_segments(
    predicted: LabelledSegments, truth: LabelledSegments, num_classes: int
) -> PanopticCounts:
    """The counts of one image.

    Raises:
        ValueError: maps of different sizes.
    """
    if predicted.id_map.shape != truth.id_map.shape:
        raise ValueError(
            f"expected segments of one size, predicted are {predicted.id_map.shape}, true "
            f"{truth.id_map.shape}"
        )
    counts = np.zeros((num_classes, 4), np.int64)
    common = _common_pixels(predicted, truth)
    no_crowd = np.zeros(len(truth.ids), bool)
    crowds = no_crowd if truth.crowds is None else np.array(truth.crowds, bool)
    true_areas, areas, void = common.sum(axis=0)[1:], common.sum(axis=1)[1:], common[1:, 0]
    matched, missed = np.zeros(len(areas), bool), ~crowds
    for row, column in np.argwhere(common[1:, 1:]):
        index, inside = predicted.classes[row], int(common[row + 1, column + 1])
        if crowds[column] or index != truth.classes[column]:
            continue
        iou = inside / int(areas[row] + true_areas[column] - inside - void[row])
        if iou > 0.5:
            counts[index] += (1, 0, 0, round(iou * IOU_UNITS))
            matched[row], missed[column] = True, False
    for column in np.flatnonzero(missed):
        counts[truth.classes[column], 2] += 1
    crowd_of_class = {truth.classes[column]: column + 1 for column in np.flatnonzero(crowds)}
    for row in np.flatnonzero(~matched):
        index, unjudged = predicted.classes[row], int(void[row])
        if index in crowd_of_class:  # of several of a class the last, as in panopticapi
            unjudged += int(common[row + 1, crowd_of_class[index]])
        if unjudged / int(areas[row]) <= 0.5:
            counts[index, 1] += 1
    return counts


def _common_pixels(predicted, truth) -> Int64[np.ndarray, "p1 t1"]:
    """By predicted and true segment in their order, after void."""
    numbers = []
    for segments in (predicted, truth):
        ids, places = np.unique(segments.id_map, return_inverse=True)
        order = {VOID: 0} | {number: i for i, number in enumerate(segments.ids, start=1)}
        numbers.append(np.array([order[number] for number in ids.tolist()])[places.ravel()])
    width = len(truth.ids) + 1
    pairs = np.bincount(numbers[0] * width + numbers[1], minlength=(len(predicted.ids) + 1) * width)
    return pairs.reshape(-1, width)


class PanopticTotal:
    """The counts of all images so far."""

    def __init__(self, num_classes: int):
        self.counts: PanopticCounts = np.zeros((num_classes, 4), np.int64)

    def add(self, counts: PanopticCounts) -> None:
        """Adds those of some images.

        Raises:
            ValueError: they are of another number of classes, or no counts.
        """
        self.counts = self.counts + checked_panoptic_counts(counts, len(self.counts), "add")

    def merge(self, other: "PanopticTotal") -> None:
        """Adds those of other images."""
        self.add(other.counts)

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` takes; arrays, to be saved with numpy."""
        return {"segments": self.counts}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], num_classes: int) -> "PanopticTotal":
        """Takes up where `state` was taken.

        Raises:
            ValueError: the state is of another number of classes.
        """
        total = cls(num_classes)
        total.add(state["segments"])
        return total


def checked_panoptic_counts(counts: np.ndarray, num_classes: int, where: str) -> PanopticCounts:
    """The counts.

    Raises:
        ValueError: another shape, or none that segments can have; begins with `where`.
    """
    counts = np.asarray(counts)
    if counts.shape != (num_classes, 4) or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"{where}: expected integer counts of segments, shape {(num_classes, 4)}, got "
            f"{counts.dtype} {counts.shape}; was it counted with another class list?"
        )
    matches, iou_sums = counts[:, 0], counts[:, 3] / IOU_UNITS
    if (counts < 0).any() or (iou_sums > matches).any() or (iou_sums < matches / 2).any():
        raise ValueError(f"{where}: expected IoUs from 1/2 to 1 of every match, got {counts}")
    return counts


@dataclass(frozen=True)
class PanopticQuality:
    """Means over classes with any segment, true or predicted; fractions, nan where none has."""

    pq: float
    sq: float
    rq: float
    num_classes: int


@dataclass(frozen=True, eq=False)
class PanopticMetrics:
    """Of all classes, of parts of them, and of each."""

    every: PanopticQuality
    things: PanopticQuality
    stuff: PanopticQuality
    seen: PanopticQuality
    """Of a data set without a zero-shot split, as of one without seen classes: nan."""
    unseen: PanopticQuality
    class_pq: Float64[np.ndarray, " c"]
    class_sq: Float64[np.ndarray, " c"]
    class_rq: Float64[np.ndarray, " c"]
    """Those of each class; nan where it has no segment."""


def panoptic_metrics(
    counts: PanopticCounts, things: Iterable[int], unseen: Sequence[int] = ()
) -> PanopticMetrics:
    """All numbers of these counts; `things` and `unseen` are class ids.

    Raises:
        ValueError: an id that is no class, or counts that are none.
    """
    num_classes = len(counts)
    counts = checked_panoptic_counts(counts, num_classes, "panoptic_metrics")
    matches, wrong, missed, iou_sums = counts.astype(np.float64).T
    iou_sums = iou_sums / IOU_UNITS
    segments = matches + wrong / 2 + missed / 2
    there = segments > 0
    pq, rq = (_ratio(part, segments, there) for part in (iou_sums, matches))
    sq = np.where(there, _ratio(iou_sums, matches, matches > 0, otherwise=0.0), np.nan)
    is_thing, is_unseen = (unseen_mask(sorted(ids), num_classes) for ids in (things, unseen))
    split = np.full(num_classes, bool(len(unseen)))

    def mean(chosen: Bool[np.ndarray, " c"]) -> PanopticQuality:
        chosen = chosen & there
        if not chosen.any():
            return PanopticQuality(float("nan"), float("nan"), float("nan"), 0)
        means = (float(of_class[chosen].mean()) for of_class in (pq, sq, rq))
        return PanopticQuality(*means, int(chosen.sum()))

    return PanopticMetrics(
        mean(there),
        mean(is_thing),
        mean(~is_thing),
        mean(~is_unseen & split),
        mean(is_unseen),
        pq,
        sq,
        rq,
    )


def _ratio(part, whole, there, otherwise=np.nan) -> Float64[np.ndarray, " c"]:
    return np.divide(part, whole, out=np.full(len(part), otherwise), where=there)
