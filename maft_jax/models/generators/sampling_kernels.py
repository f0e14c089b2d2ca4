"""Pallas TPU kernels of deformable attention: sampling as a product with hat functions.

TPUs have no fast gather and no fast scatter, but matrix units. What a query reads of a level is a
row of A[q, yx] = sum over points of weight * hat(y - y_p) * hat(x - x_p), with hat(d) =
max(0, 1 - |d|): the bilinear weights of all pixels, zero outside of the level. A times the values
is the sample, and the transposed products are the backward pass. A is made in VMEM, for one head,
a tile of queries and a block of a level's rows at a time, and never written; blocks of rows that no
point of the tile lies in are not looked at.

Queries and pixels lie along the lanes, so that points are rows that are broadcast, and heads of
every width do.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from maft_jax.models.precision import matmul_precision

LevelSizes = tuple[tuple[int, int], ...]
"""(height, width) of the levels whose tokens follow each other, row by row."""

LANES = 128
TILE = 2 * LANES
"""Queries of a program."""
_SUBLANES = 8
_FEWEST_PIXELS = 256
"""Of a block of rows; it has at most 1024, so that VMEM has room for those of any level."""
_VMEM_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class PaddedLevel:
    """A level whose rows are whole registers, and blocks of rows whole lines of lanes."""

    start: int
    """Its first pixel among those of all padded levels."""
    height: int
    width: int

    @property
    def columns(self) -> int:
        """At most eight steps of a power of two, so that few rows make whole lines of lanes."""
        step = max(_SUBLANES, (1 << (self.width - 1).bit_length()) // 8)
        return -(-self.width // step) * step

    @property
    def block_rows(self) -> int:
        whole = LANES // math.gcd(self.columns, LANES)
        return -(-_FEWEST_PIXELS // (whole * self.columns)) * whole

    @property
    def block_pixels(self) -> int:
        return self.block_rows * self.columns

    @property
    def num_blocks(self) -> int:
        return -(-self.height // self.block_rows)

    @property
    def stop(self) -> int:
        return self.start + self.num_blocks * self.block_pixels


def padded_levels(level_sizes: LevelSizes) -> tuple[PaddedLevel, ...]:
    levels: list[PaddedLevel] = []
    for height, width in level_sizes:
        levels.append(PaddedLevel(levels[-1].stop if levels else 0, height, width))
    return tuple(levels)


def sample_by_products(
    values: Float[Array, "b t a d"],
    x: Float[Array, "b q a level point"],
    y: Float[Array, "b q a level point"],
    weights: Float[Array, "b q a level point"],
    level_sizes: LevelSizes,
    interpret: bool = False,
) -> Float[Array, "b q a d"]:
    """What sample_by_gather of deformable_attention gives, on TPUs.

    Args:
        x, y: in pixels of their level, 0 in the middle of its first, as in_pixels gives them.
        interpret: run as plain jax operations, where there is no TPU.
    """
    points = [jnp.moveaxis(part, 1, -1) for part in (x, y, weights)]
    points = [part.reshape(*part.shape[:2], -1, part.shape[-1]) for part in points]
    call = SamplingCall(level_sizes, interpret)
    sampled = _sample(call, _pad_pixels(values, level_sizes), *points)
    return jnp.moveaxis(sampled, -1, 1).astype(values.dtype)


def _pad_pixels(
    values: Float[Array, "b t a d"], level_sizes: LevelSizes
) -> Float[Array, "b a d pixels"]:
    """Tokens as pixels of the padded levels, along the lanes."""
    padded, first = [], 0
    by_pixel = jnp.moveaxis(values, 1, -1)
    for level in padded_levels(level_sizes):
        last = first + level.height * level.width
        grid = by_pixel[..., first:last].reshape(*by_pixel.shape[:3], level.height, level.width)
        rows = level.num_blocks * level.block_rows - level.height
        grid = jnp.pad(grid, [(0, 0)] * 3 + [(0, rows), (0, level.columns - level.width)])
        padded.append(grid.reshape(*by_pixel.shape[:3], -1))
        first = last
    return jnp.concatenate(padded, axis=-1)


@dataclasses.dataclass(frozen=True)
class SamplingCall:
    """Operands are values [b, a, d, pixels], and x, y and weights [b, a, level * point, q]."""

    level_sizes: LevelSizes
    interpret: bool = False

    def forward(self, values: Array, *points: Array) -> Array:
        """Samples [b, a, d, q], float32."""
        queries = points[0].shape[-1]
        padded = [_pad_queries(part, mode="edge") for part in points]
        shape = (*values.shape[:3], padded[0].shape[-1])
        (sampled,) = self._call(
            _forward,
            [values, *padded],
            [jax.ShapeDtypeStruct(shape, jnp.float32)],
            [_all_pixels(values), *map(_tile, padded)],
            [_tile(values)],
        )
        return sampled[..., :queries]

    def backward(self, values: Array, *points: Array, gradient: Array) -> tuple[Array, ...]:
        """Gradients of values, x, y and weights."""
        queries = gradient.shape[-1]
        padded = [_pad_queries(part, mode="edge") for part in points]
        operands = [values, *padded]
        specs = [_all_pixels(values), *map(_tile, padded)]
        gradient = _pad_queries(gradient.astype(values.dtype))
        of_values, *of_points = self._call(
            _backward,
            [*operands, gradient],
            [jax.ShapeDtypeStruct(part.shape, jnp.float32) for part in operands],
            [*specs, _tile(gradient)],
            specs,
        )
        return of_values.astype(values.dtype), *(part[..., :queries] for part in of_points)

    def _call(self, kernel: Callable, operands, outputs, in_specs, out_specs) -> tuple[Array, ...]:
        values, points = operands[:2]
        batch, heads, width, pixels = values.shape
        queries = points.shape[-1]
        products = 1 if kernel is _forward else 2
        cost = pl.CostEstimate(
            flops=2 * products * batch * heads * queries * pixels * width,  # if none is left out
            transcendentals=0,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in [*operands, *outputs]),
        )
        call = pl.pallas_call(
            functools.partial(kernel, padded_levels(self.level_sizes)),
            grid=(batch, heads, queries // TILE),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=outputs,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=_VMEM_BYTES,
            ),
            cost_estimate=cost,
            interpret=self.interpret,
        )
        return tuple(call(*operands))


def _pad_queries(x: Array, **how) -> Array:
    """To whole tiles; copies of the last query read no further rows."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % TILE)], **how)


def _all_pixels(x: Array) -> pl.BlockSpec:
    """Of one head; they stay while its tiles are gone through."""
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda image, head, tile: (image, head, 0, 0))


def _tile(x: Array) -> pl.BlockSpec:
    block = (1, 1, x.shape[2], TILE)
    return pl.BlockSpec(block, lambda image, head, tile: (image, head, 0, tile))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sample(call: SamplingCall, values: Array, *points: Array) -> Array:
    return call.forward(values, *points)


def _sample_forward(call, *operands):
    return _sample(call, *operands), operands


def _sample_backward(call, operands, gradient):
    return call.backward(*operands, gradient=gradient)


_sample.defvjp(_sample_forward, _sample_backward)


def _forward(levels: tuple[PaddedLevel, ...], values, x, y, weights, sampled) -> None:
    total = jnp.zeros(sampled.shape[2:], jnp.float32)
    for points, _ in _by_level(levels, x, y, weights):

        def add(block, total, points=points):
            pixels = values[0, 0, :, _lanes(points.level, block)]
            return total + _product(pixels, points.matrix(block, values.dtype), (1, 0))

        total = lax.fori_loop(*points.blocks(), add, total)
    sampled[0, 0] = total


def _backward(levels, values, x, y, weights, gradient, of_values, of_x, of_y, of_weights) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _():
        of_values[...] = jnp.zeros(of_values.shape, jnp.float32)

    outgoing = gradient[0, 0]
    for points, rows in _by_level(levels, x, y, weights):

        def add(block, sums, points=points):
            lanes = _lanes(points.level, block)
            matrix = points.matrix(block, values.dtype)
            of_values[0, 0, :, lanes] += _product(outgoing, matrix, (1, 1))
            of_matrix = _product(values[0, 0, :, lanes], outgoing, (0, 0))
            return jax.tree.map(jnp.add, sums, points.gradients(block, of_matrix))

        zeros = [[jnp.zeros((1, TILE), jnp.float32)] * len(rows)] * 3
        sums = lax.fori_loop(*points.blocks(), add, zeros)
        for ref, parts in zip((of_x, of_y, of_weights), sums, strict=True):
            for row, part in zip(rows, parts, strict=True):
                ref[0, 0, pl.ds(row, 1), :] = part


def _by_level(levels, x, y, weights) -> Iterator[tuple["TilePoints", range]]:
    """A tile's points in each level, and which rows of the operands they are."""
    number = x.shape[2] // len(levels)
    for index, level in enumerate(levels):
        rows = range(index * number, (index + 1) * number)
        parts = ([ref[0, 0, pl.ds(row, 1), :] for row in rows] for ref in (x, y, weights))
        yield TilePoints(level, *parts), rows


def _lanes(level: PaddedLevel, block: Array) -> pl.Slice:
    first = pl.multiple_of(level.start + block * level.block_pixels, LANES)
    return pl.ds(first, level.block_pixels)


@dataclasses.dataclass(frozen=True)
class TilePoints:
    """The points of a tile in one level: rows [1, q], one for each."""

    level: PaddedLevel
    x: list[Array]
    y: list[Array]
    weights: list[Array]

    def blocks(self) -> tuple[Array, Array]:
        """First and end of the blocks of rows that the points lie in, or beside."""
        level = self.level
        lowest = functools.reduce(jnp.minimum, self.y)
        highest = functools.reduce(jnp.maximum, self.y)
        first = jnp.floor(jnp.min(lowest)).astype(jnp.int32)
        last = jnp.floor(jnp.max(highest)).astype(jnp.int32) + 1
        first = lax.div(jnp.maximum(first, 0), level.block_rows)
        last = jnp.minimum(last, level.height - 1)
        return first, lax.div(last + level.block_rows, level.block_rows)

    def matrix(self, block, dtype) -> Float[Array, "pixels q"]:
        """How much each pixel of a block of rows counts."""
        columns, rows = self._columns(), self._rows(block)
        total = 0.0
        for x, y, weight in zip(self.x, self.y, self.weights, strict=True):
            total += (weight * _hat(rows - y))[:, None] * _hat(columns - x)[None]
        return total.reshape(self.level.block_pixels, -1).astype(dtype)

    def gradients(self, block, of_matrix: Float[Array, "pixels q"]) -> list[list[Array]]:
        """Of x, y and weights, from that of the matrix."""
        columns, rows = self._columns(), self._rows(block)
        grid = of_matrix.reshape(self.level.block_rows, self.level.columns, -1)
        gradients = [[], [], []]
        for x, y, weight in zip(self.x, self.y, self.weights, strict=True):
            along = jnp.sum(_hat(rows - y)[:, None] * grid, axis=0)
            across = jnp.sum(_slope(rows - y)[:, None] * grid, axis=0)
            hat = _hat(columns - x)
            of_point = (weight * along * _slope(columns - x), weight * across * hat, along * hat)
            for found, terms in zip(gradients, of_point, strict=True):
                found.append(jnp.sum(terms, axis=0, keepdims=True))
        return gradients

    def _columns(self) -> Float[Array, "columns q"]:
        shape = (self.level.columns, self.x[0].shape[1])
        return lax.broadcasted_iota(jnp.int32, shape, 0).astype(jnp.float32)

    def _rows(self, block) -> Float[Array, "rows q"]:
        shape = (self.level.block_rows, self.x[0].shape[1])
        rows = block * self.level.block_rows + lax.broadcasted_iota(jnp.int32, shape, 0)
        return rows.astype(jnp.float32)


def _hat(distance: Array) -> Array:
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


def _slope(distance: Array) -> Array:
    """How hat changes as its point moves up; on pixels to the side that floor looks to."""
    falls = (distance > -1) & (distance <= 0)
    rises = (distance > 0) & (distance <= 1)
    return jnp.where(rises, 1.0, jnp.where(falls, -1.0, 0.0))


def _product(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    """Matrix product over one dimension of each, accumulated in float32."""
    return lax.dot_general(
        a,
        b,
        (((contracted[0],), (contracted[1],)), ((), ())),
        precision=matmul_precision(a.dtype),
        preferred_element_type=jnp.float32,
    )
