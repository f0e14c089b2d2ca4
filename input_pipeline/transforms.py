"""Training geometry and colour jitter, applied to image, label map and proposals together.

One `Placement` says where the pixels of the output come from; image, label map and proposals are
each sampled through it in one step, and only where they are visible. `TrainGeometry` has the
training defaults of MAFT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8
from PIL import Image

from input_pipeline.color_jitter import NUM_DRAWS as NUM_COLOR_DRAWS
from input_pipeline.color_jitter import draw_color_jitter, jitter_colors
from input_pipeline.examples import IGNORE, PreparedExample, proposal_grid_size

IMAGE_PADDING = 128
INSIDE = 128
"""Proposals reach as far as their values are at least this."""

_NUM_PLACEMENT_DRAWS = 4
_PROPOSALS_AT_A_TIME = 8  # So that they stay in a core's cache.


@dataclass(frozen=True)
class TrainGeometry:
    """How an example becomes a square of `crop_size` pixels.

    With `augment`: the short side is drawn from `short_sides` (the long side is at most
    `max_long_side`), then a random crop, colour jitter and a horizontal flip. Without: the whole
    image is scaled to fit the square. What is left at the right and the bottom is padding.
    """

    crop_size: int = 640
    short_sides: tuple[int, ...] = tuple(range(320, 961, 64))
    max_long_side: int = 2560
    augment: bool = True

    def __post_init__(self):
        if self.crop_size < 2 or self.max_long_side < 1 or min(self.short_sides, default=0) < 1:
            raise ValueError(
                "TrainGeometry: expected crop_size >= 2, max_long_side >= 1 and at least one "
                f"positive short side, got {self}"
            )

    @property
    def proposal_grid(self) -> tuple[int, int]:
        return proposal_grid_size(self.crop_size, self.crop_size)


class Placement(NamedTuple):
    """Resize to `resized_size`, cut `visible_size` at `offset`, mirror if `flip`; (y, x)."""

    image_size: tuple[int, int]
    resized_size: tuple[int, int]
    offset: tuple[int, int]
    visible_size: tuple[int, int]
    flip: bool


class TransformedExample(NamedTuple):
    """An example on the training square."""

    image: UInt8[np.ndarray, "crop crop 3"]
    label_map: Int32[np.ndarray, "crop crop"]
    proposals: UInt8[np.ndarray, "n grid grid"]
    proposal_valid: Bool[np.ndarray, " n"]


def transform_example(
    example: PreparedExample, seed: tuple[int, int], geometry: TrainGeometry, num_proposals: int
) -> TransformedExample:
    """Image, label map and proposals of one example on the training square.

    `seed`, two integers, decides everything that is random. Padding is 128 in the image, IGNORE in
    the label map and 0 in the proposals, of which there are `num_proposals`. A proposal of which
    nothing is left in sight becomes invalid, and 0 everywhere.
    """
    draws = uniform_draws(seed, _NUM_PLACEMENT_DRAWS + NUM_COLOR_DRAWS)
    image_size, square = example.image.shape[:2], (geometry.crop_size, geometry.crop_size)
    if geometry.augment:
        placement = random_placement(image_size, draws[:_NUM_PLACEMENT_DRAWS], geometry)
    else:
        placement = fitting_placement(image_size, geometry.crop_size)
    height, width = placement.visible_size
    image, label_map = np.empty((*square, 3), np.uint8), np.empty(square, np.int32)
    pixels = place_image(example.image, placement)
    if geometry.augment:
        jitter = draw_color_jitter(draws[_NUM_PLACEMENT_DRAWS:])
        jitter_colors(pixels, jitter, out=image[:height, :width])
    else:
        image[:height, :width] = pixels
    label_map[:height, :width] = place_label_map(example.label_map, placement)
    for array, padding in ((image, IMAGE_PADDING), (label_map, IGNORE)):
        array[height:] = padding
        array[:height, width:] = padding
    proposals = np.zeros((num_proposals, *geometry.proposal_grid), np.uint8)
    place_proposals(example.proposals, placement, geometry.crop_size, out=proposals)
    valid = proposals.max(axis=(1, 2), initial=0) >= INSIDE
    proposals[~valid] = 0
    return TransformedExample(image, label_map, proposals, valid)


def uniform_draws(seed: Sequence[int], count: int) -> Float64[np.ndarray, " count"]:
    """Uniform draws of [0, 1), the same wherever and whenever they are drawn.

    Built from the raw Philox stream, which numpy never changes, unlike what its generators make
    of it.
    """
    key = np.array([part % 2**64 for part in seed], np.uint64)
    bits = np.random.Philox(key=key).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


def random_placement(
    image_size: tuple[int, int], draws: Float64[np.ndarray, "4"], geometry: TrainGeometry
) -> Placement:
    """A random scale, crop and mirroring from four uniform draws of [0, 1)."""
    scale_draw, y_draw, x_draw, flip_draw = map(float, draws)
    short_side = geometry.short_sides[int(scale_draw * len(geometry.short_sides))]
    scale = min(short_side / min(image_size), geometry.max_long_side / max(image_size))
    resized = scaled_size(image_size, scale)
    visible = tuple(min(side, geometry.crop_size) for side in resized)
    offset = tuple(
        int(draw * (whole - part + 1))
        for draw, whole, part in zip((y_draw, x_draw), resized, visible, strict=True)
    )
    return Placement(image_size, resized, offset, visible, flip_draw < 0.5)


def fitting_placement(image_size: tuple[int, int], crop_size: int) -> Placement:
    """The whole image, its long side scaled to `crop_size`."""
    resized = scaled_size(image_size, crop_size / max(image_size))
    return Placement(image_size, resized, (0, 0), resized, False)


def scaled_size(image_size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Both sides times `scale`, rounded, and at least 1."""
    height, width = (max(int(side * scale + 0.5), 1) for side in image_size)
    return height, width


def place_image(
    image: UInt8[np.ndarray, "h w 3"], placement: Placement
) -> UInt8[np.ndarray, "visible_h visible_w 3"]:
    """Visible part of the image resized by Pillow, bilinear with antialiasing."""
    (height, width), (full_height, full_width) = placement.image_size, placement.resized_size
    (top, left), (rows, columns) = placement.offset, placement.visible_size
    box = (
        left * width / full_width,
        top * height / full_height,
        (left + columns) * width / full_width,
        (top + rows) * height / full_height,
    )
    visible = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR, box)
    if placement.flip:
        visible = visible.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(visible)


def place_label_map(
    label_map: Int32[np.ndarray, "h w"], placement: Placement
) -> Int32[np.ndarray, "visible_h visible_w"]:
    """Visible part of the label map, resized by nearest with floor index."""
    rows, columns = (
        (np.arange(visible) + offset) * size // resized
        for size, resized, offset, visible in zip(*placement[:4], strict=True)
    )
    if placement.flip:
        columns = columns[::-1]
    # Columns are the slow axis, so take each of them from the fewest rows.
    top, bottom = rows[0], rows[-1] + 1
    if bottom - top < len(rows):
        return label_map[top:bottom].take(columns, axis=1).take(rows - top, axis=0)
    return label_map.take(rows, axis=0).take(columns, axis=1)


def place_proposals(
    proposals: UInt8[np.ndarray, "n h w"],
    placement: Placement,
    crop_size: int,
    out: UInt8[np.ndarray, "m grid grid"],
) -> None:
    """Proposals on the grid of the training square, bilinear between stored grid points.

    Writes the visible points of the first n of `out` and leaves the others as they are.
    """
    y, x = (
        _visible_points(placement, crop_size, axis, proposals.shape[axis + 1]) for axis in (0, 1)
    )
    sample_proposals(proposals, y, x, out)


def sample_proposals(
    proposals: UInt8[np.ndarray, "n h w"],
    y: Float64[np.ndarray, " rows"],
    x: Float64[np.ndarray, " columns"],
    out: UInt8[np.ndarray, "m grid_h grid_w"],
) -> None:
    """Writes values at rows y and columns x, between 0 and the last, to the corner of `out`."""
    if not (y.size and x.size and proposals.size):
        return
    y_first, x_first = y.astype(np.int64), x.astype(np.int64)
    y_weight = (y - y_first).astype(np.float32)[:, None]
    x_weight = (x - x_first).astype(np.float32)
    top, bottom = y_first.min(), min(y_first.max() + 2, proposals.shape[1])
    y_second = np.minimum(y_first + 1, bottom - 1) - top
    y_first -= top
    x_second = np.minimum(x_first + 1, proposals.shape[2] - 1)
    # Fresh memory costs more than the arithmetic: all of it is taken once.
    some = min(len(proposals), _PROPOSALS_AT_A_TIME)
    stored = np.empty((some, bottom - top, x.size), np.uint8)
    columns = np.empty((2, *stored.shape), np.float32)
    values = np.empty((2, some, y.size, x.size), np.float32)
    for first in range(0, len(proposals), some):
        source = proposals[first : first + some, top:bottom]
        count = len(source)
        for neighbour, index in zip(columns, (x_first, x_second), strict=True):
            # Any mode but the default writes to `out` without a buffer.
            source.take(index, axis=2, out=stored[:count], mode="clip")
            neighbour[...] = stored
        _interpolate(*columns, x_weight)
        for neighbour, index in zip(values, (y_first, y_second), strict=True):
            columns[0].take(index, axis=1, out=neighbour, mode="clip")
        _interpolate(*values, y_weight)
        values[0] += np.float32(0.5)
        out[first : first + count, : y.size, : x.size] = values[0, :count]


def _visible_points(
    placement: Placement, crop_size: int, axis: int, stored: int
) -> Float64[np.ndarray, " k"]:
    """The stored row (column), between two as a rule, of each visible point of the grid."""
    image_size, resized_size, offset, visible = (pair[axis] for pair in placement[:4])
    point = np.linspace(0.0, crop_size - 1, proposal_grid_size(crop_size, crop_size)[axis])
    point = point[point <= visible - 0.5]
    if axis == 1 and placement.flip:
        point = visible - 1 - point
    # Half-pixel convention of the resize, then align_corners of the stored grid.
    pixel = (point + offset + 0.5) * image_size / resized_size - 0.5
    return np.clip(pixel * (stored - 1) / max(image_size - 1, 1), 0, stored - 1)


def _interpolate(
    low: Float32[np.ndarray, "n h w"],
    high: Float32[np.ndarray, "n h w"],
    weight: Float32[np.ndarray, "..."],
) -> None:
    """Leaves low + (high - low) * weight in `low`, and overwrites `high`."""
    high -= low
    high *= weight
    low += high
