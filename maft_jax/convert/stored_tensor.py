"""Tensors that are known by shape and dtype, and read when somebody needs their values.

A conversion checks everything before it reads anything, and holds one tensor at a time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt

CONVERTIBLE_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))
"""What float32 holds exactly."""


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a file, or one that will be computed from such."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    """Its values, of this shape and dtype; perhaps a view of memory that is not the caller's."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def cast(self, dtype: npt.DTypeLike) -> "StoredTensor":
        """The same values in another dtype, rounded if it must be.

        Raises:
            ValueError: when it is read, if finite values would overflow.
        """
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        return StoredTensor(self.shape, dtype, lambda: _rounded(self.read(), dtype))


def in_memory(tensors: Mapping) -> dict[str, StoredTensor]:
    """Arrays that are there already, by the same names; JAX's stay on their device until read."""
    arrays = {
        name: value if hasattr(value, "dtype") else np.asarray(value)
        for name, value in tensors.items()
    }
    return {
        name: StoredTensor(array.shape, np.dtype(array.dtype), functools.partial(np.asarray, array))
        for name, array in arrays.items()
    }


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype)
    # bfloat16 and float32 share their range; isfinite makes copies, which only float16 needs
    if dtype == np.float16 and np.isinf(rounded).any() and np.isfinite(values).all():
        raise ValueError(
            f"values up to {np.abs(values).max()} do not fit {dtype}; write float32 instead"
        )
    return rounded
