"""Runs the weights over images of a data set and reduces what they say to `Measurements`."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from input_pipeline.examples import IGNORE, PreparedSource
from input_pipeline.transforms import sample_proposals
from maft_jax.diagnosis.pictures import crop_around
from maft_jax.diagnosis.report import Measurements
from maft_jax.diagnosis.statistics import (
    FalsePositive,
    ImageTruth,
    score_image,
    top_false_positives,
)
from maft_jax.evaluators.unfinished_counts import ProgressLines
from maft_jax.losses.mask_aware import class_masks, normalise_over_proposals, soft_iou
from maft_jax.runtime import stop_requests

_CLASSES_AT_A_TIME = 8
_KEYS = (
    "label_map",
    "label_size",
    "proposals",
    "proposal_grid",
    "proposal_valid",
    "example_index",
    "example_valid",
)


def measure(
    source: PreparedSource,
    dataset: str,
    columns: Mapping[str, Callable[[Mapping[str, Array]], Float[Array, "b n c"]]],
    batches: Iterable[Mapping[str, Array]],
) -> Measurements:
    """Scores every example of a source with the weights of every column.

    A column takes one of `batches`, which `make_eval_dataset` made of the source, and returns
    class probabilities, zeros for proposals that it leaves out; those that any column leaves out
    are not counted.

    Raises:
        Stopped: a signal came.
    """
    measured = Measurements(dataset, source.class_names, [], {title: [] for title in columns})
    progress = ProgressLines(dataset, len(source), 0)
    for batch in batches:
        stop_requests.check()
        probabilities = {title: np.asarray(score(batch)) for title, score in columns.items()}
        on_host = {key: np.asarray(batch[key]) for key in _KEYS}
        for row in np.flatnonzero(on_host["example_valid"]):
            kept = on_host["proposal_valid"][row].copy()
            for of_column in probabilities.values():
                kept &= of_column[row].sum(axis=-1) > 0
            truth = image_truth(source, on_host, int(row), np.flatnonzero(kept))
            measured.truths.append(truth)
            for title, of_column in probabilities.items():
                measured.scores[title].append(score_image(truth, of_column[row][kept]))
        progress.show(len(measured.truths))
    return measured


def image_truth(
    source: PreparedSource,
    batch: Mapping[str, np.ndarray],
    row: int,
    proposals: Int[np.ndarray, " n"],
) -> ImageTruth:
    """IoU of an image's proposals with its classes, at the resolution of its label map."""
    index = int(batch["example_index"][row])
    (height, width), (grid_height, grid_width) = (
        batch[key][row].tolist() for key in ("label_size", "proposal_grid")
    )
    labels = batch["label_map"][row, :height, :width]
    masks = batch["proposals"][row, :, :grid_height, :grid_width]
    present = np.unique(labels[labels != IGNORE])
    iou, normalised = _iou_with_classes(masks, labels, present, proposals)
    return ImageTruth(
        example_index=index,
        example_id=source.example_ids[index],
        proposals=proposals,
        present_classes=present,
        iou=iou,
        normalised_iou=normalised,
        shares=shares_of_classes(masks[proposals], labels, present),
    )


def shares_of_classes(
    masks: UInt8[np.ndarray, "n gh gw"],
    labels: Int[np.ndarray, "h w"],
    classes: Int[np.ndarray, " g"],
) -> Float[np.ndarray, "n g"]:
    """How much of each mask each class covers, at the points of the masks' grid."""
    y, x = (
        np.linspace(0, size - 1, points).round().astype(int)
        for size, points in zip(labels.shape, masks.shape[1:], strict=True)
    )
    at_points = labels[np.ix_(y, x)].ravel()
    weights = masks.reshape(len(masks), -1).astype(np.float32)
    covered = weights @ (at_points[:, None] == classes).astype(np.float32)
    return (
        covered.astype(np.float64) / np.maximum(weights.sum(axis=1, dtype=np.float64), 1)[:, None]
    )


def crops_of_false_positives(
    source: PreparedSource, measured: Measurements, count: int
) -> dict[str, list[tuple[FalsePositive, UInt8[np.ndarray, "h w 3"]]]]:
    """The top false positives of every column with pictures of them."""
    found = {}
    for title, scores in measured.scores.items():
        found[title] = []
        for one in top_false_positives(measured.truths, scores, count):
            example = source[one.example_index]
            mask = _at_image_size(example.proposals[one.proposal], example.image.shape[:2])
            found[title].append((one, crop_around(example.image, mask >= 128)))
    return found


def _iou_with_classes(
    masks: UInt8[np.ndarray, "m gh gw"],
    labels: Int[np.ndarray, "h w"],
    classes: Int[np.ndarray, " g"],
    proposals: Int[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "g n"], Float[np.ndarray, "g n"]]:
    """Soft IoU and its normalised form, a few classes at a time, so that memory is bounded."""
    valid = np.isin(np.arange(len(masks)), proposals)
    parts = [np.zeros((2, 0, len(masks)), np.float32)]
    for first in range(0, len(classes), _CLASSES_AT_A_TIME):
        some = np.full(_CLASSES_AT_A_TIME, -1, np.int32)
        count = len(classes[first : first + _CLASSES_AT_A_TIME])
        some[:count] = classes[first : first + count]
        parts.append(np.asarray(_soft_iou(masks, labels, some, valid))[:, :count])
    iou, normalised = np.concatenate(parts, axis=1)[..., proposals].astype(np.float64)
    return iou, normalised


@jax.jit
def _soft_iou(masks, labels, classes, valid):
    iou = soft_iou(masks[None], class_masks(labels[None], classes[None]))
    return jnp.stack([iou[0], normalise_over_proposals(iou, valid[None])[0]])


def _at_image_size(
    mask: UInt8[np.ndarray, "gh gw"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    y, x = (
        np.linspace(0, stored - 1, points) for stored, points in zip(mask.shape, size, strict=True)
    )
    resampled = np.empty((1, *size), np.uint8)
    sample_proposals(mask[None], y, x, out=resampled)
    return resampled[0]
