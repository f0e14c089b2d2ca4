"""Resampling that agrees with torch.nn.functional.interpolate (no antialias).

`jax.image.resize` antialiases when it shrinks, has no align_corners and uses another cubic
kernel (a = -0.5), so it cannot reproduce CLIP as the official code runs it. Everything here is
separable: taps (indices and weights) are computed on the host, in float32 as torch does, and
gathered along one axis after the other, the last axis first. On TPUs, where gathering pixels moves
twenty times as many bytes, the taps are the rows of a matrix instead.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Method = Literal["bilinear", "bicubic"]

_CUBIC_A = np.float32(-0.75)


def resize(
    x: Float[Array, "..."],
    size: tuple[int, int],
    *,
    axes: tuple[int, int],
    method: Method = "bilinear",
    align_corners: bool = False,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> Float[Array, "..."]:
    """Resizes the (height, width) `axes` of x to `size`; the same size returns x unchanged.

    `precision` is that of the matrix products on TPUs; elsewhere the arithmetic is float32.
    """
    for axis, target in ((axes[1], size[1]), (axes[0], size[0])):
        source = x.shape[axis]
        if source != target:
            indices, weights = taps(source, target, method=method, align_corners=align_corners)
            matrix = _as_matrix(indices, weights, source)
            x = lax.platform_dependent(
                x,
                tpu=functools.partial(_multiply, axis=axis, matrix=matrix, precision=precision),
                default=functools.partial(_gather, axis=axis, indices=indices, weights=weights),
            )
    return x


def taps(
    source: int, target: int, *, method: Method, align_corners: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Source indices and weights of every target sample, each [target, 2 or 4]."""
    positions = _source_positions(source, target, align_corners)
    if method == "bilinear":
        positions = np.maximum(positions, np.float32(0))
        floor = np.floor(positions).astype(np.int32)
        fraction = positions - floor
        indices = np.stack([floor, floor + 1], axis=1)
        weights = np.stack([1 - fraction, fraction], axis=1)
    else:
        floor = np.floor(positions).astype(np.int32)
        indices = floor[:, None] + np.arange(-1, 3, dtype=np.int32)
        weights = _cubic_weights(positions - floor)
    return np.clip(indices, 0, source - 1), weights.astype(np.float32)


def bilinear_matrix(source: int, target: int, *, align_corners: bool) -> np.ndarray:
    """The [target, source] matrix of bilinear resampling."""
    indices, weights = taps(source, target, method="bilinear", align_corners=align_corners)
    return _as_matrix(indices, weights, source)


def _as_matrix(indices: np.ndarray, weights: np.ndarray, source: int) -> np.ndarray:
    matrix = np.zeros((len(indices), source), np.float32)
    np.add.at(matrix, (np.arange(len(indices))[:, None], indices), weights)
    return matrix


def _source_positions(source: int, target: int, align_corners: bool) -> np.ndarray:
    index = np.arange(target, dtype=np.float32)
    if align_corners:
        scale = np.float32(source - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
        return index * scale
    scale = np.float32(source) / np.float32(target)
    return scale * (index + np.float32(0.5)) - np.float32(0.5)


def _cubic_weights(t: np.ndarray) -> np.ndarray:
    def near(x):
        return ((_CUBIC_A + 2) * x - (_CUBIC_A + 3)) * x * x + 1

    def far(x):
        return ((_CUBIC_A * x - 5 * _CUBIC_A) * x + 8 * _CUBIC_A) * x - 4 * _CUBIC_A

    return np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], axis=1)


def _multiply(x, axis: int, matrix: np.ndarray, precision: lax.Precision):
    product = jnp.tensordot(x.astype(jnp.float32), matrix, axes=(axis, 1), precision=precision)
    return jnp.moveaxis(product, -1, axis)


def _gather(x, axis: int, indices: np.ndarray, weights: np.ndarray):
    shape = [1] * x.ndim
    shape[axis] = len(indices)
    return sum(
        jnp.take(x, indices[:, tap], axis=axis) * weights[:, tap].reshape(shape)
        for tap in range(indices.shape[1])
    )
