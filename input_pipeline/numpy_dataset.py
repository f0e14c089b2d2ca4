"""tf.data over a function that makes numpy arrays of a number: in order, in parallel, ahead.

TensorFlow is imported when the first data set is made, and does nothing to the arrays but put
them together: what an example is stays numpy and Pillow.
"""

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

if TYPE_CHECKING:
    import tensorflow as tf

BATCHES_AHEAD = 2

Dataset = "tf.data.Dataset"
Arrays = dict[str, Shaped[np.ndarray, "..."]]
Signature = Mapping[str, tuple[type, tuple[int | None, ...]]]
"""Dtype and shape of each array of an example; None where it differs from batch to batch."""

_errors: "weakref.WeakKeyDictionary[tf.data.Dataset, dict[int, BaseException]]" = (
    weakref.WeakKeyDictionary()
)
"""What the function of a data set raised, by number: TensorFlow would pass on the words alone."""


def batched_dataset(
    numbers: range,
    example: Callable[[int], Arrays],
    signature: Signature,
    batch_size: int,
    num_workers: int | None = None,
) -> Dataset:
    """The data set of batches of `example(number)`, `batch_size` numbers each, in order.

    `num_workers` threads of each iterator compute examples, as many as there are CPUs unless
    given; they stay about two batches ahead of the reader, and as many examples as there are
    workers may wait for one before them that takes longer. What `example` raises reaches readers
    of `NumpyBatches` as it is, and others as an error of TensorFlow with its text.
    """
    import tensorflow as tf

    # The devices belong to JAX.
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    num_workers = num_workers or os.cpu_count() or 1
    errors: dict[int, BaseException] = {}
    dtypes = [dtype for dtype, _ in signature.values()]

    def arrays(number: np.ndarray) -> list[np.ndarray]:
        try:
            made = example(int(number))
        except BaseException as error:
            errors[int(number)] = error
            # A StopIteration would end the data set without a word.
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        return [made[name] for name in signature]

    def tensors(number: "tf.Tensor") -> dict[str, "tf.Tensor"]:
        values = tf.numpy_function(arrays, [number], dtypes)
        for value, (_, shape) in zip(values, signature.values(), strict=True):
            value.set_shape(shape)
        return dict(zip(signature, values, strict=True))

    dataset = tf.data.Dataset.range(numbers.start, numbers.stop, numbers.step)
    dataset = dataset.map(tensors, 2 * num_workers, deterministic=True)  # what waits counts, too
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(BATCHES_AHEAD)
    options = tf.data.Options()
    # Else more batches are computed ahead, and kept in memory, than is said here.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.threading.private_threadpool_size = num_workers
    dataset = dataset.with_options(options)
    _errors[dataset] = errors
    return dataset


class NumpyBatches(Iterator[Arrays]):
    """The batches of a data set as numpy arrays, which cannot be written to.

    Threads end when this is closed or forgotten, and with the program. What an example's function
    raised is raised here unchanged when its batch's turn comes, the first one's if several failed.
    """

    def __init__(self, dataset: Dataset):
        self._errors = _errors.get(dataset, {})
        self._reader = [dataset.as_numpy_iterator()]
        # Threads that still call Python when its interpreter ends would wait for each other.
        self.close = weakref.finalize(self, self._reader.clear)

    def __next__(self) -> Arrays:
        if not self._reader:
            raise StopIteration
        try:
            return next(self._reader[0])
        except StopIteration:
            raise
        except Exception:
            if not self._errors:
                raise
            raise self._errors[min(self._errors)] from None
