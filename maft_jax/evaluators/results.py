"""What an evaluation found, with its provenance, as JSON, CSV and counts."""

import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from etils import epath
from jaxtyping import Int64

from maft_jax.config.fields import build
from maft_jax.convert.numpy_archive import open_numpy_archive
from maft_jax.evaluators.mask_accuracy import (
    MaskAccuracy,
    MaskCounts,
    checked_mask_counts,
    mask_accuracy,
)
from maft_jax.evaluators.semantic import SemanticMetrics, semantic_metrics
from maft_jax.evaluators.zero_shot import ZeroShotMetrics, unseen_mask, zero_shot_metrics
from maft_jax.runtime.atomic_files import atomic_write_bytes
from maft_jax.runtime.json_files import read_json
from maft_jax.runtime.sealed_files import SEAL, json_digest

SUMMARY_FILE = "summary.csv"
FORMAT = "maft_jax evaluation 2"
_MASK_COUNTS = ("ground_truth_masks", "correct_masks")
_UNSEALED_FORMAT = "maft_jax evaluation 1"
"""Of version 0.1. Files of this format that have a seal were written before it had a number."""

DEFINITIONS = {
    "miou_gt_or_pred": "sum of IoUs of classes with ground truth / number of classes with ground "
    "truth or predicted pixels (detectron2 0.6, mmseg; the papers' convention)",
    "miou_gt_only": "sum of IoUs of classes with ground truth / number of those classes",
    "seen_miou": "miou_gt_or_pred of the seen classes",
    "unseen_miou": "miou_gt_or_pred of the unseen classes",
    "hiou": "2 / (1 / seen_miou + 1 / unseen_miou)",
    "fwiou": "mean of IoUs of classes with ground truth, weighted with their pixels",
    "macc": "mean over classes with ground truth of the share of their pixels predicted right",
    "pacc": "share of labelled pixels predicted right",
    "seen_miou_gt_only": "miou_gt_only of the seen classes",
    "unseen_miou_gt_only": "miou_gt_only of the unseen classes",
    "hiou_gt_only": "2 / (1 / seen_miou_gt_only + 1 / unseen_miou_gt_only)",
    "mask_accuracy": "share of ground-truth masks, one for each class that an image shows, which "
    "the tower gives their class",
    "mean_mask_accuracy": "mean over classes of the share of their masks",
    "seen_mask_accuracy": "mean_mask_accuracy of the seen classes",
    "unseen_mask_accuracy": "mean_mask_accuracy of the unseen classes",
}
"""The numbers of an evaluation; see docs/metrics.md."""

SCALARS = (
    "miou_gt_or_pred",
    "miou_gt_only",
    "seen_miou",
    "unseen_miou",
    "hiou",
    "fwiou",
    "macc",
    "pacc",
    "mask_accuracy",
    "mean_mask_accuracy",
    "seen_mask_accuracy",
    "unseen_mask_accuracy",
)
"""Those that TensorBoard shows."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Counts of one data set and where they come from; all numbers follow from the counts.

    `unseen_classes` are class ids; empty = the data set has no zero-shot split. `provenance` is
    whatever JSON can hold (nan becomes None, a path its name, a tuple a list): which weights, and
    under "images", "proposals" and "protocol" what two results must share to be compared (see
    `tables.differences`).

    Raises:
        ValueError: the parts do not fit together, the data set's name cannot name a file, or JSON
            cannot hold the provenance.
    """

    dataset: str
    split: str
    class_names: tuple[str, ...]
    unseen_classes: tuple[int, ...]
    num_images: int
    confusion: Int64[np.ndarray, "c1 c1"]
    provenance: Mapping = field(default_factory=dict)
    mask_counts: MaskCounts | None = None
    """None in results from before masks were counted."""

    def __post_init__(self):
        size = len(self.class_names) + 1
        if self.confusion.shape != (size, size):
            raise ValueError(
                f"{self.dataset}: expected counts of {size - 1} classes and IGNORE, shape "
                f"{(size, size)}, got {self.confusion.shape}; was it counted with another class "
                "list?"
            )
        if not re.fullmatch(r"[^/\\\0.][^/\\\0]*", self.dataset):
            raise ValueError(
                f"expected a data set's name that can name a file, got {self.dataset!r}"
            )
        unseen_mask(self.unseen_classes, len(self.class_names))
        if self.mask_counts is not None:
            checked_mask_counts(self.mask_counts, len(self.class_names), self.dataset)
        provenance = _plain(self.provenance, f"{self.dataset}: provenance")
        object.__setattr__(self, "provenance", provenance)

    @functools.cached_property
    def metrics(self) -> SemanticMetrics:
        return semantic_metrics(self.confusion)

    @functools.cached_property
    def zero_shot(self) -> ZeroShotMetrics | None:
        """None where the data set has no zero-shot split."""
        if not self.unseen_classes:
            return None
        return zero_shot_metrics(self.metrics, self.unseen_classes)

    @functools.cached_property
    def masks(self) -> MaskAccuracy | None:
        """None where masks were not counted."""
        if self.mask_counts is None:
            return None
        return mask_accuracy(self.mask_counts, self.unseen_classes)

    @property
    def tells_classes_apart(self) -> bool:
        """Whether two classes are there, in labels or predictions."""
        there = (self.metrics.ground_truth_pixels > 0) | (self.metrics.predicted_pixels > 0)
        return bool(there.sum() != 1)

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Names of the classes that no labelled pixel shows."""
        pixels = self.metrics.ground_truth_pixels
        return tuple(name for name, n in zip(self.class_names, pixels, strict=True) if not n)

    @property
    def class_list_sha256(self) -> str:
        """Of the names, one a line: what sha256sum says of such a file."""
        return hashlib.sha256(
            "".join(f"{name}\n" for name in self.class_names).encode()
        ).hexdigest()

    def numbers(self) -> dict[str, float]:
        """All of DEFINITIONS, as fractions; nan where undefined.

        Where one class alone is shown and predicted, all are undefined: 100 % of it says nothing.
        """
        if not self.tells_classes_apart:
            return dict.fromkeys(DEFINITIONS, float("nan"))
        numbers = dict.fromkeys(DEFINITIONS, float("nan"))
        for part in (self.metrics, self.zero_shot, self.masks):
            numbers |= {name: getattr(part, name) for name in numbers if hasattr(part, name)}
        return numbers

    def scalars(self) -> dict[str, float]:
        """SCALARS, as fractions; undefined ones are left out."""
        numbers = self.numbers()
        return {name: numbers[name] for name in SCALARS if not np.isnan(numbers[name])}


def class_rows(result: EvaluationResult) -> list[dict]:
    """One row per class: id, name, group, IoU, accuracies, pixels and masks; nan where undefined.

    Without masks where they were not counted.
    """
    unseen = unseen_mask(result.unseen_classes, len(result.class_names))
    groups = np.where(unseen, "unseen", "seen") if result.unseen_classes else [""] * len(unseen)
    metrics, masks, counts = result.metrics, result.masks, result.mask_counts
    return [
        {
            "id": i,
            "name": name,
            "group": str(groups[i]),
            "iou": float(metrics.iou[i]),
            "accuracy": float(metrics.accuracy[i]),
            "ground_truth_pixels": int(metrics.ground_truth_pixels[i]),
            "predicted_pixels": int(metrics.predicted_pixels[i]),
            "correct_pixels": int(metrics.correct_pixels[i]),
            **({} if masks is None else _mask_row(masks.accuracy[i], counts[i])),
        }
        for i, name in enumerate(result.class_names)
    ]


def _mask_row(accuracy: float, counts: Int64[np.ndarray, " 2"]) -> dict:
    names = ("mask_accuracy", *_MASK_COUNTS)
    return dict(zip(names, (float(accuracy), *counts.tolist()), strict=True))


def write_results(results: Sequence[EvaluationResult], folder: str | os.PathLike) -> None:
    """Writes <dataset>.json, <dataset>_classes.csv and <dataset>_confusion.npz, and summary.csv.

    The summary is about these results alone; undefined numbers are empty in CSV, null in JSON.

    Raises:
        ValueError: two results of one data set.
    """
    folder = epath.Path(folder)
    names = [result.dataset for result in results]
    if len(set(names)) < len(names):
        raise ValueError(
            f"write_results: expected one result per data set, got {names}; write the others to "
            "another folder"
        )
    contents = [_json_of(result) for result in results]
    folder.mkdir(parents=True, exist_ok=True)
    for result, content in zip(results, contents, strict=True):
        atomic_write_bytes(folder / f"{result.dataset}_confusion.npz", _npz_of(result))
        atomic_write_bytes(folder / f"{result.dataset}_classes.csv", _csv_of(class_rows(result)))
        atomic_write_bytes(folder / f"{result.dataset}.json", content)
    atomic_write_bytes(folder / SUMMARY_FILE, _csv_of([_summary_row(result) for result in results]))


def read_result(path: str | os.PathLike) -> EvaluationResult:
    """Reads the <dataset>.json that `write_results` wrote, and the counts beside it.

    Raises:
        ValueError: it is no such file, or the counts are missing or those of another evaluation.
    """
    path = epath.Path(path)
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: expected the JSON of an evaluation, {error}") from error
    if content.get("format") not in (FORMAT, _UNSEALED_FORMAT):
        raise ValueError(f"{path}: expected the JSON of an evaluation with format={FORMAT!r}")
    unsealed = content["format"] == _UNSEALED_FORMAT and SEAL not in content
    if content.pop(SEAL, None) != json_digest(content) and not unsealed:
        raise ValueError(
            f"{path}: is corrupt, or was edited: {SEAL} does not match; evaluate again"
        )
    known = {field.name for field in dataclasses.fields(_Stored)}
    values = {name: value for name, value in content.items() if name in known}
    rows = values.get("classes")
    if isinstance(rows, list):
        values["mask_counts"] = _counts_in_rows(rows)
        values["classes"] = [row.get("name") if isinstance(row, dict) else row for row in rows]
    stored = build(_Stored, values, str(path), complete=False)
    confusion = _read_counts(path, stored)
    try:
        return EvaluationResult(
            dataset=stored.dataset,
            split=stored.split,
            class_names=stored.classes,
            unseen_classes=stored.unseen_classes,
            num_images=stored.num_images,
            confusion=confusion,
            provenance=content.get("provenance", {}),
            mask_counts=np.array(stored.mask_counts, np.int64) if stored.mask_counts else None,
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Stored:
    """What is read again of <dataset>.json."""

    dataset: str
    split: str
    num_images: int
    unseen_classes: tuple[int, ...]
    confusion_file: str
    confusion_sha256: str
    classes: tuple[str, ...]
    mask_counts: tuple[tuple[int, ...], ...] = ()


def _counts_in_rows(rows: list) -> list[list]:
    """The numbers of masks in rows of classes; empty where they were not counted."""
    there = all(isinstance(row, dict) and _MASK_COUNTS[0] in row for row in rows)
    return [[row.get(name) for name in _MASK_COUNTS] for row in rows] if there else []


def _read_counts(path: epath.Path, stored: _Stored) -> Int64[np.ndarray, "c1 c1"]:
    counts, size = path.parent / stored.confusion_file, len(stored.classes) + 1
    try:
        tensors = open_numpy_archive(io.BytesIO(counts.read_bytes()), str(counts))
        if tensors["confusion"].shape != (size, size):
            raise ValueError(f"expected {size} x {size}, got {tensors['confusion'].shape}")
        confusion = tensors["confusion"].read()
        digest = _sha256_of(confusion)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{counts}: expected the counts that {path} is about, {error}") from error
    if digest != stored.confusion_sha256:
        raise ValueError(
            f"{counts}: its counts are not those that {path} is about; copy both files of one "
            "evaluation, or evaluate again"
        )
    return confusion


def _json_of(result: EvaluationResult) -> bytes:
    counts = result.confusion
    value = {
        "format": FORMAT,
        "dataset": result.dataset,
        "split": result.split,
        "num_images": result.num_images,
        "num_classes": len(result.class_names),
        "class_list_sha256": result.class_list_sha256,
        "unseen_classes": result.unseen_classes,
        "metrics": result.numbers(),
        "definitions": DEFINITIONS,
        "pixels": {
            "labelled": counts[:, :-1].sum(),
            "labelled_without_prediction": counts[-1, :-1].sum(),
            "unlabelled_with_prediction": counts[:-1, -1].sum(),
        },
        "provenance": result.provenance,
        "confusion_file": f"{result.dataset}_confusion.npz",
        "confusion_sha256": _sha256_of(counts),
        "classes": class_rows(result),
    }
    plain = _plain(value, result.dataset)
    plain[SEAL] = json_digest(plain)
    return (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(value, where: str):
    """What JSON holds: numpy's scalars as Python's, null for nan and infinities."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"{where}: expected what JSON can hold, got {value!r}")


def _summary_row(result: EvaluationResult) -> dict:
    return {
        "dataset": result.dataset,
        "split": result.split,
        "num_images": result.num_images,
        "num_classes": len(result.class_names),
        "labelled_pixels": int(result.metrics.ground_truth_pixels.sum()),
        **result.numbers(),
        "class_list_sha256": result.class_list_sha256,
    }


def _csv_of(rows: Sequence[Mapping]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value != value else value for key, value in row.items()})
    return text.getvalue().encode()


def _npz_of(result: EvaluationResult) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, confusion=result.confusion)
    return content.getvalue()


def _sha256_of(counts: Int64[np.ndarray, "c1 c1"]) -> str:
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()
