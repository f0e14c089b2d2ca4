"""The outlines against polygons and discs of scikit-image, drawn from the shapes' geometry."""

import math

import numpy as np
import pytest
from skimage.draw import disk, polygon

from input_pipeline.shapes_world.outlines import (
    SHAPES,
    fixed_point,
    inside_shape,
    shape_coordinates,
)

SIZE, CENTER, RADIUS = 128, (66, 61), 38

# Corners as (degrees clockwise from the top, distance from the center in radii).
_FAR, _NEAR = math.hypot(1, 0.35), math.hypot(0.35, 0.35)
_ARM = math.degrees(math.atan(0.35))
CORNERS = {
    "square": [(45 + 90 * k, 0.8 * math.sqrt(2)) for k in range(4)],
    "triangle": [(120 * k, 1.1) for k in range(3)],
    "cross": [
        (90 * k + degrees, distance)
        for k in range(4)
        for degrees, distance in ((-_ARM, _FAR), (_ARM, _FAR), (45, _NEAR))
    ],
    # A pentagram that stands on one of its points.
    "star": [
        corner
        for k in range(5)
        for corner in (
            (72 * k, 0.4 / math.cos(math.radians(36))),
            (72 * k + 36, 0.4 / math.cos(math.radians(72))),
        )
    ],
}


def reference(shape, degrees):
    drawn = np.zeros((SIZE, SIZE), bool)
    if shape in CORNERS:
        turned = [(math.radians(angle + degrees), RADIUS * far) for angle, far in CORNERS[shape]]
        rows = [CENTER[0] - far * math.cos(angle) for angle, far in turned]
        columns = [CENTER[1] + far * math.sin(angle) for angle, far in turned]
        drawn[polygon(rows, columns, drawn.shape)] = True
        return drawn
    drawn[disk(CENTER, RADIUS * {"disc": 0.9, "ring": 1.0}[shape])] = True
    if shape == "ring":
        drawn[disk(CENTER, RADIUS * 0.55)] = False
    return drawn


def drawn_by_us(shape, degrees, center=CENTER, radius=RADIUS):
    y, x = np.mgrid[:SIZE, :SIZE]
    return inside_shape(SHAPES.index(shape), *shape_coordinates(y, x, center, radius, degrees))


@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 133, 250, 359])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_those_of_their_geometry(shape, degrees):
    ours, expected = drawn_by_us(shape, degrees), reference(shape, degrees)
    assert (ours & expected).sum() > 0.97 * (ours | expected).sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_smaller_shapes_have_proportionally_fewer_pixels(shape):
    small, large = (drawn_by_us(shape, 30, radius=radius).sum() for radius in (19, 38))
    assert abs(large / small - 4) < 0.15


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_move_with_their_center(shape):
    moved = drawn_by_us(shape, 70, center=(CENTER[0] + 4, CENTER[1] - 7))
    np.testing.assert_array_equal(moved, np.roll(drawn_by_us(shape, 70), (4, -7), (0, 1)))


def test_sines_are_integers_in_units_of_a_4096th():
    sines = [fixed_point(math.sin, degrees) for degrees in (0, 30, 45, 90, 180, 210, 270)]
    assert sines == [0, 2048, 2896, 4096, 0, -2048, -4096]
