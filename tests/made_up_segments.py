"""Panoptic and instance results of made-up scenes, for tests of what is done with them."""

import numpy as np
from scipy import ndimage

from input_pipeline.run_lengths import encode_mask
from maft_jax.inference.segments import (
    VOID,
    InstanceSegmentation,
    PanopticSegmentation,
    Segment,
)

CLASS_NAMES = ("cat", "sofa", "wall")
THINGS = frozenset({0, 1})


def box_of(mask):
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    return left, top, right - left + 1, bottom - top + 1


def segment_of(number, class_index, mask, score):
    return Segment(
        id=number,
        class_index=class_index,
        class_name=CLASS_NAMES[class_index],
        is_thing=class_index in THINGS,
        score=score,
        num_pixels=int(mask.sum()),
        box=box_of(mask),
    )


def photo(size, seed=0):
    noise = np.random.default_rng(seed).random((*size, 3))
    smooth = ndimage.gaussian_filter(noise, (4, 4, 0))
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


def discs(size):
    """Two discs that overlap, and a third with a hole, as bool [3, h, w]."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    reach = min(size) / 4
    centers = ((0.35, 0.3), (0.45, 0.45), (0.6, 0.8))
    masks = [np.hypot(y - a * height, x - b * width) < reach for a, b in centers]
    masks[2] &= np.hypot(y - 0.6 * height, x - 0.8 * width) > reach / 2
    return np.array(masks)


def made_up_panoptic(size=(48, 80), seed=0):
    """Two cats and a sofa before a wall; the lowest tenth is void."""
    masks = discs(size)
    segment_map = np.full(size, 4, np.int32)
    for number in (3, 2, 1):
        segment_map[masks[number - 1]] = number
    segment_map[-(size[0] // 10) :] = VOID
    segments = tuple(
        segment_of(number, class_index, segment_map == number, 0.9 - number / 10)
        for number, class_index in ((1, 0), (2, 0), (3, 1), (4, 2))
    )
    return PanopticSegmentation(photo(size, seed), CLASS_NAMES, THINGS, segment_map, segments)


def made_up_instances(size=(48, 80), seed=0):
    """Two cats that overlap, and a sofa with a hole."""
    masks = discs(size)
    instances = tuple(
        segment_of(number, class_index, masks[number - 1], 0.9 - number / 10)
        for number, class_index in ((1, 0), (2, 0), (3, 1))
    )
    runs = tuple(encode_mask(mask) for mask in masks)
    return InstanceSegmentation(photo(size, seed), CLASS_NAMES, instances, runs)


def nothing_found(size=(20, 30)):
    """A panoptic and an instance result of an image in which nothing is."""
    image, empty = photo(size), np.zeros(size, np.int32)
    return (
        PanopticSegmentation(image, CLASS_NAMES, THINGS, empty, ()),
        InstanceSegmentation(image, CLASS_NAMES, (), ()),
    )
