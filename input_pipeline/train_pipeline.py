"""Endless batches of training examples: a pure function of (seed, step).

Row i of the global batch of a step has position = step * global_batch_size + i in an endless
stream. The position alone decides which example is read (`permutation.example_index`) and, with
the seed, how it is augmented, so that resuming at any step is exact and costs nothing.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count

import numpy as np
from jaxtyping import Int32

from input_pipeline.example_checks import check_batching, check_example
from input_pipeline.examples import PreparedSource
from input_pipeline.permutation import example_index
from input_pipeline.transforms import TrainGeometry, TransformedExample, transform_example
from input_pipeline.worker_threads import BatchWork, computed_ahead


def make_train_batches(
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
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's rows of the global batches of start_step, start_step + 1, ...

    image             uint8 [b, crop_size, crop_size, 3]
    label_map         int32 [b, crop_size, crop_size], class ids or IGNORE
    present_classes   int32 [b, g], classes of the cropped label map, ascending, then -1
    proposals         uint8 [b, n, grid, grid], soft masks, then zeros
    proposal_valid    bool  [b, n], false where `proposals` is padding or nothing of a proposal is
                      left in the crop; such proposals are zeros

    and of each array of `per_example`, which has a row for every example of the source, the rows
    of these examples, under the same name.

    `num_workers` examples are read and transformed at a time, as many as there are CPUs unless
    given. A ValueError of the source reaches the caller unchanged; the same is raised for an
    example that contradicts itself or its source.
    """
    check_batching(source, global_batch_size, process_index, process_count)
    if start_step < 0:
        raise ValueError(f"start_step: expected 0 or more, got {start_step}")
    per_example = per_example or {}
    for name, rows in per_example.items():
        if len(rows) != len(source):
            raise ValueError(
                f"per_example: expected a row of {name} for each of the {len(source)} examples, "
                f"got {len(rows)}"
            )
    local_batch_size = global_batch_size // process_count

    def work(step: int) -> BatchWork:
        arrays = _empty_batch(source, local_batch_size, geometry)
        first = step * global_batch_size + process_index * local_batch_size
        indices = example_index(first + np.arange(local_batch_size), len(source), seed)
        arrays |= {name: rows[indices] for name, rows in per_example.items()}

        def fill_row(row: int) -> None:
            _fill_row(arrays, row, source, int(indices[row]), (seed, first + row), geometry)

        return BatchWork(arrays, local_batch_size, fill_row)

    return computed_ahead(map(work, count(start_step)), num_workers or os.cpu_count() or 1)


def make_unaugmented_batches(
    source: PreparedSource,
    index_batches: Iterable[Sequence[int]],
    *,
    geometry: TrainGeometry,
    num_workers: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the examples at given indices as they are in every epoch without augmentation.

    Keys and ValueErrors are those of `make_train_batches`, and ValueError where `geometry` says
    to augment.
    """
    if geometry.augment:
        raise ValueError("geometry: expected augment=False, with it every epoch is another")

    def work(indices: Sequence[int]) -> BatchWork:
        arrays = _empty_batch(source, len(indices), geometry)

        def fill_row(row: int) -> None:
            # Nothing is drawn, so that any seed will do.
            _fill_row(arrays, row, source, int(indices[row]), (0, 0), geometry)

        return BatchWork(arrays, len(indices), fill_row)

    return computed_ahead(map(work, index_batches), num_workers or os.cpu_count() or 1)


def example_ids_at(
    source: PreparedSource, step: int, global_batch_size: int, seed: int
) -> list[str]:
    """Ids of the examples in the global batch of a step, from arithmetic alone."""
    positions = step * global_batch_size + np.arange(global_batch_size)
    indices = example_index(positions, len(source), seed)
    return [source.example_ids[index] for index in indices]


def _empty_batch(
    source: PreparedSource, rows: int, geometry: TrainGeometry
) -> dict[str, np.ndarray]:
    size = geometry.crop_size
    return {
        "image": np.empty((rows, size, size, 3), np.uint8),
        "label_map": np.empty((rows, size, size), np.int32),
        "present_classes": np.full((rows, source.max_classes_per_image), -1, np.int32),
        "proposals": np.zeros((rows, source.num_proposals, *geometry.proposal_grid), np.uint8),
        "proposal_valid": np.zeros((rows, source.num_proposals), bool),
    }


def _fill_row(
    arrays: dict[str, np.ndarray],
    row: int,
    source: PreparedSource,
    index: int,
    seed: tuple[int, int],
    geometry: TrainGeometry,
) -> None:
    """Reads and transforms the example at an index into a row of `_empty_batch`."""
    example = source[index]
    check_example(example, source)
    out = TransformedExample(*(arrays[key][row] for key in TransformedExample._fields))
    transform_example(example, seed, geometry, out)
    classes = _classes_present(out.label_map, len(source.class_names))
    if len(classes) > source.max_classes_per_image:
        raise ValueError(
            f"{example.example_id}: has {len(classes)} classes, but its source says that no "
            f"example has more than {source.max_classes_per_image}"
        )
    arrays["present_classes"][row, : len(classes)] = classes


def _classes_present(
    label_map: Int32[np.ndarray, "h w"], num_classes: int
) -> Int32[np.ndarray, " k"]:
    # IGNORE is -1, so that it falls into the first bin, which is dropped.
    pixels = np.bincount(label_map.ravel() + 1, minlength=num_classes + 1)[1:]
    return np.flatnonzero(pixels).astype(np.int32)
