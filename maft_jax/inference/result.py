"""What a segmentation of one image is, and its classes as numbers: areas, scores, boxes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8
from scipy.ndimage import find_objects

_PIXELS_AT_A_TIME = 2**20
"""Whose sums are made at once, which take 64 bits of each."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """One image with a class for each pixel, and the proposals that the classes came from."""

    image: UInt8[np.ndarray, "h w 3"]
    class_names: tuple[str, ...]
    label_map: Int32[np.ndarray, "h w"]
    """Indices of class_names; -1 where no proposal covers, or a background name won."""
    score: Float32[np.ndarray, "h w"]
    """The winner's probability, be it a background name: the mean of the proposals that cover the
    pixel, as far as they do; 0 where none does."""
    proposals: UInt8[np.ndarray, "n grid_h grid_w"]
    """Highest score first, 255 = inside; the grid's corners lie on the image's corner pixels."""
    proposal_probabilities: Float32[np.ndarray, "n c"]
    """Of class_names; what is missing to 1 in a row belongs to the background names."""
    background: tuple[str, ...] = ()

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        shares = [f"{region.name} {region.share:.0%}" for region in class_regions(self)]
        return f"Segmentation({width}x{height} pixels: {', '.join(shares) or 'no class'})"


@dataclass(frozen=True)
class ClassRegion:
    """The pixels of one class in one image."""

    index: int
    name: str
    num_pixels: int
    share: float
    """Of the image's pixels."""
    mean_score: float
    box: tuple[int, int, int, int]
    """x, y, width, height in pixels."""


def class_regions(segmentation: Segmentation) -> list[ClassRegion]:
    """The classes that are in the picture, largest first."""
    labels, names = segmentation.label_map, segmentation.class_names
    shifted = labels + 1
    pixels, scores = (sums[1:] for sums in _sums(shifted, segmentation.score, len(names) + 1))
    boxes = find_objects(shifted, max_label=len(names))
    regions = []
    for index in np.argsort(-pixels, kind="stable").tolist():
        if not pixels[index]:
            break
        rows, columns = boxes[index]
        regions.append(
            ClassRegion(
                index=index,
                name=names[index],
                num_pixels=int(pixels[index]),
                share=float(pixels[index] / labels.size),
                mean_score=float(scores[index] / pixels[index]),
                box=(
                    columns.start,
                    rows.start,
                    columns.stop - columns.start,
                    rows.stop - rows.start,
                ),
            )
        )
    return regions


def _sums(
    values: Int32[np.ndarray, "h w"], weights: Float32[np.ndarray, "h w"], count: int
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Pixels and weights by value, added one after the other: strips change no bit of the sums."""
    everything = np.arange(count)
    pixels, sums = np.zeros(count, np.int64), np.zeros(count)
    height = max(1, _PIXELS_AT_A_TIME // values.shape[1])
    for first in range(0, len(values), height):
        strip = values[first : first + height].ravel()
        pixels += np.bincount(strip, minlength=count)
        of_strip = weights[first : first + height].ravel()
        sums = np.bincount(
            np.concatenate([everything, strip]), np.concatenate([sums, of_strip]), count
        )
    return pixels, sums
