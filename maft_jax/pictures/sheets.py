"""Pictures of what the trainer sees and of what CLIP makes of it, with names at regions."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import mark_boundaries

from input_pipeline.examples import IGNORE
from maft_jax.pictures.lettering import letters_for, readable

COLUMNS = ("image", "labels", "frozen", "tuned")
"""Titles of a comparison sheet."""

_GAP = 4
_OUTLINE = (1.0, 0.85, 0.0)
_FONT_SIZE = 13
_TITLE_HEIGHT = 20
_TITLE_BACKGROUND = 40
_SMALLEST_NAMED_SHARE = 0.004


def contact_sheet(
    batch: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    example_ids: Sequence[str],
    num_proposals: int = 6,
    tile_size: int = 240,
) -> UInt8[np.ndarray, "h w 3"]:
    """One row per training example: image, named labels, and proposals from first to last.

    `batch` is one of `train_pipeline.make_train_dataset`, or its first rows, and `example_ids`
    names the rows to draw: this is what the encoder and the losses get, after augmentation.
    Proposals are taken from the order of their scores, ever further apart, with their rank; what
    a proposal leaves out is darkened.
    """
    rows = []
    for i, example_id in enumerate(example_ids):
        square = (tile_size, tile_size)
        image = _resized(batch["image"][i], square, Image.Resampling.BILINEAR)
        labels = _resized(batch["label_map"][i], square, Image.Resampling.NEAREST)
        proposals = batch["proposals"][i][batch["proposal_valid"][i]]
        captioned = write_text(image, {example_id: (0, tile_size)})
        tiles = [captioned, name_regions(color_labels(image, labels), labels, class_names)]
        ranks = _spread_ranks(len(proposals), num_proposals)
        for rank in ranks:
            mask = _resized(proposals[rank - 1], square, Image.Resampling.BILINEAR)
            tiles.append(write_text(outline(image, mask >= 128), {f"#{rank}": (14, 8)}))
        blank = np.full_like(image, 255)
        rows.append(_joined(tiles + [blank] * (num_proposals - len(ranks)), axis=1))
    return _joined(rows, axis=0)


def comparison_sheet(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    label_maps: Sequence[Int[np.ndarray, "_ _"]],
    frozen: Sequence[Int[np.ndarray, "_ _"]],
    tuned: Sequence[Int[np.ndarray, "_ _"]],
    class_names: Sequence[str],
    example_ids: Sequence[str],
    tile_size: int = 240,
) -> UInt8[np.ndarray, "h w 3"]:
    """One row per image below the titles of COLUMNS: image | labels | frozen | tuned.

    Label maps hold class ids, IGNORE where there is none, at their own image's size; every picture
    is fitted into `tile_size` pixels with its aspect ratio kept, and the row is as high as that.

    Raises:
        ValueError: the sequences differ in length, are empty, or a label map is not of its
            image's size.
    """
    if not len(images):
        raise ValueError("comparison_sheet: expected at least one image, got none")
    band = np.full((_TITLE_HEIGHT, tile_size, 3), _TITLE_BACKGROUND, np.uint8)
    middle = (tile_size // 2, _TITLE_HEIGHT // 2)
    rows = [[write_text(band, {title: middle}) for title in COLUMNS]]
    for image, *maps, example_id in zip(
        images, label_maps, frozen, tuned, example_ids, strict=True
    ):
        height, width = _fitted(image.shape[:2], tile_size)
        shown = _resized(image, (height, width), Image.Resampling.BILINEAR)
        tiles = [write_text(shown, {_elided(example_id, width): (0, height)})]
        for column, label_map in zip(COLUMNS[1:], maps, strict=True):
            if label_map.shape != image.shape[:2]:
                raise ValueError(
                    f"comparison_sheet: {column} of {example_id}: expected a label map of its "
                    f"image's size {image.shape[:2]}, got {label_map.shape}"
                )
            labels = _resized(label_map.astype(np.int32), (height, width), Image.Resampling.NEAREST)
            tiles.append(name_regions(color_labels(shown, labels), labels, class_names))
        rows.append([_centred(tile, (height, tile_size)) for tile in tiles])
    return _joined([_joined(row, axis=1) for row in rows], axis=0)


def color_labels(
    image: UInt8[np.ndarray, "h w 3"], labels: Int[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Label colours over a grey image; unlabelled pixels stay grey. Colours are fixed per id."""
    grey = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
    blended = np.where((labels == IGNORE)[..., None], grey, 0.35 * grey + 0.65 * palette(labels))
    return blended.astype(np.uint8)


def palette(labels: Int[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """A colour for every id: hues a golden ratio apart, so that neighbouring ids differ."""
    hue = (labels * 0.618034) % 1.0
    angle = 2 * np.pi * (hue[..., None] + np.array([0.0, 1 / 3, 2 / 3]))
    return (135 + 110 * np.cos(angle)).astype(np.uint8)


def outline(
    image: UInt8[np.ndarray, "h w 3"],
    inside: Bool[np.ndarray, "h w"],
    brightness_outside: float = 1 / 3,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image darkened outside a mask, with the mask's border drawn."""
    darkened = (image * brightness_outside).astype(np.uint8)
    shown = np.where(inside[..., None], image, darkened)
    return (255 * mark_boundaries(shown, inside, color=_OUTLINE)).round().astype(np.uint8)


def name_regions(
    picture: UInt8[np.ndarray, "h w 3"],
    labels: Int[np.ndarray, "h w"],
    class_names: Sequence[str],
) -> UInt8[np.ndarray, "h w 3"]:
    """Writes the name of every class where its region is widest; specks stay without a name."""
    places = {}
    for class_id in np.unique(labels[labels != IGNORE]):
        region = labels == class_id
        if region.mean() >= _SMALLEST_NAMED_SHARE:
            depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(np.argmax(depth), depth.shape)
            places[readable(class_names[class_id], int(class_id))] = (int(x), int(y))
    return write_text(picture, places)


def write_text(
    picture: UInt8[np.ndarray, "h w 3"], places: Mapping[str, tuple[int, int]]
) -> UInt8[np.ndarray, "h w 3"]:
    """Writes each text centred at its (x, y), moved so that it stays inside if it can."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for text, (x, y) in places.items():
        font = _font(text)
        half_width = draw.textlength(text, font) / 2 + 2
        x = max(half_width, min(x, picture.shape[1] - half_width))
        y = max(_FONT_SIZE / 2, min(y, picture.shape[0] - _FONT_SIZE / 2 - 2))
        draw.text((x, y), text, "white", font, "mm", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def _spread_ranks(count: int, wanted: int) -> list[int]:
    """Up to `wanted` ranks of 1 .. count, ever further apart, the first and the last included."""
    if count <= wanted:
        return list(range(1, count + 1))
    return np.unique(np.geomspace(1, count, wanted).round().astype(int)).tolist()


def _resized(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize(size[::-1], how))


def _fitted(size: tuple[int, int], limit: int) -> tuple[int, int]:
    """Height and width of the largest picture of this aspect ratio within limit x limit."""
    return tuple(max(1, round(side * limit / max(size))) for side in size)


def _centred(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture in the middle of a white one of `size`."""
    canvas = np.full((*size, 3), 255, np.uint8)
    top, left = ((size[axis] - picture.shape[axis]) // 2 for axis in range(2))
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def _elided(text: str, width: int) -> str:
    """The end of a text, which tells files of a folder apart, as far as it fits."""
    font = _font(text)
    start = 0
    while start < len(text) - 1 and font.getlength("…" * (start > 0) + text[start:]) > width - 4:
        start += 1
    return "…" * (start > 0) + text[start:]


def _font(text: str) -> ImageFont.FreeTypeFont:
    return letters_for(text, _FONT_SIZE) or ImageFont.load_default(_FONT_SIZE)


def _joined(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """Parts of equal size beside or below each other, with white gaps between."""
    gap_shape = list(parts[0].shape)
    gap_shape[axis] = _GAP
    gap = np.full(gap_shape, 255, np.uint8)
    return np.concatenate([part for one in parts for part in (one, gap)][:-1], axis=axis)
