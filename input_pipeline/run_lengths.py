"""Masks as COCO files write them: run lengths, plain or compressed, and polygons."""

import importlib.util
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

Mask = Bool[np.ndarray, "h w"]


def decode_segmentation(segmentation: Any, image_size: tuple[int, int]) -> Mask:
    """The mask of an annotation's `segmentation`; polygons are drawn at `image_size`.

    Run lengths go down the columns and begin with what is outside: `{"size": [h, w], "counts":
    [...]}`, or with counts as the compressed string of COCO's tools. They are decoded here, since
    pycocotools returns uninitialised memory for counts that do not fill the mask.

    Raises:
        ValueError: neither run lengths nor polygons, or they do not fit the size.
    """
    if isinstance(segmentation, list):
        return _draw_polygons(segmentation, image_size)
    if not isinstance(segmentation, dict):
        raise ValueError(f"expected run lengths or polygons, got {segmentation!r:.80}")
    height, width = segmentation_size(segmentation, image_size)
    counts = segmentation.get("counts")
    if isinstance(counts, str | bytes):
        counts = _decompress_counts(counts)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        counts = np.array(counts, np.int64)
    else:
        raise ValueError(f"counts: expected a string or a list of integers, got {counts!r:.80}")
    if np.any(counts < 0) or counts.sum() != height * width:
        raise ValueError(
            f"counts: expected run lengths that add up to size {height} x {width} = "
            f"{height * width}, got {len(counts)} that add up to {counts.sum()}"
        )
    runs = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(runs, counts).reshape(width, height).T)


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
    if place.max() > 10:
        raise ValueError(f"counts: a number of {place.max() + 1} characters is too long")
    numbers = np.add.reduceat((codes & 31) << (5 * place), first)
    negative = codes[last] & 16 != 0
    numbers -= negative * (np.int64(1) << (5 * (place[last] + 1)))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _draw_polygons(polygons: list, image_size: tuple[int, int]) -> Mask:
    require_pycocotools("segmentation")
    from pycocotools import mask as coco

    polygons = [polygon for polygon in polygons if polygon != []]
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(type(x) in (int, float) for x in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise ValueError(
                f"polygon: expected [x0, y0, x1, y1, x2, y2, ...], got {polygon!r:.80}"
            )
    if not polygons:
        return np.zeros(image_size, bool)
    parts = coco.frPyObjects([np.clip(p, -1e6, 1e6).tolist() for p in polygons], *image_size)
    return decode_segmentation(coco.merge(parts), image_size)
