"""Counts of (predicted class, labelled class): of a batch on the device, and in all on the host."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Int64

from input_pipeline.examples import IGNORE

_MAX_PIXELS = 2**31 - 1


def confusion_matrix(
    predicted: Int[Array, "b h w"], labels: Int[Array, "b h w"], num_classes: int
) -> Int32[Array, "c1 c1"]:
    """Pixels of a batch by predicted class (row) and label (column), exactly.

    The last row and the last column are IGNORE (-1): pixels without a prediction, and pixels
    without a label. A pixel where either map holds anything outside -1 .. num_classes - 1 is
    counted nowhere, so the sum is the number of pixels only if there is none; `ConfusionTotal.add`
    checks that. Where the batch is sharded, each device counts its rows and the counts are added.

    Raises:
        ValueError: more than 2**31 - 1 pixels, which int32 may not count.
    """
    num_pixels = math.prod(predicted.shape)
    if num_pixels > _MAX_PIXELS:
        raise ValueError(
            f"confusion_matrix: expected at most {_MAX_PIXELS:,} pixels, which is what int32 "
            f"counts, got {num_pixels:,} (shape {predicted.shape}); evaluate fewer images at once"
        )
    predicted, labels = predicted.astype(jnp.int32), labels.astype(jnp.int32)
    size = num_classes + 1
    known = _is_known(predicted, num_classes) & _is_known(labels, num_classes)
    row, column = (jnp.where(x == IGNORE, num_classes, x) for x in (predicted, labels))
    # One index per pixel: scatter-add counts these seven times as fast as (row, column) on a CPU.
    cell = jnp.where(known, row * size + column, size * size)
    counts = jnp.zeros(size * size, jnp.int32).at[cell].add(1, mode="drop")
    return counts.reshape(size, size)


def _is_known(values: Int32[Array, "b h w"], num_classes: int) -> Array:
    return (values >= IGNORE) & (values < num_classes)


class ConfusionTotal:
    """Counts of many batches, in int64; its state can be saved and taken up again."""

    def __init__(self, num_classes: int):
        self._counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    @property
    def num_classes(self) -> int:
        return len(self._counts) - 1

    @property
    def confusion(self) -> Int64[np.ndarray, "c1 c1"]:
        """A copy of the counts; rows predicted, columns labels, both with IGNORE last.

        Pixels with neither a label nor a prediction are not among them, so that the counts do not
        depend on how images were padded into batches.
        """
        return self._counts.copy()

    def add(self, matrix: Int[Array | np.ndarray, "c1 c1"], num_pixels: int | None = None) -> None:
        """Adds the counts of a batch, which must be of `num_pixels` pixels if that is given.

        Raises:
            ValueError: another size, or pixels are missing: the label map or the prediction held
                values that are neither a class nor IGNORE.
        """
        matrix = self._checked(np.asarray(matrix), "ConfusionTotal.add").astype(np.int64)
        if num_pixels is not None and (counted := int(matrix.sum())) != num_pixels:
            raise ValueError(
                f"ConfusionTotal.add: {num_pixels - counted:,} of {num_pixels:,} pixels have a "
                f"label or a prediction outside -1 .. {self.num_classes - 1}; check that the "
                "labels are contiguous class ids of this class list, with -1 for unlabelled pixels"
            )
        matrix[-1, -1] = 0
        self._counts += matrix

    def merge(self, other: "ConfusionTotal") -> None:
        """Adds the counts of other images.

        Raises:
            ValueError: they are of another number of classes.
        """
        self._counts += self._checked(other.confusion, "ConfusionTotal.merge")

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` takes; arrays, to be saved with numpy."""
        return {"confusion": self.confusion}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], num_classes: int) -> "ConfusionTotal":
        """Takes up where `state` was taken.

        Raises:
            ValueError: the state is of another number of classes, or is no such state.
        """
        if "confusion" not in state:
            raise ValueError(
                f"ConfusionTotal.from_state: expected the array 'confusion', got {sorted(state)}"
            )
        total = cls(num_classes)
        total._counts += total._checked(state["confusion"], "ConfusionTotal.from_state")
        return total

    def _checked(self, matrix: np.ndarray, where: str) -> np.ndarray:
        if matrix.shape != self._counts.shape or not np.issubdtype(matrix.dtype, np.integer):
            raise ValueError(
                f"{where}: expected integer counts of {self.num_classes} classes and IGNORE, shape "
                f"{self._counts.shape}, got {matrix.dtype} {matrix.shape}; was it counted with "
                "another class list?"
            )
        if (matrix < 0).any():
            raise ValueError(f"{where}: expected counts, got negative numbers")
        return matrix
