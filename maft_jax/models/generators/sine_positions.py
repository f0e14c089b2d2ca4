"""The sine position embedding of DETR and its descendants, a constant of a map's size."""

import functools

import numpy as np
from jaxtyping import Float32

_TEMPERATURE = 10_000.0
_EPSILON = 1e-6


@functools.lru_cache(maxsize=64)
def sine_positions(height: int, width: int, features: int) -> Float32[np.ndarray, "h w d"]:
    """Half of the features tell the row and half the column, sine and cosine by turns.

    Rows and columns count from 1 and are scaled to one period of the slowest sine.
    """
    half = features // 2
    frequency = _TEMPERATURE ** (2 * (np.arange(half) // 2) / half)

    def along(size: int) -> np.ndarray:
        angle = np.arange(1, size + 1)[:, None] / (size + _EPSILON) * 2 * np.pi / frequency
        return np.where(np.arange(half) % 2 == 0, np.sin(angle), np.cos(angle))

    table = np.empty((height, width, 2 * half), np.float32)
    table[..., :half] = along(height)[:, None]
    table[..., half:] = along(width)
    table.setflags(write=False)
    return table
