"""Batches for evaluation: every example once and in order, equally shaped on all processes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64

from input_pipeline.example_checks import check_batching, check_example
from input_pipeline.examples import (
    IGNORE,
    PreparedExample,
    PreparedSource,
    proposal_grid_size,
)
from input_pipeline.transforms import Placement, place_image, sample_proposals, scaled_size
from input_pipeline.worker_threads import BatchWork, computed_ahead

SIZE_MULTIPLE = 64
"""Heights and widths of batches are multiples of this, so that few programs are compiled."""


@dataclass(frozen=True)
class EvalGeometry:
    """Test geometry: the short side becomes `short_side`, the long one at most `max_long_side`.

    The image a model sees is padded to multiples of `divisor`, which is its `padded_size`.
    """

    short_side: int = 640
    max_long_side: int = 2560
    divisor: int = 32

    def __post_init__(self):
        if min(self.short_side, self.max_long_side, self.divisor) < 1:
            raise ValueError(f"EvalGeometry: expected positive numbers, got {self}")


def make_eval_batches(
    source: PreparedSource,
    *,
    global_batch_size: int,
    geometry: EvalGeometry,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int | None = None,
    num_generator_classes: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's rows of all batches, from the first example to the last.

    image             uint8 [b, H, W, 3], resized as Pillow does, then zeros right and below
    image_size        int32 [b, 2], height and width of the resized image
    padded_size       int32 [b, 2], the same rounded up to the divisor
    label_map         int32 [b, HL, WL] of native size, then IGNORE
    label_size        int32 [b, 2]
    proposals         uint8 [b, n, GH, GW], then zeros
    proposal_grid     int32 [b, 2], a quarter of image_size, rounded up
    proposal_valid    bool  [b, n], false where `proposals` is padding
    example_index     int32 [b], index in `source`, -1 in rows that only fill the last batch
    example_valid     bool  [b], false in those rows, whose sizes are 1
    class_logits      float32 [b, n, num_generator_classes] of the generator, if that is not 0

    Corner points of the proposals lie on the corner pixels of the resized image; proposals stored
    on another grid are resampled, bilinear. Shapes depend on `source.image_sizes` alone, so that
    all processes yield equally many and equally shaped batches without talking to each other.
    ValueError as from `make_train_batches`, and for class logits that are missing or others.
    """
    check_batching(source, global_batch_size, process_index, process_count)
    local_batch_size = global_batch_size // process_count
    plan = _Plan(source, geometry, num_generator_classes)

    def work(batch_start: int) -> BatchWork:
        in_batch = np.arange(batch_start, min(batch_start + global_batch_size, len(source)))
        first = batch_start + process_index * local_batch_size
        indices = np.arange(first, first + local_batch_size)
        arrays = plan.empty_batch(np.where(indices < len(source), indices, -1), in_batch)
        return BatchWork(arrays, local_batch_size, lambda row: plan.fill(arrays, row))

    starts = range(0, len(source), global_batch_size)
    return computed_ahead(map(work, starts), num_workers or os.cpu_count() or 1)


def make_eval_batch(
    example: PreparedExample, num_proposals: int, geometry: EvalGeometry
) -> dict[str, np.ndarray]:
    """The batch that `make_eval_batches` makes of a source with this example alone.

    Equal `num_proposals` make batches of equal shape of images whose sizes are similar, whatever
    the number of their proposals. ValueError as from `make_train_batches`.
    """
    source = _OneExample(example, num_proposals)
    check_batching(source, 1, 0, 1)
    plan = _Plan(source, geometry)
    batch = plan.empty_batch(np.array([0]), np.array([0]))
    plan.fill(batch, row=0)
    return batch


class _OneExample:
    """The PreparedSource that holds one example; any label is allowed in it."""

    fingerprint = ""

    def __init__(self, example: PreparedExample, num_proposals: int):
        self._example = example
        last_class = max(0, int(example.label_map.max()))
        self.class_names = tuple(str(i) for i in range(last_class + 1))
        self.example_ids = (example.example_id,)
        self.num_proposals = num_proposals
        self.max_classes_per_image = len(self.class_names)
        self.image_sizes = np.array([example.image.shape[:2]], np.int32)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> PreparedExample:
        return self._example


class _Plan:
    """Sizes of everything, known from the sizes of the images before any is read."""

    def __init__(
        self, source: PreparedSource, geometry: EvalGeometry, num_generator_classes: int = 0
    ):
        self._source = source
        self._num_generator_classes = num_generator_classes
        self._native = np.asarray(source.image_sizes, np.int32)
        self._resized = np.array(
            [_resized_size(*size, geometry) for size in self._native.tolist()], np.int32
        )
        self._padded = _round_up(self._resized, geometry.divisor)

    def empty_batch(
        self, indices: Int64[np.ndarray, " b"], in_batch: Int64[np.ndarray, " k"]
    ) -> dict[str, np.ndarray]:
        """A batch of only fill rows with the sizes of `indices`, and shapes that fit `in_batch`."""
        height, width = _round_up(self._padded[in_batch].max(axis=0), SIZE_MULTIPLE).tolist()
        label_height, label_width = _round_up(
            self._native[in_batch].max(axis=0), SIZE_MULTIPLE
        ).tolist()
        rows, num_proposals = len(indices), self._source.num_proposals
        valid = indices >= 0
        sizes = {
            "image_size": self._resized,
            "padded_size": self._padded,
            "label_size": self._native,
            "proposal_grid": np.stack(proposal_grid_size(*self._resized.T), axis=1),
        }
        logits_shape = (rows, num_proposals, self._num_generator_classes)
        logits = {"class_logits": np.zeros(logits_shape, np.float32)} if logits_shape[-1] else {}
        return {
            "image": np.zeros((rows, height, width, 3), np.uint8),
            "label_map": np.full((rows, label_height, label_width), IGNORE, np.int32),
            "proposals": np.zeros(
                (rows, num_proposals, *proposal_grid_size(height, width)), np.uint8
            ),
            "proposal_valid": np.zeros((rows, num_proposals), bool),
            **{key: np.where(valid[:, None], size[indices], 1) for key, size in sizes.items()},
            "example_index": indices.astype(np.int32),
            "example_valid": valid,
            **logits,
        }

    def fill(self, arrays: dict[str, np.ndarray], row: int) -> None:
        """Reads the example of a row of `empty_batch` into it."""
        index = int(arrays["example_index"][row])
        if index < 0:
            return
        example = self._source[index]
        check_example(example, self._source)
        native, resized = (tuple(sizes[index].tolist()) for sizes in (self._native, self._resized))
        if example.image.shape[:2] != native:
            raise ValueError(
                f"{example.example_id}: expected an image of {native[1]}x{native[0]} pixels, as "
                f"its source says, got {example.image.shape[1]}x{example.image.shape[0]}"
            )
        image = place_image(example.image, Placement(native, resized, (0, 0), resized, False))
        arrays["image"][row, : resized[0], : resized[1]] = image
        arrays["label_map"][row, : native[0], : native[1]] = example.label_map
        proposals = example.proposals
        y, x = (
            np.linspace(0, stored - 1, points)
            for stored, points in zip(
                proposals.shape[1:], proposal_grid_size(*resized), strict=True
            )
        )
        sample_proposals(proposals, y, x, out=arrays["proposals"][row])
        arrays["proposal_valid"][row, : len(proposals)] = True
        if self._num_generator_classes:
            arrays["class_logits"][row, : len(proposals)] = self._class_logits(example)

    def _class_logits(self, example: PreparedExample) -> Float32[np.ndarray, "n v"]:
        expected = (len(example.proposals), self._num_generator_classes)
        logits = example.class_logits
        if logits is None or logits.shape != expected:
            got = "none" if logits is None else f"an array of shape {logits.shape}"
            raise ValueError(
                f"{example.example_id}: expected class logits of the proposal generator, "
                f"{expected[0]} proposals x {expected[1]} classes, got {got}; write the records "
                "with a generator that knows these classes, or set config.evaluation."
                "ensemble_weight=0"
            )
        return logits


def _resized_size(height: int, width: int, geometry: EvalGeometry) -> tuple[int, int]:
    scale = min(
        geometry.short_side / min(height, width), geometry.max_long_side / max(height, width)
    )
    return scaled_size((height, width), scale)


def _round_up(size: Int32[np.ndarray, "..."], multiple: int) -> Int32[np.ndarray, "..."]:
    return -(-size // multiple) * multiple
