"""Patterns by what defines them, on a grid of one unit per pixel; colours by their hue; inks."""

import colorsys
import itertools

import numpy as np
import pytest
from skimage.measure import label, regionprops

from input_pipeline.shapes_world.surfaces import paint_background, paint_object
from input_pipeline.shapes_world.vocabulary import BACKGROUNDS, COLORS, PATTERNS

pytestmark = pytest.mark.slow

SIDE, RADIUS = 400, 128
DOWN, RIGHT = np.mgrid[-150 : SIDE - 150, -130 : SIDE - 130]
PERIODS = {72, 80, 88, 96}
"""9 to 12 pixels of an object of this radius, in its own coordinates."""
HUES = {"red": 0, "yellow": 50, "green": 130, "blue": 230, "purple": 285}

every_color = pytest.mark.parametrize("color", COLORS)
every_pattern = pytest.mark.parametrize("pattern", PATTERNS[1:])
"""That has an ink."""
every_draw = pytest.mark.parametrize("seed", range(5))


def painted(pattern, color, seed, down=DOWN, right=RIGHT):
    rng = np.random.RandomState(seed)
    return paint_object(PATTERNS.index(pattern), COLORS.index(color), down, right, RADIUS, rng)


def figure(pattern, seed, **coordinates):
    """Where the ink of a pattern is: on white, it is the darker of two colours."""
    pixels = painted(pattern, "white", seed, **coordinates).sum(axis=-1)
    assert len(np.unique(pixels)) == 2
    return pixels == pixels.min()


def period_of(values):
    """The shortest way along the first axis that changes nothing."""
    return next(p for p in range(1, len(values) // 2) if np.array_equal(values[p:], values[:-p]))


def run_lengths(values):
    """Of the whole runs of True in a row."""
    edges = np.flatnonzero(np.diff(values.astype(int))) + 1
    return {int(b - a) for a, b in itertools.pairwise(edges) if values[a]}


@every_color
def test_plain_objects_have_one_colour(color):
    assert len(np.unique(painted("plain", color, 0).reshape(-1, 3), axis=0)) == 1


@every_draw
def test_stripes_are_constant_along_the_object_and_half_of_their_period(seed):
    drawn = figure("striped", seed)
    assert (drawn == drawn[0]).all()
    period = period_of(drawn[0])
    assert period in PERIODS and run_lengths(drawn[0]) == {period // 2}


@every_draw
def test_dots_are_discs_of_three_tenths_of_the_period_in_a_square_grid(seed):
    drawn = figure("dotted", seed)
    period = period_of(drawn)
    assert period in PERIODS and period_of(drawn.T) == period
    whole = [
        dot
        for dot in regionprops(label(drawn))
        if min(dot.bbox[:2]) > 0 and max(dot.bbox[2:]) < SIDE
    ]
    assert len(whole) >= 9
    for dot in whole:
        assert abs(dot.area / (np.pi * (0.3 * period) ** 2) - 1) < 0.08
        assert dot.solidity > 0.95 and dot.eccentricity < 0.1
    down, right = np.array([dot.centroid for dot in whole]).T
    for along in (down, right):
        np.testing.assert_allclose(np.unique(np.diff(np.unique(along.round()))), period)


@every_draw
def test_checks_are_squares_that_invert_when_moved_by_one(seed):
    drawn = figure("checked", seed)
    side = next(iter(run_lengths(drawn[0])))
    assert side in {period * 2 // 3 for period in PERIODS}
    np.testing.assert_array_equal(drawn[side:], ~drawn[:-side])
    np.testing.assert_array_equal(drawn[:, side:], ~drawn[:, :-side])
    assert run_lengths(drawn[:, 0]) == run_lengths(drawn[0]) == {side}


@every_draw
def test_nets_are_lines_across_and_along(seed):
    drawn = figure("netted", seed)
    across, along = drawn.all(axis=1), drawn.all(axis=0)
    np.testing.assert_array_equal(drawn, across[:, None] | along[None, :])
    for lines in (across, along):
        period = period_of(lines)
        assert period in PERIODS and run_lengths(lines) == {period // 4}


def test_speckles_are_blocks_of_two_by_two_pixels_one_in_four():
    drawn = figure("speckled", 0)
    blocks = drawn.reshape(SIDE // 2, 2, SIDE // 2, 2)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert abs(drawn.mean() - 0.25) < 0.01
    correlations = np.corrcoef(blocks[1:, 0, :, 0].ravel(), blocks[:-1, 0, :, 0].ravel())
    assert abs(correlations[0, 1]) < 0.03


def test_speckles_cover_odd_pictures_too():
    assert figure("speckled", 0, down=DOWN[:7, :5], right=RIGHT[:7, :5]).shape == (7, 5)


def test_speckles_are_drawn_anew_and_other_patterns_follow_the_object():
    moved = {"down": DOWN + 17, "right": RIGHT - 40}
    np.testing.assert_array_equal(figure("speckled", 1), figure("speckled", 1, **moved))
    assert (figure("speckled", 1) != figure("speckled", 2)).mean() > 0.3
    for pattern in ("striped", "dotted", "checked", "netted"):
        drawn, shifted = figure(pattern, 1), figure(pattern, 1, **moved)
        np.testing.assert_array_equal(drawn[17:, :-40], shifted[:-17, 40:])


def ground_and_ink(pattern, color, seed):
    """The two colours of an object, each of one value throughout."""
    small = {"down": DOWN[:100, :100], "right": RIGHT[:100, :100]}
    pixels, is_ink = painted(pattern, color, seed, **small), figure(pattern, seed, **small)
    (ground,), (ink,) = (np.unique(pixels[part], axis=0) for part in (~is_ink, is_ink))
    return ground, ink


@every_color
@every_pattern
def test_grounds_have_the_colour_of_the_class_under_every_pattern(pattern, color):
    for seed in range(10):
        ground, _ = ground_and_ink(pattern, color, seed)
        assert color_name(ground) == color


def color_name(rgb):
    hue, saturation, value = colorsys.rgb_to_hsv(*(rgb / 255))
    if saturation < 0.2 and value > 0.8:
        return "white"
    return min(HUES, key=lambda name: abs((360 * hue - HUES[name] + 180) % 360 - 180))


@every_pattern
def test_ink_of_a_pattern_is_the_same_on_every_colour(pattern):
    inks = np.array([ground_and_ink(pattern, "white", seed)[1] for seed in range(20)])
    for color in COLORS:
        np.testing.assert_array_equal(ground_and_ink(pattern, color, 0)[1], inks[0])
    assert 5 < np.ptp(inks, axis=0).max() <= 24, "it varies a little"


def test_inks_can_be_told_from_one_another_and_from_every_ground():
    drawn = {
        (pattern, color): np.mean([ground_and_ink(pattern, color, n) for n in range(5)], axis=0)
        for pattern, color in itertools.product(PATTERNS[1:], COLORS)
    }
    grounds = [drawn["striped", color][0] for color in COLORS]
    inks = [drawn[pattern, "white"][1] for pattern in PATTERNS[1:]]
    for one, other in [*itertools.combinations(inks, 2), *itertools.product(inks, grounds)]:
        assert np.linalg.norm(one - other) > 60


@pytest.mark.parametrize("background", range(len(BACKGROUNDS)))
def test_equal_random_numbers_paint_equal_backgrounds(background):
    first, again, other = (
        paint_background(background, 50, np.random.RandomState(seed)) for seed in (3, 3, 4)
    )
    assert first.shape == (50, 50, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
