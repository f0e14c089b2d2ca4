"""Multi-scale deformable attention: every query reads a few points of every level.

The official operator is a CUDA kernel. Here a point's four neighbours are rows of one table that
a gather fetches, some queries at a time, so that what was fetched stays in a CPU's cache; the
backward pass fetches it again instead of keeping it. On TPUs it is products instead, by kernels of
sampling_kernels. Values are those of torch's grid_sample (bilinear, zeros outside,
align_corners=False), at the borders, too.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maft_jax.models.generators.projections import linear
from maft_jax.models.generators.sampling_kernels import LevelSizes, sample_by_products
from maft_jax.runtime.mesh_axes import OVER_IMAGES

_QUERIES_AT_ONCE = 128
"""Of every image: 5 MB of float32 for 8 heads of 32 that read 12 points."""


def sample_levels(
    values: Float[Array, "b t a d"],
    level_sizes: LevelSizes,
    locations: Float[Array, "b q a level point 2"],
    weights: Float[Array, "b q a level point"],
    mesh: Mesh | None = None,
) -> Float[Array, "b q a d"]:
    """Sums over all levels' points of weight times the value there.

    Args:
        locations: (x, y) in shares of the level's width and height: 0 and 1 are its outer edges.
        mesh: over which jit spreads the images; needed on several TPUs, but within shard_map.

    Raises:
        ValueError: the levels do not have as many tokens as there are values.
    """
    tokens = sum(height * width for height, width in level_sizes)
    if tokens != values.shape[1]:
        raise ValueError(
            f"levels of {list(level_sizes)} have {tokens} tokens; got values of {values.shape[1]}"
        )
    x, y = in_pixels(locations, level_sizes)
    by_products, by_gather = (
        functools.partial(sample, level_sizes=level_sizes)
        for sample in (sample_by_products, sample_by_gather)
    )
    if mesh is not None:  # XLA cannot split a kernel by itself
        by_products = jax.shard_map(
            by_products, mesh=mesh, in_specs=OVER_IMAGES, out_specs=OVER_IMAGES, check_vma=False
        )
    sample = functools.partial(lax.platform_dependent, tpu=by_products, default=by_gather)
    return jax.checkpoint(sample)(values, x, y, weights)  # or each keeps what the other needs


def in_pixels(
    locations: Float[Array, "b q a level point 2"], level_sizes: LevelSizes
) -> tuple[Float[Array, "b q a level point"], Float[Array, "b q a level point"]]:
    """x and y of locations, 0 in the middle of their level's first pixel."""
    sides = np.array(level_sizes, np.int32)[:, None]
    x, y = (
        # far outside nothing counts, and integers do not overflow
        jnp.clip(locations[..., axis] * side - 0.5, -2, side + 1)
        for axis, side in enumerate((sides[..., 1], sides[..., 0]))
    )
    return x, y


def sample_by_gather(
    values: Float[Array, "b t a d"],
    x: Float[Array, "b q a level point"],
    y: Float[Array, "b q a level point"],
    weights: Float[Array, "b q a level point"],
    level_sizes: LevelSizes,
) -> Float[Array, "b q a d"]:
    """See sample_levels, and in_pixels for x and y."""
    queries = x.shape[1]
    table = values.reshape(len(values), -1, values.shape[-1])
    chunk = min(_QUERIES_AT_ONCE, queries)
    num_chunks = math.ceil(queries / chunk)

    def in_chunks(x):
        padding = [(0, 0), (0, num_chunks * chunk - queries)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding).reshape(len(x), num_chunks, chunk, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    @jax.checkpoint
    def one_chunk(part):
        rows, shares = _neighbours(*part, level_sizes)
        fetched = jax.vmap(lambda table, rows: table[rows])(table, rows)
        return jnp.einsum("bqas,bqasd->bqad", shares.astype(table.dtype), fetched)

    chunks = lax.map(one_chunk, (in_chunks(x), in_chunks(y), in_chunks(weights)))
    return jnp.moveaxis(chunks, 0, 1).reshape(len(values), -1, *chunks.shape[3:])[:, :queries]


def _neighbours(
    x: Float[Array, "b q a level point"],
    y: Float[Array, "b q a level point"],
    weights: Float[Array, "b q a level point"],
    level_sizes: LevelSizes,
) -> tuple[Int[Array, "b q a sample"], Float[Array, "b q a sample"]]:
    """Rows of the table [token * head] that points lie between, and what each counts.

    A neighbour outside of its level counts 0.
    """
    sizes = np.array(level_sizes, np.int32)[:, None]
    starts = np.cumsum([0, *(height * width for height, width in level_sizes[:-1])], dtype=np.int32)
    heights, widths = sizes[..., 0], sizes[..., 1]
    left, top = jnp.floor(x), jnp.floor(y)
    head = jnp.arange(x.shape[2], dtype=jnp.int32)[:, None, None]
    rows, shares = [], []
    for dy, share_y in ((0, top + 1 - y), (1, y - top)):
        for dx, share_x in ((0, left + 1 - x), (1, x - left)):
            column, row = left.astype(jnp.int32) + dx, top.astype(jnp.int32) + dy
            inside = (column >= 0) & (column < widths) & (row >= 0) & (row < heights)
            token = starts[:, None] + row * widths + column
            rows.append(jnp.where(inside, token, 0) * x.shape[2] + head)
            shares.append(jnp.where(inside, share_x * share_y, 0) * weights)
    shape = (*x.shape[:3], -1)
    return jnp.stack(rows, -1).reshape(shape), jnp.stack(shares, -1).reshape(shape)


def cell_centres(level_sizes: Sequence[tuple[int, int]]) -> Float[np.ndarray, "t 2"]:
    """(x, y) of every token's own cell, in shares of its level."""
    centres = []
    for height, width in level_sizes:
        y, x = np.mgrid[:height, :width]
        centres.append(np.stack([(x + 0.5) / width, (y + 0.5) / height], -1).reshape(-1, 2))
    return np.concatenate(centres).astype(np.float32)


def compass_bias(heads: int, levels: int, points: int) -> Float[np.ndarray, " features"]:
    """Where points lie before training: a direction for each head, one pixel apart."""
    angle = np.arange(heads) * 2 * np.pi / heads
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    direction /= np.abs(direction).max(-1, keepdims=True)
    distance = np.arange(1, points + 1)[:, None]
    offsets = np.broadcast_to(direction[:, None, None] * distance, (heads, levels, points, 2))
    return offsets.reshape(-1).astype(np.float32)


class DeformableAttention(nn.Module):
    """Offsets and weights of the points are linear in the query; weights are a softmax over all.

    Offsets are in pixels of the level that they lie in. Where points are is computed in float32.
    """

    heads: int
    points: int
    dtype: DTypeLike
    mesh: Mesh | None = None
    """See sample_levels."""

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "b q d"],
        references: Float[Array | np.ndarray, "q 2"],
        values: Float[Array, "b t d"],
        level_sizes: LevelSizes,
    ) -> Float[Array, "b q d"]:
        width, levels = queries.shape[-1], len(level_sizes)
        split = (*queries.shape[:2], self.heads, levels)
        projected = linear(width, self.dtype, name="value_proj")(values)
        projected = projected.reshape(*values.shape[:2], self.heads, -1)
        bias = compass_bias(self.heads, levels, self.points)
        fresh = {"kernel_init": nn.initializers.zeros}
        offsets = linear(
            len(bias),
            jnp.float32,
            name="sampling_offsets",
            bias_init=lambda key, shape, dtype: jnp.asarray(bias, dtype),
            **fresh,
        )(queries)
        pixels = np.array([(width, height) for height, width in level_sizes], np.float32)
        locations = (
            references[:, None, None, None]
            + offsets.reshape(*split, self.points, 2) / pixels[:, None]
        )
        weights = linear(len(bias) // 2, jnp.float32, name="attention_weights", **fresh)(queries)
        weights = jax.nn.softmax(weights.reshape(*split[:3], -1))
        weights = weights.reshape(*split, self.points)
        sampled = sample_levels(projected, level_sizes, locations, weights, self.mesh)
        merged = sampled.reshape(*queries.shape[:2], -1)
        return linear(width, self.dtype, name="output_proj")(merged)
