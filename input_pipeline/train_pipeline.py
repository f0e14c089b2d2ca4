"""Endless batches of training examples: a pure function of (seed, step).

Row i of the global batch of a step has position = step * global_batch_size + i in an endless
stream. The position alone decides which example is read (`permutation.example_index`) and, with
the seed, how it is augmented, so that resuming at any step is exact and costs nothing.
"""

import atexit
import os
import weakref
from collections.abc import Generator, Iterator

import numpy as np
import tensorflow as tf

from input_pipeline.examples import PreparedSource
from input_pipeline.permutation import example_index
from input_pipeline.transforms import TrainGeometry, transform_example

tf.config.set_visible_devices([], "GPU")

_PREFETCHED_BATCHES = 2

_open_pipelines: weakref.WeakSet[Generator] = weakref.WeakSet()


@atexit.register
def _close_pipelines() -> None:
    """Ends reading while Python still runs: a thread inside `fetch` would block a later exit."""
    for batches in list(_open_pipelines):
        batches.close()


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
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's rows of the global batches of start_step, start_step + 1, ...

    image             uint8 [b, crop_size, crop_size, 3]
    label_map         int32 [b, crop_size, crop_size], class ids or IGNORE
    present_classes   int32 [b, g], classes of the cropped label map, ascending, then -1
    proposals         uint8 [b, n, grid, grid], soft masks, then zeros
    proposal_valid    bool  [b, n], false where `proposals` is padding

    `num_workers` examples are read and transformed at a time, as many as there are CPUs unless
    given. A ValueError of the source reaches the caller unchanged.
    """
    _check_batching(source, global_batch_size, start_step, process_index, process_count)
    num_workers = num_workers or os.cpu_count() or 1
    errors: dict[int, Exception] = {}

    def fetch(position: np.int64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            example = source[int(example_index(position, len(source), seed))]
        except Exception as error:
            errors[int(position)] = error
            raise
        return example.image, example.label_map, example.proposals

    def prepare(position: tf.Tensor) -> dict[str, tf.Tensor]:
        types = (tf.uint8, tf.int32, tf.uint8)
        image, label_map, proposals = tf.numpy_function(fetch, [position], types)
        image = tf.ensure_shape(image, [None, None, 3])
        label_map = tf.ensure_shape(label_map, [None, None])
        proposals = tf.ensure_shape(proposals, [None, None, None])
        row = transform_example(image, label_map, proposals, tf.stack([seed, position]), geometry)
        return _pad_example(*row, source)

    local_batch_size = global_batch_size // process_count
    first_row = process_index * local_batch_size

    def position_of(row: tf.Tensor) -> tf.Tensor:
        step, i = row // local_batch_size, row % local_batch_size
        return step * global_batch_size + first_row + i

    dataset = (
        tf.data.Dataset.range(start_step * local_batch_size, np.iinfo(np.int64).max)
        .map(position_of)
        .map(prepare, num_parallel_calls=num_workers, deterministic=True)
        .batch(local_batch_size, drop_remainder=True)
        .prefetch(_PREFETCHED_BATCHES)
    )
    batches = _raise_original_error(dataset, errors)
    _open_pipelines.add(batches)
    return batches


def example_ids_at(
    source: PreparedSource, step: int, global_batch_size: int, seed: int
) -> list[str]:
    """Ids of the examples in the global batch of a step, from arithmetic alone."""
    positions = step * global_batch_size + np.arange(global_batch_size)
    indices = example_index(positions, len(source), seed)
    return [source.example_ids[index] for index in indices]


def _pad_example(
    image: tf.Tensor, label_map: tf.Tensor, proposals: tf.Tensor, source: PreparedSource
) -> dict[str, tf.Tensor]:
    max_proposals = source.num_proposals
    max_classes = max(1, source.max_classes_per_image)
    num_proposals = tf.shape(proposals)[0]
    padded = tf.pad(proposals, [[0, max_proposals - num_proposals], [0, 0], [0, 0]])
    # IGNORE is -1, so that it falls into the first bin, which is dropped.
    pixels = tf.math.bincount(
        tf.reshape(label_map + 1, [-1]), minlength=len(source.class_names) + 1
    )[1:]
    present = tf.cast(tf.where(pixels > 0)[:, 0], tf.int32)
    present = tf.pad(present, [[0, max_classes - tf.shape(present)[0]]], constant_values=-1)
    return {
        "image": image,
        "label_map": label_map,
        "present_classes": tf.ensure_shape(present, [max_classes]),
        "proposals": tf.ensure_shape(padded, [max_proposals, *proposals.shape[1:]]),
        "proposal_valid": tf.range(max_proposals) < num_proposals,
    }


def _raise_original_error(
    dataset: tf.data.Dataset, errors: dict[int, Exception]
) -> Generator[dict[str, np.ndarray], None, None]:
    """Batches as numpy arrays; TensorFlow's wrapping of an error in `fetch` is taken off."""
    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.OpError:
        if not errors:
            raise
        raise errors[min(errors)] from None


def _check_batching(
    source: PreparedSource,
    global_batch_size: int,
    start_step: int,
    process_index: int,
    process_count: int,
) -> None:
    if global_batch_size < 1 or global_batch_size % process_count:
        raise ValueError(
            f"global_batch_size: expected a positive multiple of the {process_count} processes, "
            f"got {global_batch_size}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: expected 0 .. {process_count - 1}, got {process_index}")
    if start_step < 0:
        raise ValueError(f"start_step: expected 0 or more, got {start_step}")
    if len(source) == 0 or source.num_proposals < 1:
        raise ValueError(
            f"source: expected at least one example and one proposal, got {len(source)} examples "
            f"and {source.num_proposals} proposals"
        )
