"""Bilinear resampling whose sizes are known only when the program runs.

Images of many sizes lie in arrays of few shapes, each in the top left corner. The taps here are
those of models/resize.py, bit for bit, with the sizes as arguments of the compiled program.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

Size = Int[Array, ""] | int


class Taps(NamedTuple):
    """Which samples along one axis are added up for each target sample, and with what weights."""

    indices: Int[Array, "target tap"]
    weights: Float[Array, "target tap"]


def dynamic_taps(
    index: Int[Array, " target"], source: Size, target: Size, *, align_corners: bool
) -> Taps:
    """The two taps of target samples `index`; those past the target's end repeat the last tap."""
    position = _source_position(index, source, target, align_corners)
    floor = jnp.floor(position)
    fraction = position - floor
    first = floor.astype(jnp.int32)
    indices = jnp.stack([first, first + 1], axis=-1)
    weights = jnp.stack([1 - fraction, fraction], axis=-1)
    return Taps(jnp.clip(indices, 0, source - 1), weights)


def composed_taps(outer: Taps, source: Size, target: Size, *, align_corners: bool) -> Taps:
    """Taps of a resampling from `source` to `target` samples, followed by `outer`."""
    inner = dynamic_taps(outer.indices.ravel(), source, target, align_corners=align_corners)
    weights = inner.weights.reshape(*outer.weights.shape, 2) * outer.weights[..., None]
    num_taps = 2 * outer.weights.shape[1]
    return Taps(inner.indices.reshape(-1, num_taps), weights.reshape(-1, num_taps))


def resample(x: Float[Array, "..."], taps: Taps, axis: int) -> Float[Array, "..."]:
    """Replaces `axis` of x by the target samples of `taps`."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return sum(
        jnp.take(x, taps.indices[:, tap], axis=axis) * taps.weights[:, tap].reshape(shape)
        for tap in range(taps.indices.shape[1])
    )


def _source_position(index, source, target, align_corners):
    index = index.astype(jnp.float32)
    # XLA would multiply by the rounded reciprocal of a known size, and fuse products with the
    # subtractions that follow. The barrier and the maxima make it round as torch and
    # models/resize.py do (test_taps_are_those_of_known_sizes).
    source, target = lax.optimization_barrier(
        tuple(jnp.asarray(size, jnp.float32) for size in (source, target))
    )
    if align_corners:
        scale = jnp.where(target > 1, (source - 1) / jnp.maximum(target - 1, 1), 0)
        return jnp.maximum(index * scale, 0)
    return jnp.maximum((source / target) * (index + 0.5), 0.5) - 0.5
