"""A picture of a segmentation: colours over the image, names at the regions, a legend below."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from maft_jax.inference.result import Segmentation, class_regions
from maft_jax.pictures.legend import LegendEntry, draw_legend
from maft_jax.pictures.lettering import letter_size, letters_for, readable, wrapped
from maft_jax.pictures.name_colors import picture_colors

_NARROWEST = 200
"""Pixels; narrower pictures get margins, so that names fit in the legend."""
_LEGEND_SHARE = 0.6
"""Most of the picture's height that the legend is high."""
_SEARCH_SIDE = 480
"""Places for names are searched in label maps of at most so many pixels a side."""
_SMALLEST_NAMED_SHARE = 0.002
_SMALLEST_REPEATED_SHARE = 0.03
_MOST_REPETITIONS = 3
_TIGHTEST = 0.6
"""Share of a line's height that a region must have where its name is."""
_PULL = 0.15
_SHORTEST = 5
"""Letters, with the ellipsis, that a shortened line must show."""
_ROWS_AT_A_TIME = 64
_SHORTENED = 0.4
"""Factor of how well a layout fits that does not show the whole name."""


@dataclass(frozen=True)
class PlacedName:
    """A name at a region; the box of x, y, width, height holds all lines with their outline."""

    index: int
    lines: tuple[str, ...]
    font: ImageFont.FreeTypeFont
    outline: int
    box: tuple[int, int, int, int]
    shortened: bool


def overlay(
    segmentation: Segmentation,
    opacity: float = 0.6,
    *,
    names: bool = True,
    legend: bool = True,
    long_side: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a segmentation.

    Args:
        opacity: of the colours, 0 shows the image and 1 hides it.
        names: whether to write names at their regions.
        legend: whether to add the strip below, largest class first.
        long_side: pixels to which the image is scaled first; by default it keeps its size.

    Raises:
        ValueError: `opacity` is not between 0 and 1.
    """
    check_opacity(opacity)
    image, labels = scaled(segmentation.image, segmentation.label_map, long_side)
    colors = segment_colors(segmentation)
    regions = class_regions(segmentation)
    texts = {r.index: readable(r.name, r.index) for r in regions}
    entries = [LegendEntry(texts[r.index], r.share, colors[r.index]) for r in regions]
    unlabelled = float(np.mean(segmentation.label_map < 0))
    if unlabelled:
        entries.append(LegendEntry("(no class)", unlabelled))
    picture = blend(image, labels, colors, opacity)
    if names:
        picture = write_names(picture, place_names(labels, texts, name_size(labels)))
    return with_legend(picture, entries, name_size(labels)) if legend else picture


def check_opacity(opacity: float) -> None:
    """Refuses, with a ValueError, what is not between 0 and 1."""
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected 0 to 1, got {opacity}")


def name_size(labels: Int32[np.ndarray, "h w"]) -> int:
    """Pixels of the letters in a picture of these labels."""
    height, width = labels.shape
    return letter_size(height, max(width, _NARROWEST))


def with_legend(
    picture: UInt8[np.ndarray, "h w 3"], entries: Sequence[LegendEntry], size: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The picture, at least as wide as names need, above a legend with the largest share first."""
    height = len(picture)
    picture = _at_least(picture, _NARROWEST)
    entries = sorted(entries, key=lambda entry: -entry.share)
    strip = draw_legend(entries, picture.shape[1], size, round(_LEGEND_SHARE * height))
    return np.concatenate([picture, strip])


def segment_colors(segmentation: Segmentation) -> dict[int, tuple[int, int, int]]:
    """The colour of every class in this picture by its index; see `name_colors.picture_colors`."""
    present = [region.index for region in class_regions(segmentation)]
    return picture_colors(segmentation.class_names, present)


def blend(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Int32[np.ndarray, "h w"],
    colors: Mapping[int, tuple[int, int, int]],
    opacity: float,
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours over the image, with thin borders; pixels of no class stay as they are."""
    weight = round(256 * opacity)
    table = np.zeros((max(colors, default=0) + 2, 3), np.int32)
    for index, color in colors.items():
        table[index + 1] = color
    edge = borders(labels, max(1, round(min(labels.shape) / 600)))
    picture = np.empty_like(image)
    for first in range(0, len(image), _ROWS_AT_A_TIME):
        rows = np.s_[first : first + _ROWS_AT_A_TIME]
        painted = np.where(labels[rows] >= 0, weight, 0)
        lightened = np.where(edge[rows], weight, 0)
        grey = image[rows].mean(axis=-1, dtype=np.float32).astype(np.int32)
        for channel in range(3):
            pixels = image[rows][..., channel].astype(np.int32)
            pixels += (painted * (grey - pixels)) >> 8  # or the photo's colours would tint ours
            pixels += (painted * (table[labels[rows] + 1, channel] - pixels)) >> 8
            pixels += (lightened * (255 - pixels)) >> 8
            picture[rows][..., channel] = pixels
    return picture


def borders(labels: Int32[np.ndarray, "h w"], thickness: int) -> Bool[np.ndarray, "h w"]:
    """Pixels where another class begins to the right or below, or within `thickness` of that."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    return edge if thickness == 1 else ndimage.maximum_filter(edge, size=thickness)


def place_names(
    labels: Int32[np.ndarray, "h w"],
    texts: Mapping[int, str],
    size: int,
    once: Collection[int] = (),
) -> list[PlacedName]:
    """Where each region is widest, largest regions first; names that would overlap are left out.

    Of a class in several pieces, up to three large ones are named, the largest alone if it is among
    `once`; specks are not.
    """
    step = -(-max(labels.shape) // _SEARCH_SIDE)
    small = labels[step // 2 :: step, step // 2 :: step]
    placed: list[PlacedName] = []
    for index, region in _named_regions(small, texts, once):
        best, best_value = None, 0.0
        for name in _layouts(index, texts[index], region, labels.shape, size, step):
            _, _, width, height = name.box
            depth = _depth(region, width / height)
            _forbid(depth, placed, (width, height), labels.shape, step)
            y, x = np.unravel_index(np.argmax(depth), depth.shape)
            fit = 2 * depth[y, x] * step / height
            value = fit * (_SHORTENED if name.shortened else 1)
            if fit > _TIGHTEST / len(name.lines) and value > 1.15 * best_value:
                left, top = (
                    min(max(center * step + step // 2 - side // 2, 0), length - side)
                    for center, side, length in zip(
                        (int(x), int(y)), (width, height), labels.shape[::-1], strict=True
                    )
                )
                box = (left, top, width, height)
                best, best_value = dataclasses.replace(name, box=box), value
            if value >= 1:
                break
        if best is not None:
            placed.append(best)
    return placed


def write_names(
    picture: UInt8[np.ndarray, "h w 3"], placed: Sequence[PlacedName]
) -> UInt8[np.ndarray, "h w 3"]:
    """White letters with a dark outline, each line centred in its box."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for name in placed:
        left, top, width, height = name.box
        line = height / len(name.lines)
        for i, text in enumerate(name.lines):
            draw.text(
                (left + width / 2, top + (i + 0.5) * line),
                text,
                "white",
                name.font,
                "mm",
                stroke_width=name.outline,
                stroke_fill=(20, 20, 20),
            )
    return np.asarray(canvas)


def _named_regions(
    small: Int32[np.ndarray, "h w"], texts: Mapping[int, str], once: Collection[int]
) -> list[tuple[int, Bool[np.ndarray, "h w"]]]:
    """(class, pixels) of the pieces that deserve a name, largest first."""
    found = []
    for index in texts:
        pieces, _ = ndimage.label(small == index)
        pixels = np.bincount(pieces.ravel())[1:]
        most = 1 if index in once else _MOST_REPETITIONS
        largest = np.argsort(-pixels, kind="stable")[:most]
        for rank, piece in enumerate(largest.tolist()):
            least = _SMALLEST_REPEATED_SHARE if rank else _SMALLEST_NAMED_SHARE
            if pixels[piece] >= least * small.size:
                found.append((int(pixels[piece]), index, pieces == piece + 1))
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    return [(index, region) for _, index, region in found]


def _layouts(
    index: int,
    text: str,
    region: Bool[np.ndarray, "h w"],
    picture_size: tuple[int, int],
    size: int,
    step: int,
) -> list[PlacedName]:
    """The name in one line and in more, as far as they differ and the picture holds them."""
    size = round(size * float(np.clip((region.mean() / 0.04) ** 0.25, 0.85, 1.5)))
    outline = max(1, round(size / 9))
    font = letters_for(text, size, bold=True)
    columns = np.flatnonzero(region.any(axis=0))
    region_width = (columns[-1] - columns[0] + 1) * step
    room = min(picture_size[1] - 2 * outline - 2, max(1.3 * region_width, 7 * size))
    found: list[PlacedName] = []
    for most_lines in (1, 2, 3):
        lines = wrapped(text, font, room, most_lines)
        cut = "".join(lines).replace(" ", "") != text.replace(" ", "")
        if not lines or (cut and len(lines[-1]) < _SHORTEST):
            continue
        height = 1.2 * size * len(lines) + 2 * outline
        width = max(font.getlength(line) for line in lines) + 2 * outline + 2
        fits = math.ceil(height) <= picture_size[0] and math.ceil(width) <= picture_size[1]
        if fits and all(lines != other.lines for other in found):
            box = (0, 0, math.ceil(width), math.ceil(height))
            found.append(PlacedName(index, lines, font, outline, box, cut))
    return found


def _depth(region: Bool[np.ndarray, "h w"], ratio: float) -> np.ndarray:
    """Half the height of what fits around each pixel, if it is `ratio` times as wide as high.

    A little more far from the border, so that what has room lies in the middle of it.
    """
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = np.pad(region[cut], 1)
    depth = ndimage.distance_transform_edt(inside, (1.0, 1 / float(np.clip(ratio, 1, 12))))
    depth += _PULL * np.sqrt(depth * ndimage.distance_transform_edt(inside))
    whole = np.zeros(region.shape)
    whole[cut] = depth[1:-1, 1:-1]
    return whole


def _forbid(
    depth: np.ndarray,
    placed: Sequence[PlacedName],
    box_size: tuple[int, int],
    picture_size: tuple[int, int],
    step: int,
) -> None:
    """Sets the depth to zero where a box of this size would overlap one that is placed."""
    centers = []
    for pixels, side, length in zip(depth.shape, box_size[::-1], picture_size, strict=True):
        at = np.arange(pixels) * step + step // 2
        centers.append(np.clip(at, side / 2, max(side / 2, length - side / 2)))
    for name in placed:
        left, top, width, height = name.box
        near_y = np.abs(centers[0] - (top + height / 2)) < (height + box_size[1]) / 2 + 1
        near_x = np.abs(centers[1] - (left + width / 2)) < (width + box_size[0]) / 2 + 1
        depth[np.ix_(near_y, near_x)] = 0


def scaled(
    image: UInt8[np.ndarray, "h w 3"], labels: Int32[np.ndarray, "h w"], long_side: int | None
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Int32[np.ndarray, "h2 w2"]]:
    """Image and labels with a long side of so many pixels, or as they are."""
    if long_side is None or long_side == max(labels.shape):
        return image, labels
    factor = long_side / max(labels.shape)
    height, width = (max(1, round(side * factor)) for side in labels.shape)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized), sampled(labels, (height, width))


def sampled(labels: Shaped[np.ndarray, "h w"], size: tuple[int, int]) -> np.ndarray:
    """Labels, or a mask, in another size (height, width), each pixel that of one of the old."""
    if labels.shape == size:
        return labels
    rows, columns = ((np.arange(n) * old) // n for n, old in zip(size, labels.shape, strict=True))
    return labels[np.ix_(rows, columns)]


def _at_least(picture: np.ndarray, width: int) -> np.ndarray:
    missing = max(0, width - picture.shape[1])
    margins = (missing // 2, missing - missing // 2)
    return np.pad(picture, ((0, 0), margins, (0, 0)), constant_values=255)
