"""Average precision and recall of instance masks, by the rules of COCO's evaluation.

Every image leaves, of each class, its predictions in the order of their scores, with what each
matches at each threshold of IoU and range of sizes; all numbers follow from these lists, which add
up over images in any order.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from input_pipeline.run_lengths import common_pixels, mask_runs

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""Pixels of objects and predictions, both ends included."""
MAX_PREDICTIONS = (1, 10, 100)
"""Of a class in an image."""

_NUM_AREAS, _NUM_THRESHOLDS = len(AREAS), len(IOU_THRESHOLDS)


@dataclass(frozen=True)
class PredictedInstance:
    """An object that was found."""

    class_index: int
    score: float
    run_lengths: Mapping
    """COCO's {"size", "counts"}."""


@dataclass(frozen=True)
class TrueInstance:
    """An object that is there, or a group of objects."""

    class_index: int
    run_lengths: Mapping
    """COCO's {"size", "counts"}."""
    area: float
    """Which COCO's files tell of the polygons."""
    is_crowd: bool = False


@dataclass(frozen=True, eq=False)
class InstanceMatches:
    """What the predictions of some images match."""

    image: Int64[np.ndarray, " p"]
    class_index: Int64[np.ndarray, " p"]
    rank: Int64[np.ndarray, " p"]
    """Among the predictions of a class in an image, from 0."""
    score: Float64[np.ndarray, " p"]
    matched: UInt64[np.ndarray, " p"]
    """A bit for each threshold and size: threshold + 10 * size."""
    ignored: UInt64[np.ndarray, " p"]
    """The same: neither right nor wrong."""
    num_objects: Int64[np.ndarray, "c sizes"]
    """Of each class and size, without crowds."""

    @classmethod
    def nothing(cls, num_classes: int) -> "InstanceMatches":
        """Of no image."""
        numbers = (np.zeros(0, np.int64) for _ in range(3))
        bits = (np.zeros(0, np.uint64) for _ in range(2))
        counts = np.zeros((num_classes, _NUM_AREAS), np.int64)
        return cls(*numbers, np.zeros(0), *bits, counts)

    def __add__(self, other: "InstanceMatches") -> "InstanceMatches":
        """Of these images and of others."""
        return joined_matches([self, other])


class InstanceTotal:
    """What the predictions of all images so far match."""

    def __init__(self, num_classes: int):
        self._parts = [InstanceMatches.nothing(num_classes)]

    @property
    def matches(self) -> InstanceMatches:
        """All of them."""
        if len(self._parts) > 1:
            self._parts = [joined_matches(self._parts)]
        return self._parts[0]

    def add(self, matches: InstanceMatches) -> None:
        """Adds those of some images."""
        self._parts.append(matches)

    def merge(self, other: "InstanceTotal") -> None:
        """Adds those of other images."""
        self.add(other.matches)

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` takes; arrays, to be saved with numpy."""
        return dict(vars(self.matches))

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], num_classes: int) -> "InstanceTotal":
        """Takes up where `state` was taken.

        Raises:
            ValueError: the state is of another number of classes.
        """
        names = [field.name for field in dataclasses.fields(InstanceMatches)]
        matches = InstanceMatches(**{name: np.asarray(state[name]) for name in names})
        if len(matches.num_objects) != num_classes:
            raise ValueError(
                f"InstanceTotal.from_state: expected {num_classes} classes, got "
                f"{len(matches.num_objects)}; was it counted with another class list?"
            )
        total = cls(num_classes)
        total.add(matches)
        return total


def joined_matches(parts: Sequence[InstanceMatches]) -> InstanceMatches:
    """Those of all parts, of which there is one at least."""
    fields = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
    objects = np.sum(fields.pop("num_objects"), axis=0)
    joined = {name: np.concatenate(arrays) for name, arrays in fields.items()}
    return InstanceMatches(**joined, num_objects=objects)


def match_instances(
    image: int,
    predicted: Iterable[PredictedInstance],
    truth: Iterable[TrueInstance],
    num_classes: int,
) -> InstanceMatches:
    """Of one image, whose number decides the order among equal scores.

    Raises:
        ValueError: masks of different sizes.
    """
    predicted, truth = list(predicted), list(truth)
    sizes = {tuple(one.run_lengths["size"]) for one in (*predicted, *truth)}
    if len(sizes) > 1:
        raise ValueError(f"expected masks of one size, got {sorted(sizes)}")
    parts = [InstanceMatches.nothing(num_classes)]
    for index in sorted({one.class_index for one in (*predicted, *truth)}):
        predictions = [one for one in predicted if one.class_index == index]
        predictions.sort(key=lambda one: -one.score)
        objects = [one for one in truth if one.class_index == index]
        best = predictions[: MAX_PREDICTIONS[-1]]
        parts.append(_match_class(image, index, best, objects, num_classes))
    return joined_matches(parts)


def _match_class(image, index, predictions, objects, num_classes) -> InstanceMatches:
    runs = [mask_runs(one.run_lengths) for one in predictions]
    pixels = np.array([run[1::2].sum() for run in runs], np.int64)
    ious = _ious(runs, pixels, objects)
    crowds = np.array([one.is_crowd for one in objects], bool)
    areas = np.array([one.area for one in objects], float)
    num_objects = np.zeros((num_classes, _NUM_AREAS), np.int64)
    matched, ignored = np.zeros((2, len(predictions)), np.uint64)
    for size, (least, most) in enumerate(AREAS.values()):
        unjudged = crowds | (areas < least) | (areas > most)
        num_objects[index, size] = (~unjudged).sum()
        outside = (pixels < least) | (pixels > most)
        for number, threshold in enumerate(IOU_THRESHOLDS):
            chosen = _match(ious, threshold, unjudged, crowds)
            bit = np.uint64(1) << np.uint64(number + _NUM_THRESHOLDS * size)
            has = chosen >= 0
            ignore = np.where(has, unjudged[chosen] if len(objects) else False, outside)
            matched[has] |= bit
            ignored[ignore] |= bit
    count = len(predictions)
    return InstanceMatches(
        np.full(count, image, np.int64),
        np.full(count, index, np.int64),
        np.arange(count),
        np.array([one.score for one in predictions], float),
        matched,
        ignored,
        num_objects,
    )


def _ious(runs, pixels, objects) -> Float64[np.ndarray, "p g"]:
    """Of a crowd the share of the prediction that lies in it."""
    ious = np.zeros((len(runs), len(objects)))
    for column, one in enumerate(objects):
        true_runs = mask_runs(one.run_lengths)
        true_pixels = int(true_runs[1::2].sum())
        for row, predicted_runs in enumerate(runs):
            common = common_pixels(true_runs, predicted_runs)
            union = int(pixels[row]) + (0 if one.is_crowd else true_pixels - common)
            ious[row, column] = common / union if common else 0.0
    return ious


def _match(
    ious: Float64[np.ndarray, "p g"],
    threshold: float,
    unjudged: Bool[np.ndarray, " g"],
    crowds: Bool[np.ndarray, " g"],
) -> Int64[np.ndarray, " p"]:
    """The object of each prediction, or -1: the best that is left, one that is judged if any is.

    Of equal ones the last; a crowd is never used up.
    """
    chosen = np.full(len(ious), -1, np.int64)
    left = np.ones(len(unjudged), bool)
    least = min(threshold, 1 - 1e-10)
    for row, values in enumerate(ious):
        for group in (~unjudged, unjudged):
            fits = np.flatnonzero(group & left & (values >= least))
            if len(fits):
                best = fits[values[fits] == values[fits].max()][-1]
                chosen[row] = best
                left[best] = crowds[best]
                break
    return chosen


@dataclass(frozen=True)
class InstanceMetrics:
    """Fractions; nan where no class has such objects."""

    ap: float
    """Mean over IoUs from 0.5 to 0.95."""
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float


def instance_metrics(
    matches: InstanceMatches, classes: Sequence[int] | None = None
) -> InstanceMetrics:
    """All numbers of these predictions; of some classes, or of all."""
    chosen = range(len(matches.num_objects)) if classes is None else classes
    curves = {
        (size, most): [_curves(matches, index, number, most) for index in chosen]
        for number, size in enumerate(AREAS)
        for most in (MAX_PREDICTIONS if size == "all" else MAX_PREDICTIONS[-1:])
    }
    there = {key: [curve for curve in curves[key] if curve is not None] for key in curves}

    def precision(size: str = "all", thresholds: slice = slice(None)) -> float:
        return _mean([curve[0][thresholds] for curve in there[size, MAX_PREDICTIONS[-1]]])

    def recall(size: str = "all", most: int = MAX_PREDICTIONS[-1]) -> float:
        return _mean([curve[1] for curve in there[size, most]])

    return InstanceMetrics(
        precision(),
        precision(thresholds=slice(0, 1)),
        precision(thresholds=slice(5, 6)),
        *(precision(size) for size in ("small", "medium", "large")),
        *(recall(most=most) for most in MAX_PREDICTIONS),
        *(recall(size) for size in ("small", "medium", "large")),
    )


def class_average_precision(matches: InstanceMatches) -> Float64[np.ndarray, " c"]:
    """AP of each class; nan where it has no objects."""
    curves = (_curves(matches, i, 0, MAX_PREDICTIONS[-1]) for i in range(len(matches.num_objects)))
    return np.array([np.nan if curve is None else curve[0].mean() for curve in curves])


def _curves(
    matches: InstanceMatches, index: int, size: int, most: int
) -> tuple[Float64[np.ndarray, "thresholds recalls"], Float64[np.ndarray, " thresholds"]] | None:
    """Precision at each recall, and the recall that is reached; None without objects."""
    num_objects = int(matches.num_objects[index, size])
    if not num_objects:
        return None
    mine = np.flatnonzero((matches.class_index == index) & (matches.rank < most))
    order = np.lexsort((matches.rank[mine], matches.image[mine], -matches.score[mine]))
    mine = mine[order]
    bits = np.arange(_NUM_THRESHOLDS, dtype=np.uint64) + np.uint64(_NUM_THRESHOLDS * size)
    matched, ignored = (
        (of[mine] >> bits[:, None] & np.uint64(1)).astype(bool)
        for of in (matches.matched, matches.ignored)
    )
    right = np.cumsum(matched & ~ignored, axis=1, dtype=float)
    wrong = np.cumsum(~matched & ~ignored, axis=1, dtype=float)
    recalls = right / num_objects
    precisions = right / (right + wrong + np.spacing(1))
    precisions = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    at_recalls = np.zeros((_NUM_THRESHOLDS, len(RECALLS)))
    for number, (recall, precision) in enumerate(zip(recalls, precisions, strict=True)):
        places = np.searchsorted(recall, RECALLS, side="left")
        reached = places < len(recall)
        at_recalls[number, reached] = precision[places[reached]]
    reached = recalls[:, -1] if len(mine) else np.zeros(_NUM_THRESHOLDS)
    return at_recalls, reached


def _mean(values: list[np.ndarray]) -> float:
    return float(np.mean(values)) if values else float("nan")
