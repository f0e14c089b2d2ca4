"""Pictures of shapes world: one or two backgrounds, up to three objects that may overlap."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from input_pipeline.shapes_world.outlines import SHAPES, inside_shape, shape_coordinates
from input_pipeline.shapes_world.surfaces import paint_background, paint_object
from input_pipeline.shapes_world.vocabulary import (
    BACKGROUNDS,
    COLORS,
    OBJECTS,
    PATTERNS,
    object_class,
)

SIZE = 128
"""Pixels per side of a picture."""
_RADIUS = (22, 42)
"""Smallest and largest radius of an object, in pixels."""
_NUM_OBJECTS = (1, 1, 2, 2, 3)
"""Equally likely."""
_LEAST_VISIBLE = 0.6
"""Of each object, the fraction of its pixels that no later object may hide."""
_ATTEMPTS = 20
_OUTLINE_WIDTH = 3
_OUTLINE_COLOR = np.array((20, 20, 25))
_INNER = slice(_OUTLINE_WIDTH, -_OUTLINE_WIDTH)


@dataclass(frozen=True)
class Scene:
    """A picture, what its pixels are, and what can be named in it."""

    image: UInt8[np.ndarray, "size size 3"]
    label_map: UInt8[np.ndarray, "size size"]
    """Positions in CLASS_NAMES."""
    instance_map: UInt8[np.ndarray, "size size"]
    """Numbers of `objects` from 1, 0 where a background is seen."""
    objects: tuple[tuple[int, int], ...]
    """Class id and radius in pixels of each object, the hindmost first."""
    backgrounds: tuple[int, ...]
    """Class ids."""


@dataclass(frozen=True)
class _Object:
    class_id: int
    radius: int
    inside: Bool[np.ndarray, "size size"]
    pixels: Int[np.ndarray, "size size 3"]


def draw_scene(seed: int, number: int, max_objects: int = 3) -> Scene:
    """Scene `number` of the world of this seed: the same pixels on every machine."""
    rng = np.random.RandomState([seed, number])
    image, label_map, backgrounds = _draw_ground(rng)
    num_objects = min(max_objects, _NUM_OBJECTS[rng.randint(len(_NUM_OBJECTS))])
    owner = np.full((SIZE, SIZE), -1)
    areas: list[int] = []
    objects: list[tuple[int, int]] = []
    for _ in range(_ATTEMPTS):
        if len(objects) == num_objects:
            break
        new = _draw_object(rng)
        hidden = np.where(new.inside, len(objects), owner)
        visible = np.bincount(hidden[hidden >= 0], minlength=len(objects) + 1)
        if any(left < _LEAST_VISIBLE * area for left, area in zip(visible, areas, strict=False)):
            continue
        owner, image = hidden, np.where(new.inside[..., None], new.pixels, image)
        label_map = np.where(new.inside, new.class_id, label_map)
        areas.append(int(new.inside.sum()))
        objects.append((new.class_id, new.radius))
    maps = label_map.astype(np.uint8), (owner + 1).astype(np.uint8)
    return Scene(_light(image, rng), *maps, tuple(objects), backgrounds)


def _draw_ground(
    rng: np.random.RandomState,
) -> tuple[Int[np.ndarray, "size size 3"], Int[np.ndarray, "size size"], tuple[int, ...]]:
    """Texture and labels of one background, or of two that meet at a slanted line."""
    first, second = rng.permutation(len(BACKGROUNDS))[:2]
    image = paint_background(first, SIZE, rng)
    label_map = np.full((SIZE, SIZE), len(OBJECTS) + first)
    if rng.randint(2):
        return image, label_map, (len(OBJECTS) + int(first),)
    y, x = np.ogrid[:SIZE, :SIZE]
    slant = rng.randint(-40, 41)
    height = rng.randint(SIZE * 3 // 10, SIZE * 7 // 10)
    below = 100 * (y - height) > slant * (x - SIZE // 2)
    if rng.randint(2):
        below = below.T
    image = np.where(below[..., None], paint_background(second, SIZE, rng), image)
    label_map = np.where(below, len(OBJECTS) + second, label_map)
    return image, label_map, (len(OBJECTS) + int(first), len(OBJECTS) + int(second))


def _draw_object(rng: np.random.RandomState) -> _Object:
    pattern, color = rng.randint(len(PATTERNS)), rng.randint(len(COLORS))
    shape = rng.randint(len(SHAPES))
    radius = rng.randint(_RADIUS[0], _RADIUS[1] + 1)
    center = rng.randint(radius * 3 // 4, SIZE - radius * 3 // 4, 2)
    y, x = np.mgrid[:SIZE, :SIZE]
    down, right = shape_coordinates(y, x, (center[0], center[1]), radius, rng.randint(360))
    inside = inside_shape(shape, down, right)
    pixels = paint_object(pattern, color, down, right, radius, rng)
    pixels = np.where(_rim(inside)[..., None], _OUTLINE_COLOR, pixels)
    return _Object(object_class(pattern, color), int(radius), inside, pixels)


def _rim(inside: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of a shape that are near its border."""
    padded = np.pad(inside, _OUTLINE_WIDTH, constant_values=True)
    core = inside.copy()
    for axis in (0, 1):
        for shift in (-_OUTLINE_WIDTH, _OUTLINE_WIDTH):
            core &= np.roll(padded, shift, axis)[_INNER, _INNER]
    return inside & ~core


def _light(image: np.ndarray, rng: np.random.RandomState) -> UInt8[np.ndarray, "size size 3"]:
    """Uneven light of a few percent from side to side, and noise."""
    y, x = np.ogrid[:SIZE, :SIZE]
    slope_y, slope_x = rng.randint(-16, 17, 2)
    light = 256 + (slope_y * (2 * y - SIZE) + slope_x * (2 * x - SIZE)) // SIZE
    noise = rng.randint(-6, 7, image.shape)
    return np.clip(image * light[..., None] // 256 + noise, 0, 255).astype(np.uint8)
