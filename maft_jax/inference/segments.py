"""What a panoptic and an instance result of one image are: objects with class, score and place."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8

VOID = 0
"""The id of pixels that belong to no segment."""


@dataclass(frozen=True)
class Segment:
    """One object, or all the pixels of a class without objects ("stuff")."""

    id: int
    """At least 1; the value of its pixels in a panoptic segment map."""
    class_index: int
    class_name: str
    is_thing: bool
    """Whether the class has countable objects."""
    score: float
    """From 0 to 1: of a panoptic segment its class's probability, of an instance that times the
    mean of its mask inside."""
    num_pixels: int
    box: tuple[int, int, int, int]
    """x, y, width, height in pixels."""


@dataclass(frozen=True, eq=False, repr=False)
class PanopticSegmentation:
    """One image, of which each pixel belongs to one segment or to none."""

    image: UInt8[np.ndarray, "h w 3"]
    class_names: tuple[str, ...]
    things: frozenset[int]
    """Indices of class_names that have countable objects."""
    segment_map: Int32[np.ndarray, "h w"]
    """Ids of segments; VOID where there is none."""
    segments: tuple[Segment, ...]
    """In the order of their ids, each of which is in the map."""

    def __repr__(self) -> str:
        height, width = self.segment_map.shape
        names = ", ".join(segment.class_name for segment in self.segments)
        return f"PanopticSegmentation({width}x{height} pixels: {names or 'no segment'})"


@dataclass(frozen=True, eq=False, repr=False)
class InstanceSegmentation:
    """One image with objects that may overlap."""

    image: UInt8[np.ndarray, "h w 3"]
    class_names: tuple[str, ...]
    instances: tuple[Segment, ...]
    """Highest score first, with ids from 1."""
    run_lengths: tuple[dict, ...]
    """The mask of each: COCO's {"size": [h, w], "counts": compressed string}."""

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        names = ", ".join(instance.class_name for instance in self.instances)
        return f"InstanceSegmentation({width}x{height} pixels: {names or 'no object'})"
