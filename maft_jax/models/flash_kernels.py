"""Pallas TPU kernels of attention among patches, and of proposals into them.

One program handles one image and one group of heads that fills the 128 lanes of a register (two
heads of width 64). A group's columns lie side by side, query | key | value, so that nothing is
transposed or padded in memory. All keys and values of the group stay in VMEM and whole rows of
scores are there at once, a chunk of queries at a time: an ordinary softmax, no running maximum.
The backward kernel computes the scores again and needs nothing but the projections and the
gradient of the output.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from maft_jax.models.masked_attention import matmul_precision

LANES = 128
_CHUNK = 128
"""Queries whose scores are computed at once."""
_VMEM_BYTES = 64 * 2**20
_NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """Which attention a kernel computes.

    Operands are [b, t, groups * width] for the patches, width being LANES times the parts that the
    patches have, then, with proposals, [b, n, groups * 3 * LANES] and perhaps int8 [b, n, t].
    """

    head_width: int
    patches_attend: bool
    """Patches have queries, too; else only keys and values."""
    has_proposals: bool
    is_masked: bool
    """Proposals read only the patches that the mask allows."""
    interpret: bool = False
    """Run as plain jax operations, where there is no TPU."""

    @property
    def patch_parts(self) -> int:
        return 3 if self.patches_attend else 2

    def forward(self, *operands: Array) -> tuple[Array, ...]:
        """Attended patches [b, t, d] if they attend, then attended proposals [b, n, d]."""
        widths = [LANES] * (self.patches_attend + self.has_proposals)
        queries = operands[not self.patches_attend : 1 + self.has_proposals]
        return self._call(_forward, operands, queries, widths, 2)

    def backward(self, operands: Sequence[Array], gradients: Sequence[Array]) -> tuple[Array, ...]:
        """Gradients of the patches' projections, then of the proposals'."""
        widths = [self.patch_parts * LANES] + [3 * LANES] * self.has_proposals
        outputs = operands[: len(widths)]
        return self._call(_backward, [*operands, *gradients], outputs, widths, 5)

    def _call(self, kernel, operands, outputs, widths, products: int) -> tuple[Array, ...]:
        patches = operands[0]
        batch, tokens, columns = patches.shape
        groups = columns // (self.patch_parts * LANES)
        queries = tokens if self.patches_attend else 0
        if self.has_proposals:
            queries += operands[1].shape[1]
        shapes = [
            jax.ShapeDtypeStruct((batch, x.shape[1], groups * width), patches.dtype)
            for x, width in zip(outputs, widths, strict=True)
        ]
        pairs = batch * groups * (LANES // self.head_width) * queries * tokens
        cost = pl.CostEstimate(
            flops=2 * products * pairs * self.head_width,
            transcendentals=pairs,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in [*operands, *shapes]),
        )
        call = pl.pallas_call(
            functools.partial(kernel, self),
            grid=(batch, groups),
            in_specs=[_block(x, groups) for x in operands],
            out_specs=[_block(x, groups) for x in shapes],
            out_shape=shapes,
            scratch_shapes=[pltpu.VMEM((tokens, LANES), jnp.float32)] * 2
            if kernel is _backward
            else [],
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
    refs = iter(refs)
    patches = next(refs)
    proposals = next(refs) if call.has_proposals else None
    allowed = next(refs) if call.is_masked else None
    key, value = _columns(patches, call.patch_parts - 2), _columns(patches, call.patch_parts - 1)
    if call.patches_attend:
        of_patches = next(refs)

        def attend(rows):
            result = _attend(call, patches[0, rows, :LANES], key, value)
            of_patches[0, rows, :] = result.astype(of_patches.dtype)

        _in_chunks(patches.shape[1], attend)
    if call.has_proposals:
        query, *own = (_columns(proposals, part) for part in range(3))
        mask = None if allowed is None else allowed[0].astype(jnp.int32) != 0
        attended = next(refs)
        attended[0] = _attend(call, query, key, value, mask, own).astype(attended.dtype)


def _backward(call: AttentionCall, *refs) -> None:
    *refs, key_gradient, value_gradient = refs
    refs = iter(refs)
    patches = next(refs)
    proposals = next(refs) if call.has_proposals else None
    allowed = next(refs) if call.is_masked else None
    of_patches = next(refs) if call.patches_attend else None
    of_proposals = next(refs) if call.has_proposals else None
    patches_gradient = next(refs)
    key, value = _columns(patches, call.patch_parts - 2), _columns(patches, call.patch_parts - 1)
    key_gradient[...] = jnp.zeros(key_gradient.shape, jnp.float32)
    value_gradient[...] = jnp.zeros(value_gradient.shape, jnp.float32)
    sums = key_gradient, value_gradient
    if call.patches_attend:

        def attend_backward(rows):
            query, gradient = patches[0, rows, :LANES], of_patches[0, rows, :]
            result = _attend_backward(call, query, key, value, gradient, sums)
            patches_gradient[0, rows, :LANES] = result[0].astype(patches_gradient.dtype)

        _in_chunks(patches.shape[1], attend_backward)
    if call.has_proposals:
        query, *own = (_columns(proposals, part) for part in range(3))
        mask = None if allowed is None else allowed[0].astype(jnp.int32) != 0
        results = _attend_backward(call, query, key, value, of_proposals[0], sums, mask, own)
        proposals_gradient = next(refs)
        for part, result in enumerate(results):
            columns = slice(part * LANES, (part + 1) * LANES)
            proposals_gradient[0, :, columns] = result.astype(proposals_gradient.dtype)
    for part, total in zip((-2, -1), sums, strict=True):
        first = (call.patch_parts + part) * LANES
        columns = slice(first, first + LANES)
        patches_gradient[0, :, columns] = total[...].astype(patches_gradient.dtype)


def _columns(ref, part: int):
    return ref[0, :, part * LANES : (part + 1) * LANES]


def _in_chunks(rows: int, work: Callable[[pl.Slice | slice], None]) -> None:
    """Calls `work` with slices of all rows: a loop, compiled once, and what is left over."""
    whole = rows // _CHUNK * _CHUNK
    if whole:

        @pl.loop(0, whole, step=_CHUNK)
        def _(first):
            work(pl.ds(pl.multiple_of(first, _CHUNK), _CHUNK))

    if whole < rows:
        work(slice(whole, rows))


def _attend(call, query, key, value, allowed=None, own=()):
    """Attended values of all heads of the group, float32, each head in its own lanes."""
    attended = jnp.zeros(query.shape, jnp.float32)
    for lanes in _heads(call.head_width):
        weights, to_self, total, _ = _weights(call, query, key, lanes, allowed, own)
        of_head = _product(weights.astype(value.dtype), value, (1, 0))
        if own:
            of_head += to_self * own[1]
        attended = jnp.where(lanes, of_head / total, attended)
    return attended


def _attend_backward(call, query, key, value, gradient, sums, allowed=None, own=()):
    """Gradients of query and, if there are, own key and value; adds those of the patches' to sums.

    With weights p = softmax(s) and their gradient g, that of s is p * (g - sum(p * g)).
    """
    dtype, scale = query.dtype, call.head_width**-0.5
    results = [jnp.zeros(query.shape, jnp.float32) for _ in (query, *own)]
    for lanes in _heads(call.head_width):
        weights, to_self, total, scaled = _weights(call, query, key, lanes, allowed, own)
        weights, to_self = weights / total, to_self / total
        of_head = jnp.where(lanes, gradient, 0)
        of_weights = _product(of_head, value, (1, 1))
        mean = jnp.sum(weights * of_weights, axis=1, keepdims=True)
        if own:
            of_self = jnp.sum(of_head * own[1].astype(jnp.float32), axis=1, keepdims=True)
            mean += to_self * of_self
            of_self = to_self * (of_self - mean)
        of_scores = (weights * (of_weights - mean)).astype(dtype)
        of_query = _product(of_scores, key, (1, 0))
        if own:
            of_query += of_self * own[0]
            results[1] += of_self * scaled
            results[2] += to_self * of_head
        results[0] = jnp.where(lanes, scale * of_query, results[0])
        sums[0][...] += _product(of_scores, scaled, (0, 0))
        sums[1][...] += _product(weights.astype(dtype), of_head, (0, 0))
    return results


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
