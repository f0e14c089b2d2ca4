"""A picture of a panoptic or an instance result: each object in a shade of its class's colour."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from scipy import ndimage

from maft_jax.inference.overlay import (
    blend,
    check_opacity,
    name_size,
    place_names,
    sampled,
    scaled,
    with_legend,
    write_names,
)
from maft_jax.inference.segment_masks import ObjectResult, masks_of, segments_of
from maft_jax.inference.segments import PanopticSegmentation
from maft_jax.pictures.legend import LegendEntry
from maft_jax.pictures.lettering import readable
from maft_jax.pictures.name_colors import picture_colors, shades

_OUTLINE = 300
"""An outline is as many times thinner than the picture's short side."""
_WHITE_OF_OUTLINE = 0.55


def object_overlay(
    result: ObjectResult,
    opacity: float = 0.6,
    *,
    names: bool = True,
    legend: bool = True,
    long_side: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws objects in shades of their classes' colours, with outlines, and stuff without.

    Where objects overlap the smaller one is on top; the outlines of all are drawn.

    Args and errors: as of `overlay.overlay`. The legend has a line for each class, with the number
    of its objects and the share of the pixels on which one of them is seen.
    """
    check_opacity(opacity)
    segments = segments_of(result)
    uppermost = uppermost_segments(result)
    colors = object_colors(result)
    image, labels = scaled(result.image, uppermost, long_side)
    picture = blend(image, labels, dict(enumerate(colors)), opacity)
    picture = _with_outlines(picture, result, colors, opacity)
    texts = {i: readable(segment.class_name, i) for i, segment in enumerate(segments)}
    if names:
        once = {i for i, segment in enumerate(segments) if segment.is_thing}
        picture = write_names(picture, place_names(labels, texts, name_size(labels), once))
    if not legend:
        return picture
    return with_legend(picture, _legend(result, uppermost), name_size(labels))


def object_colors(result: ObjectResult) -> list[tuple[int, int, int]]:
    """Of each of `segments_of`: the first of a class has the class's own."""
    segments = segments_of(result)
    counts = Counter(segment.class_index for segment in segments)
    present = _largest_first(result)
    of_classes = picture_colors(result.class_names, present)
    ahead = {index: iter(shades(of_classes[index], counts[index])) for index in counts}
    return [next(ahead[segment.class_index]) for segment in segments]


def uppermost_segments(result: ObjectResult) -> Int32[np.ndarray, "h w"]:
    """For each pixel the place in `segments_of` of what is on top there, -1 where nothing is."""
    segments = segments_of(result)
    if isinstance(result, PanopticSegmentation):
        places = np.full(max((s.id for s in segments), default=0) + 1, -1, np.int32)
        places[[segment.id for segment in segments]] = np.arange(len(segments))
        return places[result.segment_map]
    uppermost = np.full(result.image.shape[:2], -1, np.int32)
    sizes = np.full(uppermost.shape, np.iinfo(np.int64).max)
    for place, (segment, mask) in enumerate(zip(segments, masks_of(result), strict=True)):
        on_top = mask & (segment.num_pixels < sizes)
        uppermost[on_top], sizes[on_top] = place, segment.num_pixels
    return uppermost


def _largest_first(result: ObjectResult) -> list[int]:
    """Indices of the classes that are there."""
    pixels: Counter[int] = Counter()
    for segment in segments_of(result):
        pixels[segment.class_index] += segment.num_pixels
    return [index for index, _ in pixels.most_common()]


def _legend(result: ObjectResult, uppermost: Int32[np.ndarray, "h w"]) -> list[LegendEntry]:
    segments = segments_of(result)
    seen = np.bincount(uppermost.ravel() + 1, minlength=len(segments) + 1) / uppermost.size
    present = _largest_first(result)
    colors = picture_colors(result.class_names, present)
    entries = []
    for index in present:
        places = [i for i, segment in enumerate(segments) if segment.class_index == index]
        text = readable(result.class_names[index], index)
        if segments[places[0]].is_thing:
            text = f"{len(places)} \u00d7 {text}"
        share = sum(seen[i + 1] for i in places)
        entries.append(LegendEntry(text, float(share), colors[index]))
    if seen[0]:
        what = "(no segment)" if isinstance(result, PanopticSegmentation) else "(no object)"
        entries.append(LegendEntry(what, float(seen[0])))
    return entries


def _with_outlines(
    picture: UInt8[np.ndarray, "h w 3"],
    result: ObjectResult,
    colors: Sequence[tuple[int, int, int]],
    opacity: float,
) -> UInt8[np.ndarray, "h w 3"]:
    """Light lines just inside of each thing, as opaque as the colours and more."""
    thickness = max(1, round(min(picture.shape[:2]) / _OUTLINE))
    weight = 1 - (1 - opacity) ** 2
    for segment, color, mask in zip(segments_of(result), colors, masks_of(result), strict=True):
        if not segment.is_thing:
            continue
        small = sampled(mask, picture.shape[:2])
        rows, columns = (np.flatnonzero(small.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            continue
        cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        edge = _edge(small[cut], thickness)
        light = np.array(color) + _WHITE_OF_OUTLINE * (255 - np.array(color))
        pixels = picture[cut]
        pixels[edge] = np.rint(pixels[edge] + weight * (light - pixels[edge]))
    return picture


def _edge(mask: Bool[np.ndarray, "h w"], thickness: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of a mask that are at most `thickness` from its end, or from the picture's."""
    inner = ndimage.minimum_filter(np.pad(mask, thickness), size=2 * thickness + 1)
    return mask & ~inner[thickness:-thickness, thickness:-thickness]
