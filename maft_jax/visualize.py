"""Pictures of training data: an image, its label map, and some of its proposals side by side."""

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from skimage.segmentation import mark_boundaries

from input_pipeline.examples import IGNORE, PreparedExample, PreparedSource

_GAP = 4
_OUTLINE = (1.0, 0.85, 0.0)


def draw_examples(
    source: PreparedSource, num_examples: int = 4, num_proposals: int = 4, height: int = 180
) -> UInt8[np.ndarray, "h w 3"]:
    """One row for each of the first examples, all of the given height."""
    count = min(num_examples, len(source))
    rows = [draw_example(source[index], num_proposals, height) for index in range(count)]
    width = max(row.shape[1] for row in rows)
    padding = ((0, _GAP), (0, 0), (0, 0))
    filled = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate([np.pad(row, padding, constant_values=255) for row in filled])[:-_GAP]


def draw_example(
    example: PreparedExample, num_proposals: int, height: int
) -> UInt8[np.ndarray, "h w 3"]:
    """One row: the image, its labels in colour, and proposals from coarse to fine.

    Proposals are taken from the example's order, which goes from coarse to fine, ever further
    apart. What a proposal leaves out is darkened.
    """
    size = _size_at(example.image, height)
    image = _resized(example.image, size, Image.Resampling.BILINEAR)
    labels = _resized(example.label_map.astype(np.int32), size, Image.Resampling.NEAREST)
    tiles = [image, color_labels(image, labels)]
    count = len(example.proposals)
    chosen = np.geomspace(1, max(1, count), num_proposals).round().astype(int)
    for mask in example.proposals[np.unique(chosen[chosen <= count]) - 1]:
        inside = _resized(mask, size, Image.Resampling.BILINEAR) >= 128
        tiles.append(outline(image, inside))
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


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
    image: UInt8[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The image darkened outside a mask, with the mask's border drawn."""
    shown = np.where(inside[..., None], image, image // 3)
    return (255 * mark_boundaries(shown, inside, color=_OUTLINE)).round().astype(np.uint8)


def _size_at(image: np.ndarray, height: int) -> tuple[int, int]:
    return max(1, round(image.shape[1] * height / image.shape[0])), height


def _resized(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize(size, how))
