"""Pallas TPU kernels of attention: of a whole image, among patches, of proposals into patches.

One program handles one image and one group of heads that fills the 128 lanes of a register (two
heads of width 64). A group's columns lie side by side, query | key | value or key | value, so that
nothing is transposed or padded in memory. All keys and values of the group stay in VMEM and whole
rows of scores are there at once, of a chunk of queries or of all proposals: an ordinary softmax, no
running maximum.
The backward kernel computes the scores again and needs nothing but the projections and the
gradient of the output.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from maft_jax.models.attention_pattern import AttentionPattern
from maft_jax.models.precision import matmul_precision

LANES = 128
_CHUNK = 128
"""Queries whose scores are computed at once."""
_TILE_ROWS = 16
"""Of bfloat16; float32 has 8."""
_VMEM_BYTES = 64 * 2**20
_NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """Which attention a kernel computes.

    Operands are queries [b, q, groups * width], width being LANES times their parts; keys and
    values [b, t, groups * 2 * LANES], unless the queries have these parts themselves; and, if a
    segment is masked, int8 [b, masked queries, keys of that segment].
    """

    head_width: int
    pattern: AttentionPattern
    has_sources: bool = False
    """Keys and values are an operand of their own, and the queries have one part, else three."""
    interpret: bool = False
    """Run as plain jax operations, where there is no TPU."""

    def forward(self, *operands: Array) -> tuple[Array, ...]:
        """Attended values of the queries, [b, q, d], alone in a tuple."""
        outputs = [(operands[0], LANES)]
        scratch = [((1, n, LANES), operands[0].dtype) for n in self._unaligned]
        return self._call(_forward, operands, outputs, scratch, 2)

    def backward(self, operands: Sequence[Array], gradient: Array) -> tuple[Array, ...]:
        """Gradients of the operands but the mask."""
        parts = [1, 2] if self.has_sources else [3]
        outputs = [(x, part * LANES) for x, part in zip(operands, parts, strict=False)]
        scratch = [((1, n, LANES), gradient.dtype) for n in self._unaligned * 2]
        most = max(len(segment.keys) for segment in self.pattern)
        scratch += [((most, LANES), jnp.float32)] * 2
        return self._call(_backward, [*operands, gradient], outputs, scratch, 5)

    @property
    def _unaligned(self) -> list[int]:
        """The largest number of queries that are read in chunks and begin within a tile, if any."""
        runs = [segment.queries for segment in self.pattern if segment.own is None]
        return sorted(len(rows) for rows in runs if _needs_copy(rows))[-1:]

    def _call(self, kernel, operands, outputs, scratch, products: int) -> tuple[Array, ...]:
        queries = operands[0]
        groups = queries.shape[2] // (LANES if self.has_sources else 3 * LANES)
        shapes = [
            jax.ShapeDtypeStruct((*x.shape[:2], groups * width), x.dtype) for x, width in outputs
        ]
        pairs = sum(len(segment.queries) * len(segment.keys) for segment in self.pattern)
        pairs *= len(queries) * groups * (LANES // self.head_width)
        cost = pl.CostEstimate(
            flops=2 * products * pairs * self.head_width,
            transcendentals=pairs,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in [*operands, *shapes]),
        )
        call = pl.pallas_call(
            functools.partial(kernel, self),
            grid=(len(queries), groups),
            in_specs=[_block(x, groups) for x in operands],
            out_specs=[_block(x, groups) for x in shapes],
            out_shape=shapes,
            scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in scratch],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_VMEM_BYTES
            ),
            cost_estimate=cost,
            interpret=self.interpret,
        )
        return tuple(call(*operands))


def _block(x, groups: int) -> pl.BlockSpec:
    """One image; all rows; the columns of one group, or of a mask, which all groups share."""
    if x.dtype == jnp.int8:
        return pl.BlockSpec((1, *x.shape[1:]), lambda image, group: (image, 0, 0))
    block = (1, x.shape[1], x.shape[2] // groups)
    return pl.BlockSpec(block, lambda image, group: (image, 0, group))


def _forward(call: AttentionCall, *refs) -> None:
    queries, sources, allowed, (attended, *copies) = _operands(call, refs)
    for segment in call.pattern:
        key, value = _keys_and_values(sources, segment.keys)
        query, result = (_Rows(ref, segment.queries) for ref in (queries, attended))
        attend = functools.partial(_attend, call, key=key, value=value)
        if segment.own is None:
            _in_chunks([query], result, copies, attend)
        else:
            own = _keys_and_values(sources, segment.own)
            result.store(attend(query.load(), allowed=_mask(allowed), own=own))


def _backward(call: AttentionCall, *refs) -> None:
    queries, sources, allowed, (gradient, query_gradients, *rest) = _operands(call, refs)
    source_gradients = rest.pop(0) if call.has_sources else query_gradients
    *copies, key_sum, value_sum = rest
    for keys, segments in itertools.groupby(call.pattern, lambda segment: segment.keys):
        key, value = _keys_and_values(sources, keys)
        sums = [total.at[: len(keys), :] for total in (key_sum, value_sum)]
        for total in sums:
            total[...] = jnp.zeros(total.shape, jnp.float32)
        attend_backward = functools.partial(_attend_backward, call, key=key, value=value, sums=sums)
        for segment in segments:
            given = [_Rows(ref, segment.queries) for ref in (queries, gradient)]
            result = _Rows(query_gradients, segment.queries)
            if segment.own is None:
                _in_chunks(given, result, copies, attend_backward)
            else:
                own = _keys_and_values(sources, segment.own)
                query_gradient, *own_gradients = attend_backward(
                    *[rows.load() for rows in given], allowed=_mask(allowed), own=own
                )
                result.store(query_gradient)
                _store_keys_and_values(source_gradients, segment.own, own_gradients)
        _store_keys_and_values(source_gradients, keys, [total[...] for total in sums])


def _operands(call: AttentionCall, refs):
    """Queries, keys and values, the mask or None, and what else there is."""
    queries, *refs = refs
    sources = refs.pop(0) if call.has_sources else queries
    masked = any(segment.masked for segment in call.pattern)
    return queries, sources, refs.pop(0) if masked else None, refs


def _mask(allowed):
    return allowed[0].astype(jnp.int32) != 0


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of a block, and the columns of its queries, keys or values."""

    ref: Any
    rows: range
    part: int = 0

    def load(self, first: int | Array = 0, number: int | None = None) -> Array:
        """`number` rows from `first` on, counted from the first of these; else all."""
        return self.ref[self._index(first, number or len(self.rows))]

    def store(self, values: Array, first: int | Array = 0) -> None:
        self.ref[self._index(first, len(values))] = values.astype(self.ref.dtype)

    def _index(self, first, number: int):
        start = self.rows.start + first
        if not isinstance(first, int):  # in a loop over chunks, of rows that begin with a tile
            start = pl.multiple_of(start, _TILE_ROWS)
        return 0, pl.ds(start, number), slice(self.part * LANES, (self.part + 1) * LANES)


def _keys_and_values(ref, rows: range) -> list[Array]:
    return [_Rows(ref, rows, part).load() for part in _last_two_parts(ref)]


def _store_keys_and_values(ref, rows: range, pair) -> None:
    for part, values in zip(_last_two_parts(ref), pair, strict=True):
        _Rows(ref, rows, part).store(values)


def _last_two_parts(ref) -> range:
    parts = ref.shape[2] // LANES
    return range(parts - 2, parts)


def _needs_copy(rows: range) -> bool:
    return len(rows) >= _CHUNK and rows.start % _TILE_ROWS != 0


def _in_chunks(operands: list[_Rows], result: _Rows, copies, work: Callable) -> None:
    """result = work(*operands), a chunk at a time: a loop, compiled once, and what is left over.

    A loop cannot read rows that begin within a tile; then it works in copies of the operands, the
    first of which takes the result.
    """
    rows = result.rows
    target = result
    if _needs_copy(rows):
        copied = [_Rows(copy, range(len(rows))) for copy in copies]
        for copy, operand in zip(copied, operands, strict=True):
            copy.store(operand.load())
        operands, target = copied, copied[0]

    def work_on(first, number):
        target.store(work(*[operand.load(first, number) for operand in operands]), first)

    whole = len(rows) // _CHUNK * _CHUNK
    if whole:
        pl.loop(0, whole, step=_CHUNK)(lambda first: work_on(first, _CHUNK))
    if whole < len(rows):
        work_on(whole, len(rows) - whole)
    if target is not result:
        result.store(target.load())


def _attend(call, query, key, value, allowed=None, own=()):
    """Attended values of all heads of the group, float32, each head in its own lanes."""
    attended = jnp.zeros(query.shape, jnp.float32)
    for lanes in _heads(call.head_width):
        weights, to_self, total, _ = _weights(call, query, key, lanes, allowed, own)
        head_values = _product(weights.astype(value.dtype), value, (1, 0))
        if own:
            head_values += to_self * own[1]
        attended = jnp.where(lanes, head_values / total, attended)
    return attended


def _attend_backward(call, query, gradient, key, value, sums, allowed=None, own=()):
    """Gradient of the query; with own key and value a list with theirs. Adds those of keys to sums.

    With weights p = softmax(s) and their gradient g, that of s is p * (g - sum(p * g)).
    """
    dtype, scale = query.dtype, call.head_width**-0.5
    results = [jnp.zeros(query.shape, jnp.float32) for _ in (query, *own)]
    for lanes in _heads(call.head_width):
        weights, to_self, total, scaled = _weights(call, query, key, lanes, allowed, own)
        weights, to_self = weights / total, to_self / total
        head_gradient = jnp.where(lanes, gradient, 0)
        weight_gradient = _product(head_gradient, value, (1, 1))
        mean = jnp.sum(weights * weight_gradient, axis=1, keepdims=True)
        if own:
            self_gradient = jnp.sum(
                head_gradient * own[1].astype(jnp.float32), axis=1, keepdims=True
            )
            mean += to_self * self_gradient
            self_gradient = to_self * (self_gradient - mean)
        score_gradient = (weights * (weight_gradient - mean)).astype(dtype)
        query_gradient = _product(score_gradient, key, (1, 0))
        if own:
            query_gradient += self_gradient * own[0]
            results[1] += self_gradient * scaled
            results[2] += to_self * head_gradient
        results[0] = jnp.where(lanes, scale * query_gradient, results[0])
        sums[0][...] += _product(score_gradient, scaled, (0, 0))
        sums[1][...] += _product(weights.astype(dtype), head_gradient, (0, 0))
    return results if own else results[0]


def _heads(head_width: int) -> Iterator[Array]:
    """For each head of the group which lanes are its own, [1, LANES]."""
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    starts = range(0, LANES, head_width)
    return ((lane >= start) & (lane < start + head_width) for start in starts)


def _weights(call, query, key, lanes, allowed, own):
    """Unnormalised weights of keys and of oneself, their sum, and the scaled query of one head.

    The lanes of other heads are zero in the query: a product over all lanes costs the same.
    """
    scaled = jnp.where(lanes, query * call.head_width**-0.5, 0).astype(query.dtype)
    scores = _product(scaled, key, (1, 1))
    if allowed is not None:
        scores = jnp.where(allowed, scores, _NEVER)
    largest = jnp.max(scores, axis=1, keepdims=True)
    if not own:
        weights = jnp.exp(scores - largest)
        return weights, 0.0, jnp.sum(weights, axis=1, keepdims=True), scaled
    to_self = jnp.sum(scaled.astype(jnp.float32) * own[0], axis=1, keepdims=True)
    largest = jnp.maximum(largest, to_self)
    weights, to_self = jnp.exp(scores - largest), jnp.exp(to_self - largest)
    return weights, to_self, to_self + jnp.sum(weights, axis=1, keepdims=True), scaled


def _product(a, b, contracted: tuple[int, int]):
    """Matrix product over one dimension of each, accumulated in float32."""
    return lax.dot_general(
        a,
        b,
        (((contracted[0],), (contracted[1],)), ((), ())),
        precision=matmul_precision(a.dtype),
        preferred_element_type=jnp.float32,
    )
