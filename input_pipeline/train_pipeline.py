"""Endless batches of training examples: a pure function of (seed, step).

Row i of the global batch of a step has position = step * global_batch_size + i in an endless
stream. The position alone decides which example is read (`permutation.example_index`) and, with
the seed, how it is augmented, so that resuming at any step is exact and costs nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from input_pipeline.example_checks import check_batching, check_example
from input_pipeline.examples import PreparedSource
from input_pipeline.numpy_dataset import (
    Arrays,
    Dataset,
    NumpyBatches,
    Signature,
    batched_dataset,
)
from input_pipeline.permutation import example_index
from input_pipeline.process_batches import ProcessBatches
from input_pipeline.transforms import TrainGeometry, transform_example

_ENDLESS = 2**63 - 1
"""The largest number that tf.data counts to."""


def make_train_dataset(
    source: PreparedSource,
    *,
    global_batch_size: int,
    seed: int,
    start_step: int,
    geometry: TrainGeometry,
    num_workers: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    per_example: Mapping[str, np.ndarray] | None = None,
    with_positions: bool = False,
) -> Dataset:
    """This process's rows of the global batches of start_step, start_step + 1, ...

    image             uint8 [b, crop_size, crop_size, 3]
    label_map         int32 [b, crop_size, crop_size], class ids or IGNORE
    present_classes   int32 [b, g], classes of the cropped label map, ascending, then -1
    proposals         uint8 [b, n, grid, grid], soft masks, then zeros
    proposal_valid    bool  [b, n], false where `proposals` is padding or nothing of a proposal is
                      left in the crop; such proposals are zeros

    and of each array of `per_example`, which has a row for every example of the source, the rows
    of these examples, under the same name; `with_positions` also

    position          int32 [b], of the rows in the stream, modulo 2**31

    `num_workers` examples are read and transformed at a time, as many as there are CPUs unless
    given. A ValueError of the source reaches readers of `NumpyBatches` unchanged; the same is
    raised for an example that contradicts itself or its source.
    """
    stream = _Stream(
        source,
        global_batch_size,
        seed,
        start_step,
        geometry,
        process_index,
        process_count,
        per_example,
        with_positions,
    )
    return batched_dataset(*stream.parts(), num_workers)


def read_train_batches(
    source: PreparedSource, *, num_processes: int, num_workers: int | None = None, **stream: Any
) -> Iterator[Arrays]:
    """The batches of make_train_dataset(source, **stream), whatever computes them; has `close`.

    With several processes, `num_workers` threads of them all compute examples, source and
    `per_example` are pickled and kept by each, and TensorFlow takes no part.

    Raises:
        ChildProcessError: by `next`, a process was killed.
    """
    if num_processes == 1:
        return NumpyBatches(make_train_dataset(source, num_workers=num_workers, **stream))
    return ProcessBatches(*_Stream(source, **stream).parts(), num_processes, num_workers)


def make_unaugmented_dataset(
    source: PreparedSource,
    indices: Sequence[int],
    *,
    batch_size: int,
    geometry: TrainGeometry,
    num_workers: int | None = None,
) -> Dataset:
    """The examples at given indices as they are in every epoch without augmentation.

    Keys and ValueErrors are those of `make_train_dataset`, and ValueError where `geometry` says
    to augment or the indices do not fill batches.
    """
    if geometry.augment:
        raise ValueError("geometry: expected augment=False, with it every epoch is another")
    if len(indices) % batch_size:
        raise ValueError(
            f"indices: expected a multiple of batch_size={batch_size}, got {len(indices)}"
        )

    def example(number: int) -> Arrays:
        # Nothing is drawn, so that any seed will do.
        return _transformed(source, int(indices[number]), (0, 0), geometry)

    signature = _signature(source, geometry)
    return batched_dataset(range(len(indices)), example, signature, batch_size, num_workers)


def example_ids_at(
    source: PreparedSource, step: int, global_batch_size: int, seed: int
) -> list[str]:
    """Ids of the examples in the global batch of a step, from arithmetic alone."""
    positions = step * global_batch_size + np.arange(global_batch_size)
    indices = example_index(positions, len(source), seed)
    return [source.example_ids[index] for index in indices]


@dataclass(frozen=True)
class _Stream:
    """The rows that a process reads, by their number, counted from step 0 on."""

    source: PreparedSource
    global_batch_size: int
    seed: int
    start_step: int
    geometry: TrainGeometry
    process_index: int = 0
    process_count: int = 1
    per_example: Mapping[str, np.ndarray] | None = None
    with_positions: bool = False

    def __post_init__(self):
        check_batching(self.source, self.global_batch_size, self.process_index, self.process_count)
        if self.start_step < 0:
            raise ValueError(f"start_step: expected 0 or more, got {self.start_step}")
        for name, rows in (self.per_example or {}).items():
            if len(rows) != len(self.source):
                raise ValueError(
                    f"per_example: expected a row of {name} for each of the {len(self.source)} "
                    f"examples, got {len(rows)}"
                )

    def parts(self) -> tuple[range, Callable[[int], Arrays], Signature, int]:
        """Numbers, what makes a row of one, what a row holds, and rows of a batch."""
        local_batch_size = self.global_batch_size // self.process_count
        numbers = range(self.start_step * local_batch_size, _ENDLESS)
        extra = (self.per_example or {}).items()
        signature = _signature(self.source, self.geometry) | {
            name: (rows.dtype.type, rows.shape[1:]) for name, rows in extra
        }
        if self.with_positions:
            signature["position"] = (np.int32, ())
        return numbers, self.row, signature, local_batch_size

    def row(self, number: int) -> Arrays:
        local_batch_size = self.global_batch_size // self.process_count
        step, row = divmod(number, local_batch_size)
        position = step * self.global_batch_size + self.process_index * local_batch_size + row
        index = int(example_index(np.array([position]), len(self.source), self.seed)[0])
        extra = {name: rows[index] for name, rows in (self.per_example or {}).items()}
        if self.with_positions:
            extra["position"] = np.int32(position % 2**31)
        return _transformed(self.source, index, (self.seed, position), self.geometry) | extra


def _signature(source: PreparedSource, geometry: TrainGeometry) -> Signature:
    size = geometry.crop_size
    return {
        "image": (np.uint8, (size, size, 3)),
        "label_map": (np.int32, (size, size)),
        "present_classes": (np.int32, (source.max_classes_per_image,)),
        "proposals": (np.uint8, (source.num_proposals, *geometry.proposal_grid)),
        "proposal_valid": (np.bool_, (source.num_proposals,)),
    }


def _transformed(
    source: PreparedSource, index: int, seed: tuple[int, int], geometry: TrainGeometry
) -> Arrays:
    """The example at an index as a row of a batch."""
    example = source[index]
    check_example(example, source)
    transformed = transform_example(example, seed, geometry, source.num_proposals)
    classes = _classes_present(transformed.label_map, len(source.class_names))
    if len(classes) > source.max_classes_per_image:
        raise ValueError(
            f"{example.example_id}: has {len(classes)} classes, but its source says that no "
            f"example has more than {source.max_classes_per_image}"
        )
    present = np.full(source.max_classes_per_image, -1, np.int32)
    present[: len(classes)] = classes
    return {**transformed._asdict(), "present_classes": present}


def _classes_present(
    label_map: Int32[np.ndarray, "h w"], num_classes: int
) -> Int32[np.ndarray, " k"]:
    # Counting every pixel takes several times as long as finding where runs of them end.
    flat = label_map.ravel()
    ends = np.append(flat[:-1][flat[1:] != flat[:-1]], flat[-1])
    # IGNORE is -1, so that it falls into the first bin, which is dropped.
    pixels = np.bincount(ends + 1, minlength=num_classes + 1)[1:]
    return np.flatnonzero(pixels).astype(np.int32)
