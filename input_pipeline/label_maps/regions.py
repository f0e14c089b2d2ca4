"""Label maps that are painted of regions with classes, and the rules of painting.

Where regions overlap, the smaller one (by its own pixels) is on top, of equal ones the later in the
source; crowd regions lie below all others. Pixels of no region are of the class `background` where
there is one, else ignored.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from input_pipeline.examples import IGNORE
from input_pipeline.label_maps.interface import LabelMap

_NAME_OF_THE_REST = re.compile(r"_*background_*", re.IGNORECASE)


class Region(NamedTuple):
    """A mask, and its class id or IGNORE."""

    class_id: int
    mask: Bool[np.ndarray, "h w"]
    is_crowd: bool = False


class RegionMaps:
    """What LabelMaps have in common whose values are class ids and IGNORE already."""

    advice_for_ignored = (
        "Pixels of no region are ignored, unless the class list has a class background: write a "
        "class list (config.data.classes) with it and the others, one name a line"
    )

    def __init__(self, class_names: Sequence[str]):
        self.class_names = tuple(class_names)
        self.rest = rest_class(class_names)

    def class_of(self, value: int) -> int:
        """The value itself."""
        return value

    def class_ids(self, values: Int32[np.ndarray, "h w"], where: str) -> Int32[np.ndarray, "h w"]:
        """The values themselves."""
        return values

    def describe(self, value: int) -> str:
        """The class's number."""
        return "no region" if value == IGNORE else f"class {value}"


def rest_class(class_names: Sequence[str]) -> int:
    """Class id of pixels of no region: that of `background`, or IGNORE."""
    matches = (i for i, name in enumerate(class_names) if _NAME_OF_THE_REST.fullmatch(name))
    return next(matches, IGNORE)


def paint(size: tuple[int, int], regions: Iterable[Region], rest: int) -> LabelMap:
    """The label map of regions, all of this size (height, width).

    Each is an instance, but for crowds and what is ignored.
    """
    classes, instances = np.full(size, rest, np.int32), np.zeros(size, np.int32)
    lowest_first = sorted(regions, key=lambda r: (not r.is_crowd, -np.count_nonzero(r.mask)))
    for number, region in enumerate(lowest_first, start=1):
        is_one = not region.is_crowd and region.class_id != IGNORE
        classes[region.mask] = region.class_id
        instances[region.mask] = number if is_one else 0
    return LabelMap(classes, instances)
