"""Where the shapes are: integer arithmetic only, so that every machine draws the same pixels."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

SHAPES = ("disc", "ring", "square", "triangle", "cross", "star")
"""Of the objects; no class has to do with it."""
UNIT = 1024
"""Radius of a shape in its own coordinates; discs reach to 0.9 of it, points of stars to 1.3."""
_FRACTION = 4096

Coordinates = Int[np.ndarray, "h w"]
Inside = Bool[np.ndarray, "h w"]


def shape_coordinates(
    y: Coordinates, x: Coordinates, center: tuple[int, int], radius: int, degrees: int
) -> tuple[Coordinates, Coordinates]:
    """Pixels in the coordinates of a shape: its center is 0, its radius UNIT, its top is up.

    `center` (y, x) and `radius` are in pixels; the shape is turned clockwise.
    """
    cosine, sine = fixed_point(math.cos, degrees), fixed_point(math.sin, degrees)
    down, right = y - center[0], x - center[1]
    scale = _FRACTION * radius
    return (
        UNIT * (down * cosine - right * sine) // scale,
        UNIT * (down * sine + right * cosine) // scale,
    )


def inside_shape(shape: int, down: Coordinates, right: Coordinates) -> Inside:
    """Which pixels, given in the coordinates of the shape, belong to the shape of this index."""
    return _OUTLINES[SHAPES[shape]](down, right)


def fixed_point(function: Callable[[float], float], degrees: int) -> int:
    """Sine or cosine times 4096, rounded: the same everywhere, unlike its last bits."""
    return round(_FRACTION * function(math.radians(degrees)))


def _disc(down: Coordinates, right: Coordinates) -> Inside:
    return down**2 + right**2 <= (UNIT * 9 // 10) ** 2


def _ring(down: Coordinates, right: Coordinates) -> Inside:
    distance = down**2 + right**2
    return (distance <= UNIT**2) & (distance >= (UNIT * 11 // 20) ** 2)


def _square(down: Coordinates, right: Coordinates) -> Inside:
    half = UNIT * 8 // 10
    return (np.abs(down) <= half) & (np.abs(right) <= half)


def _cross(down: Coordinates, right: Coordinates) -> Inside:
    down, right = np.abs(down), np.abs(right)
    arm = UNIT * 7 // 20
    return (np.maximum(down, right) <= UNIT) & (np.minimum(down, right) <= arm)


def _triangle(down: Coordinates, right: Coordinates) -> Inside:
    """Equilateral: behind all of three lines at the same distance from the center."""
    return _lines_in_front(down, right, sides=3, distance=UNIT * 11 // 20) == 0


def _star(down: Coordinates, right: Coordinates) -> Inside:
    """A pentagram that stands on a point: what is behind at least four of its five lines."""
    return _lines_in_front(down, right, sides=5, distance=UNIT * 2 // 5) <= 1


def _lines_in_front(
    down: Coordinates, right: Coordinates, sides: int, distance: int
) -> Int[np.ndarray, "h w"]:
    """How many of the lines, one at the bottom and the others in equal turns, a pixel is beyond."""
    beyond = np.zeros(down.shape, np.int8)
    for side in range(sides):
        degrees = 360 * side // sides
        along = down * fixed_point(math.cos, degrees) + right * fixed_point(math.sin, degrees)
        beyond += along > distance * _FRACTION
    return beyond


_OUTLINES = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
}
