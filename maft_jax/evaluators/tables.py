"""Results of several data sets as the table that papers print."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.dataset_specs import SPECS
from input_pipeline.records.label_counts import list_names
from maft_jax.evaluators.results import EvaluationResult

COLUMNS = {
    "mIoU (gt_or_pred)": "miou_gt_or_pred",
    "mIoU (gt_only)": "miou_gt_only",
    "seen": "seen_miou",
    "unseen": "unseen_miou",
    "hIoU": "hiou",
    "fwIoU": "fwiou",
    "mACC": "macc",
    "pACC": "pacc",
    "maskACC": "mask_accuracy",
    "mMaskACC": "mean_mask_accuracy",
}

COMPARED = ("images", "proposals", "protocol")
"""Provenance that must be equal in two results whose difference is called a gain."""

_UNDEFINED = "-"


def format_table(
    results: Sequence[EvaluationResult], baseline: Sequence[EvaluationResult] | None = None
) -> str:
    """Aligned text, in percent: one line per data set, in the order papers use.

    With a `baseline`, the frozen CLIP's results, lines "frozen", "tuned" and "gain". Where a pair
    was not measured on the same images, proposals, protocol and classes, or the tuned weights were
    made from another CLIP, the gain is left out and a WARNING below the table says what differs.
    Classes that no pixel shows are listed below the table.

    Raises:
        ValueError: two results of one data set and split.
    """
    tuned, frozen = _by_dataset(results), _by_dataset(baseline or ())
    keys = sorted({**tuned, **frozen}, key=_rank)
    if baseline is None:
        groups = [[_line(key, None, tuned[key])] for key in keys]
        notes = [note for key in keys for note in _absent_classes(key, tuned[key])]
        return "\n".join(as_text(Table(["data set", "images", *COLUMNS], 1, groups, notes)))
    notes = [note for key in keys for note in _absent_classes(key, tuned.get(key) or frozen[key])]
    warnings, groups = [], []
    for key in keys:
        pair = frozen.get(key), tuned.get(key)
        group = [
            _line(key, name, result)
            for name, result in zip(("frozen", "tuned"), pair, strict=True)
            if result is not None
        ]
        if None in pair:
            missing = "frozen" if pair[0] is None else "tuned"
            warnings.append(f"WARNING: {title_of(key)}: no gain, there is no {missing} result")
        elif differ := differences(pair[1], pair[0]):
            warnings.append(
                f"WARNING: {title_of(key)}: no gain, frozen and tuned cannot be compared: they "
                f"differ in {'; '.join(differ)}"
            )
        else:
            group.append(_gain_line(*pair))
        groups.append(group)
    headings = ["data set", "weights", "images", *COLUMNS]
    return "\n".join(as_text(Table(headings, 2, groups, notes + warnings)))


def _absent_classes(key: tuple[str, str], result: EvaluationResult) -> list[str]:
    """Which classes the numbers do not speak of; empty where all are shown."""
    absent, total = result.absent_classes, len(result.class_names)
    notes = []
    if absent:
        notes.append(
            f"{title_of(key)}: no labelled pixel shows {len(absent)} of {total} classes: "
            f"{list_names(absent)}"
        )
    if total - len(absent) < 2:
        notes.append(
            f"WARNING: {title_of(key)}: the labels show fewer than two classes, so that the "
            "numbers say nothing of telling classes apart; see whether label values and class list "
            "agree"
        )
    return notes


def differences(tuned: EvaluationResult, frozen: EvaluationResult) -> list[str]:
    """What keeps two results of a data set from being compared; empty if nothing does."""
    found = []
    if tuned.class_names != frozen.class_names:
        found.append("class lists")
    elif not np.array_equal(tuned.metrics.ground_truth_pixels, frozen.metrics.ground_truth_pixels):
        found.append("ground-truth pixels per class")
    if sorted(tuned.unseen_classes) != sorted(frozen.unseen_classes):
        found.append("unseen classes")
    if _synonyms(tuned) != _synonyms(frozen):
        found.append("further names of the classes")
    if tuned.num_images != frozen.num_images:
        found.append(f"numbers of images ({frozen.num_images:,} and {tuned.num_images:,})")
    tuned_weights, frozen_weights = (
        result.provenance.get("weights") or {} for result in (tuned, frozen)
    )
    if (tuned_from := tuned_weights.get("tuned_from")) is not None:
        found += _changes("untuned image tower", frozen_weights.get("image_tower"), tuned_from)
    for key in COMPARED:
        found += _changes(key, frozen.provenance.get(key), tuned.provenance.get(key))
    return found


def _synonyms(result: EvaluationResult) -> Mapping:
    return (result.provenance.get("classes") or {}).get("synonyms") or {}


def _changes(name: str, was, now) -> list[str]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        keys = sorted({*was, *now})
        return [text for k in keys for text in _changes(f"{name}.{k}", was.get(k), now.get(k))]
    return [] if was == now else [f"{name} ({_shortened(was)} and {_shortened(now)})"]


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text, of which the first columns are words and the others numbers."""

    headings: list[str]
    num_text_columns: int
    groups: list[list[list[str]]]
    """Lines of cells that belong together, one group per data set."""
    warnings: list[str]
    """And notes, a line each, below the table."""


def _by_dataset(results) -> dict[tuple[str, str], EvaluationResult]:
    keyed = {(result.dataset, result.split): result for result in results}
    if len(keyed) < len(results):
        names = [f"{result.dataset} ({result.split})" for result in results]
        raise ValueError(f"expected one result per data set and split, got {', '.join(names)}")
    return keyed


def _rank(key: tuple[str, str]) -> int:
    """Papers' order, then own data sets as they come."""
    order = list(SPECS)
    return order.index(key[0]) if key[0] in order else len(order)


def title_of(key: tuple[str, str]) -> str:
    """How papers call a data set, and its split unless it is val."""
    dataset, split = key
    title = SPECS[dataset].short_title if dataset in SPECS else dataset
    return title if split == "val" else f"{title} {split}"


def _line(key, weights: str | None, result: EvaluationResult) -> list[str]:
    numbers = result.numbers()
    shown = [100 * numbers[name] for name in COLUMNS.values()]
    cells = [_UNDEFINED if math.isnan(number) else f"{number:.2f}" for number in shown]
    names = [title_of(key)] if weights is None else [title_of(key), weights]
    return [*names, f"{result.num_images:,}", *cells]


def _gain_line(frozen: EvaluationResult, tuned: EvaluationResult) -> list[str]:
    was, now = frozen.numbers(), tuned.numbers()
    gains = [100 * (now[name] - was[name]) for name in COLUMNS.values()]
    return ["", "gain", "", *(_UNDEFINED if math.isnan(x) else f"{x:+.2f}" for x in gains)]


def as_text(table: Table) -> list[str]:
    """Aligned lines."""
    rows = [table.headings, *(line for group in table.groups for line in group)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells):
        padded = (
            cell.ljust(width) if i < table.num_text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    lines = [line(table.headings), "  ".join("-" * width for width in widths)]
    for number, group in enumerate(table.groups):
        lines += [""] * (number > 0 and table.num_text_columns > 1) + [line(row) for row in group]
    return lines + [""] * bool(table.warnings) + table.warnings


def _shortened(value) -> str:
    text = "none given" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"
