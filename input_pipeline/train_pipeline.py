"""Endless batches of training examples: a pure function of (seed, step).

Row i of the global batch of a step has position = step * global_batch_size + i in an endless
stream. The position alone decides which example is read (`permutation.example_index`) and, with
the seed, how it is augmented, so that resuming at any step is exact and costs nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from input_pipeline.example_checks import check_batching, check_example
from input_pipeline.examples import PreparedSource
from input_pipeline.numpy_dataset import Arrays, Dataset, Signature, batched_dataset
from input_pipeline.permutation import example_index
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
) -> Dataset:
    """This process's rows of the global batches of start_step, start_step + 1, ...

    image             uint8 [b, crop_size, crop_size, 3]
    label_map         int32 [b, crop_size, crop_size], class ids or IGNORE
    present_classes   int32 [b, g], classes of the cropped label map, ascending, then -1
    proposals         uint8 [b, n, grid, grid], soft masks, then zeros
    proposal_valid    bool  [b, n], false where `proposals` is padding or nothing of a proposal is
                      left in the crop; such proposals are zeros

    and of each array of `per_example`, which has a row for every example of the source, the rows
    of these examples, under the same name.

    `num_workers` examples are read and transformed at a time, as many as there are CPUs unless
    given. A ValueError of the source reaches readers of `NumpyBatches` unchanged; the same is
    raised for an example that contradicts itself or its source.
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

    def example(number: int) -> Arrays:
        """Of the number-th row that this process would read from step 0 on."""
        step, row = divmod(number, local_batch_size)
        position = step * global_batch_size + process_index * local_batch_size + row
        index = int(example_index(np.array([position]), len(source), seed)[0])
        extra = {name: rows[index] for name, rows in per_example.items()}
        return _transformed(source, index, (seed, position), geometry) | extra

    extra = {name: (rows.dtype.type, rows.shape[1:]) for name, rows in per_example.items()}
    return batched_dataset(
        range(start_step * local_batch_size, _ENDLESS),
        example,
        _signature(source, geometry) | extra,
        local_batch_size,
        num_workers,
    )


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
    # IGNORE is -1, so that it falls into the first bin, which is dropped.
    pixels = np.bincount(label_map.ravel() + 1, minlength=num_classes + 1)[1:]
    return np.flatnonzero(pixels).astype(np.int32)
