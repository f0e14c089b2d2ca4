"""Results of panoptic and instance evaluations: numbers, classes, files and a table."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etils import epath

from maft_jax.evaluators.average_precision import (
    InstanceTotal,
    class_average_precision,
    instance_metrics,
)
from maft_jax.evaluators.panoptic_quality import IOU_UNITS, PanopticTotal, panoptic_metrics
from maft_jax.evaluators.tables import Table, as_text, title_of
from maft_jax.runtime.sealed_files import read_sealed_json, write_sealed_json

FORMAT = "maft_jax segments 1"

COLUMNS = {
    "panoptic": {
        "PQ": "pq",
        "SQ": "sq",
        "RQ": "rq",
        "PQ things": "pq_things",
        "PQ stuff": "pq_stuff",
        "PQ seen": "pq_seen",
        "PQ unseen": "pq_unseen",
    },
    "instance": {
        "AP": "ap",
        "AP50": "ap50",
        "AP75": "ap75",
        "APs": "ap_small",
        "APm": "ap_medium",
        "APl": "ap_large",
        "AR100": "ar_100",
        "AP seen": "ap_seen",
        "AP unseen": "ap_unseen",
    },
}
"""Headings of tables, and the numbers below them."""


@dataclass(frozen=True)
class SegmentResult:
    """What was found of one data set; numbers are fractions, nan where there is nothing."""

    dataset: str
    split: str
    task: str
    num_images: int
    numbers: Mapping[str, float]
    classes: Sequence[Mapping]
    """Of each its id, name, whether it is a thing, and numbers."""
    provenance: Mapping
    written: Mapping | None = None
    """Name and digest of the JSON with all that was found; None where it was not asked for."""

    @property
    def file_name(self) -> str:
        return f"{self.dataset}_{self.task}.json"


def panoptic_numbers(
    total: PanopticTotal, names: Sequence[str], things: frozenset[int], unseen: Sequence[int]
) -> tuple[dict[str, float], list[dict]]:
    """All numbers, and those of each class."""
    found = panoptic_metrics(total.counts, things, unseen)
    parts = {
        "": found.every,
        "_things": found.things,
        "_stuff": found.stuff,
        "_seen": found.seen,
        "_unseen": found.unseen,
    }
    numbers = {
        f"{name}{part}": getattr(quality, name)
        for part, quality in parts.items()
        for name in ("pq", "sq", "rq")
    }
    rows = [
        {
            "id": i,
            "name": name,
            "is_thing": i in things,
            "pq": float(found.class_pq[i]),
            "sq": float(found.class_sq[i]),
            "rq": float(found.class_rq[i]),
            "true_positives": int(total.counts[i, 0]),
            "false_positives": int(total.counts[i, 1]),
            "false_negatives": int(total.counts[i, 2]),
            "iou_sum": float(total.counts[i, 3] / IOU_UNITS),
        }
        for i, name in enumerate(names)
    ]
    return numbers, rows


def instance_numbers(
    total: InstanceTotal, names: Sequence[str], things: frozenset[int], unseen: Sequence[int]
) -> tuple[dict[str, float], list[dict]]:
    """All numbers, of things alone, and AP of each thing."""
    matches, some = total.matches, sorted(things)
    numbers = dataclasses.asdict(instance_metrics(matches, some))
    split = {"ap_seen": sorted(things - set(unseen)), "ap_unseen": sorted(things & set(unseen))}
    for name, classes in split.items():
        numbers[name] = instance_metrics(matches, classes).ap if unseen else math.nan
    of_classes = class_average_precision(matches)
    rows = [
        {
            "id": i,
            "name": names[i],
            "is_thing": True,
            "ap": float(of_classes[i]),
            "objects": int(matches.num_objects[i, 0]),
        }
        for i in some
    ]
    return numbers, rows


def write_segment_result(result: SegmentResult, folder: epath.Path) -> None:
    """Writes <dataset>_<task>.json, in which what is undefined is null."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"format": FORMAT, **dataclasses.asdict(result)}
    write_sealed_json(folder / result.file_name, _without_nan(document))


def read_segment_result(path: epath.Path, key: str) -> SegmentResult | None:
    """The result in a file, if it is there, whole, and of the evaluation with this key."""
    document = read_sealed_json(path)
    if document is None or document.pop("format", None) != FORMAT:
        return None
    if document["provenance"].get("key") != key:
        return None
    numbers = document.pop("numbers")
    numbers = {name: math.nan if value is None else value for name, value in numbers.items()}
    return SegmentResult(numbers=numbers, **document)


def segment_table(results: Sequence[SegmentResult]) -> str:
    """Aligned text, in percent: one line per data set."""
    columns = COLUMNS[results[0].task]
    lines = [
        [
            title_of((result.dataset, result.split)),
            f"{result.num_images:,}",
            *(_percent(result.numbers[name]) for name in columns.values()),
        ]
        for result in results
    ]
    headings = ["data set", "images", *columns]
    return "\n".join(as_text(Table(headings, 1, [[line] for line in lines], [])))


def _percent(number: float) -> str:
    return "-" if math.isnan(number) else f"{100 * number:.2f}"


def _without_nan(value):
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
