"""From mask logits at stride 4 to the label map of an image, in both of FC-CLIP's orders.

Logits are enlarged to the padded image (bilinear, half-pixel) and cropped. Then either they are
resized to the image's own size before the sigmoid, or the scores are after it: linear steps, each a
small matrix for rows and one for columns, so that an image is labelled strip by strip.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int32, UInt8

from input_pipeline.examples import proposal_grid_size
from maft_jax.models.resize import bilinear_matrix

Order = Literal["logits", "scores"]
"""What is resized to the image's own size. FC-CLIP does logits where it makes panoptic or instance
output, too, and scores in configurations of semantic output alone."""

_VALUES_AT_A_TIME = 2**26
"""Of masks at pixels of a strip."""
_ROWS_MULTIPLE = 16


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """The best class of every pixel."""

    label_map: Int32[np.ndarray, "h w"]
    """The lowest of the classes with the highest score."""
    score: Float32[np.ndarray, "h w"]
    """That score: the sum over masks of probability of the class times that of the pixel."""
    total: Float32[np.ndarray, "h w"]
    """The sum of the scores of all classes."""


def label_logits(
    mask_logits: Float[Array, "n h w"],
    probabilities: Float[Array, "n c"],
    *,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    size: tuple[int, int],
    order: Order,
) -> LabelledPixels:
    """Labels one image of native `size`, which the network read at `image_size` with padding."""
    found = tuple(np.empty(size, kind) for kind in (np.int32, np.float32, np.float32))
    axes = tuple(zip(mask_logits.shape[1:], padded_size, image_size, size, strict=True))
    enlarged = [
        bilinear_matrix(stored, padded, align_corners=False)[:read]
        for stored, padded, read, _ in axes
    ]
    resized = [bilinear_matrix(read, native, align_corners=False) for *_, read, native in axes]
    most = _VALUES_AT_A_TIME // (len(mask_logits) * max(size[1], image_size[1]))
    rows = max(_ROWS_MULTIPLE, min(most, size[0]) // _ROWS_MULTIPLE * _ROWS_MULTIPLE)
    for first, matrices in _strips(enlarged, resized, rows, order):
        strip = slice(first, min(first + rows, size[0]))
        parts = _label_strip(mask_logits, probabilities, *matrices)
        for whole, part in zip(found, parts, strict=True):
            whole[strip] = np.asarray(part)[: strip.stop - first]
    return LabelledPixels(*found)


def stored_masks(
    mask_logits: Float[Array, "n h w"], *, padded_size: tuple[int, int], image_size: tuple[int, int]
) -> UInt8[np.ndarray, "n grid_h grid_w"]:
    """The masks at the grid points of records, 255 = certainly inside."""
    sides = zip(
        mask_logits.shape[1:], padded_size, image_size, proposal_grid_size(*image_size), strict=True
    )
    rows, columns = (
        bilinear_matrix(read, points, align_corners=True)
        @ bilinear_matrix(stored, padded, align_corners=False)[:read]
        for stored, padded, read, points in sides
    )
    masks = jax.nn.sigmoid(_resampled(mask_logits, rows, columns))
    return np.asarray(jnp.round(255 * masks).astype(jnp.uint8))


def _strips(enlarged, resized, rows: int, order: Order) -> Iterator[tuple[int, tuple]]:
    """First row, and matrices (rows, columns) before and after the sigmoid, of equal shapes."""
    starts = range(0, len(resized[0]), rows)
    if order == "logits":
        columns = resized[1] @ enlarged[1]
        for first in starts:
            yield first, ((_filled(resized[0][first : first + rows] @ enlarged[0], rows), columns),)
        return
    touched = [np.flatnonzero(resized[0][first : first + rows].any(axis=0)) for first in starts]
    most = max(int(read[-1] - read[0]) + 1 for read in touched)
    for first, read in zip(starts, touched, strict=True):
        reads = slice(read[0], read[0] + most)
        after = resized[0][first : first + rows, reads]
        after = _filled(np.pad(after, ((0, 0), (0, most - after.shape[1]))), rows)
        before = _filled(enlarged[0][reads], most)
        yield first, ((before, enlarged[1]), (after, resized[1]))


def _filled(matrix: np.ndarray, rows: int) -> np.ndarray:
    """With zeros as further rows."""
    return np.pad(matrix, ((0, rows - len(matrix)), (0, 0)))


_product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _resampled(masks, rows, columns):
    return _product("nhW,Hh->nHW", _product("nhw,Ww->nhW", masks, columns), rows)


@jax.jit
def _label_strip(mask_logits, probabilities, before, after=None):
    masks = jax.nn.sigmoid(_resampled(mask_logits, *before))
    if after is not None:
        masks = _resampled(masks, *after)
    scores = _product("nc,nhw->chw", probabilities, masks)
    best = jnp.max(scores, axis=0)
    # Not argmax, which XLA computes one element at a time on a CPU.
    classes = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    winner = jnp.min(jnp.where(scores == best, classes, len(scores) - 1), axis=0)
    return winner, best, jnp.sum(scores, axis=0)
