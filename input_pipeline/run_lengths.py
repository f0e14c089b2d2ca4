"""Masks as COCO files write them: run lengths, plain or compressed, and polygons."""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from input_pipeline.limits import MAX_PIXELS, check_limit

Mask = Bool[np.ndarray, "h w"]

_LARGEST_COORDINATE = 1e12
"""Of polygons; beyond it, and of NaN, nobody knows what was meant."""
_LONGEST_OUTLINE = 10_000_000


def decode_segmentation(segmentation: Any, image_size: tuple[int, int]) -> Mask:
    """The mask of an annotation's `segmentation`; polygons are drawn at `image_size`.

    Run lengths go down the columns and begin with what is outside: `{"size": [h, w], "counts":
    [...]}`, or with counts as the compressed string of COCO's tools. They are decoded here, since
    pycocotools returns uninitialised memory for counts that do not fill the mask.

    Raises:
        ValueError: neither run lengths nor polygons, or they do not fit the size.
    """
    encoded = encode_segmentation(segmentation, image_size)
    runs, (height, width) = mask_runs(encoded), encoded["size"]
    inside = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, runs).reshape(width, height).T)


def encode_segmentation(segmentation: Any, image_size: tuple[int, int]) -> Mapping:
    """The run lengths of an annotation's `segmentation`: its own, or those of its polygons.

    Raises:
        ValueError: as `decode_segmentation`.
    """
    if isinstance(segmentation, list):
        return _draw_polygons(segmentation, image_size)
    _checked_runs(segmentation)
    return segmentation


def count_pixels(segmentation: Mapping) -> int:
    """Inside of a mask, of its run lengths.

    Raises:
        ValueError: as `mask_runs`.
    """
    return int(mask_runs(segmentation)[1::2].sum())


def mask_runs(segmentation: Mapping) -> Int64[np.ndarray, " run"]:
    """The run lengths of a mask, down the columns; the first is of what is outside.

    Raises:
        ValueError: they are none, or do not fit the size.
    """
    return np.array(_checked_runs(segmentation), np.int64)


def common_pixels(one: Int64[np.ndarray, " run"], other: Int64[np.ndarray, " runs"]) -> int:
    """How many pixels lie inside of both of two masks of one size, of their `mask_runs`."""
    edges = np.concatenate([[0], np.cumsum(one)])
    inside = np.concatenate([[0], np.cumsum(one * (np.arange(len(one)) % 2))])
    # Exact: between its edges the number of pixels inside grows by 0 or 1.
    counted = np.interp(np.cumsum(other), edges, inside)
    return int(np.diff(counted)[::2].sum())


def _checked_runs(segmentation: Any) -> list[int]:
    if not isinstance(segmentation, dict):
        raise ValueError(f"expected run lengths or polygons, got {segmentation!r:.80}")
    height, width = segmentation_size(segmentation, (0, 0))
    area = height * width
    check_limit(MAX_PIXELS, area, f"size: {height} x {width} pixels of a mask")
    counts = segmentation.get("counts")
    if isinstance(counts, str | bytes):
        counts = _decompress_counts(counts).tolist()
    elif not (isinstance(counts, list) and all(type(count) is int for count in counts)):
        raise ValueError(f"counts: expected a string or a list of integers, got {counts!r:.80}")
    # Python's integers: sums of NumPy's wrap around, and a wrong repeat writes outside of its array
    if min(counts, default=0) < 0 or sum(counts) != area:
        raise ValueError(
            f"counts: expected run lengths that add up to size {height} x {width} = {area}, got "
            f"{len(counts)} that add up to {sum(counts)!r:.40}"
        )
    return counts


def segmentation_size(segmentation: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the mask, without decoding it.

    Raises:
        ValueError: `size` is not two positive integers.
    """
    if not isinstance(segmentation, dict):
        return image_size
    match segmentation.get("size"):
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
        case size:
            raise ValueError(f"size: expected [height, width], got {size!r}")


def require_pycocotools(where: str) -> None:
    """Refuses polygons, which it draws, where it is not installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise ValueError(
            f"{where}: polygons need pycocotools: pip install 'maft_jax[external]' (or pycocotools)"
        )


def _decompress_counts(text: str | bytes) -> Int64[np.ndarray, " run"]:
    """Run lengths of COCO's compressed string.

    Each is a little-endian number of 5 bits a character, from character 48 on; bit 6 says that
    another follows, bit 5 of the last is the sign. From the third on they are differences from
    the last but one, except that the very first one is a run of its own.
    """
    data = text.encode(errors="replace") if isinstance(text, str) else text
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError(f"counts: expected COCO's compressed run lengths, got {text!r:.80}")
    last = np.flatnonzero(codes & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    if place.max() > 6:  # 2**34 pixels
        raise ValueError(f"counts: a number of {place.max() + 1} characters is too long")
    numbers = np.add.reduceat((codes & 31) << (5 * place), first)
    negative = codes[last] & 16 != 0
    numbers -= negative * (np.int64(1) << (5 * (place[last] + 1)))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _draw_polygons(polygons: list, image_size: tuple[int, int]) -> dict:
    require_pycocotools("segmentation")
    from pycocotools import mask as coco

    polygons = [polygon for polygon in polygons if polygon != []]
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(
            type(x) in (int, float) and abs(x) < _LARGEST_COORDINATE for x in polygon
        )
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"polygon: expected [x0, y0, x1, y1, x2, y2, ...], got {polygon!r:.80}"
            )
    check_limit(MAX_PIXELS, math.prod(image_size), "pixels that polygons are drawn on")
    if not polygons:
        return encode_mask(np.zeros(image_size, bool))
    polygons = [np.clip(polygon, -1e6, 1e6) for polygon in polygons]
    for polygon in polygons:
        points = polygon.reshape(-1, 2)
        outline = np.abs(points - np.roll(points, 1, 0)).max(1).sum()
        if outline > _LONGEST_OUTLINE:  # pycocotools counts its steps in 32 bits, unchecked
            raise ValueError(
                f"polygon: expected an outline of at most {_LONGEST_OUTLINE} pixels, got "
                f"{outline:.0f} with {len(points)} points"
            )
    parts = coco.frPyObjects([polygon.tolist() for polygon in polygons], *image_size)
    return coco.merge(parts)


def encode_mask(mask: Mask) -> dict:
    """COCO's compressed run lengths of a mask: {"size": [h, w], "counts": string}."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(edges)
    if flat.size and flat[0]:
        runs = np.concatenate([[0], runs])
    return {"size": list(mask.shape), "counts": _compress_counts(runs)}


def _compress_counts(runs: Int64[np.ndarray, " run"]) -> str:
    """The string that `_decompress_counts` reads."""
    numbers = runs.astype(np.int64)
    numbers[3:] -= runs[1:-2]
    characters = []
    for number in numbers.tolist():
        more = True
        while more:
            bits = number & 31
            number >>= 5
            more = number != (-1 if bits & 16 else 0)
            characters.append(chr(48 + (bits | 32 if more else bits)))
    return "".join(characters)
