"""Pictures of objects: shades, outlines, what lies on top, the legend's lines."""

import numpy as np
import pytest

from maft_jax.inference.object_overlay import object_colors, object_overlay, uppermost_segments
from maft_jax.inference.segment_masks import masks_of
from maft_jax.pictures.name_colors import name_color, shades
from tests.made_up_segments import made_up_instances, made_up_panoptic, nothing_found

BOTH = pytest.mark.parametrize("make", [made_up_panoptic, made_up_instances])


@BOTH
def test_objects_have_shades_of_their_classs_colour(make):
    first, second, sofa, *_ = object_colors(make())
    assert (first, sofa) == (name_color("cat"), name_color("sofa"))
    assert 40 < np.linalg.norm(np.subtract(first, second)) < 150


@pytest.mark.parametrize("name", ["cat", "sofa", "car", "tree"])
def test_objects_of_a_class_look_different_those_in_a_row_most(name):
    found = np.array(shades(name_color(name), 12))
    distances = np.linalg.norm(found[:, None] - found, axis=-1) + 1e3 * np.eye(12)
    assert distances[:5, :5].min() > 15 and distances.min() > 3
    assert np.diagonal(distances, 1).min() > 25
    assert len(shades(name_color(name), 300)) == 300


def test_grey_and_the_ends_of_the_scale_have_shades():
    for color in ((0, 0, 0), (255, 255, 255), (128, 128, 128)):
        for shade in shades(color, 9):
            assert max(shade) - min(shade) <= 1 and 0 <= min(shade) <= max(shade) <= 255


def test_of_instances_the_smaller_one_is_on_top():
    result = made_up_instances()
    expected = np.full(result.image.shape[:2], -1)
    masks = list(masks_of(result))
    for place in np.argsort([-instance.num_pixels for instance in result.instances], kind="stable"):
        expected[masks[place]] = place
    np.testing.assert_array_equal(uppermost_segments(result), expected)


@BOTH
def test_colours_fill_the_objects_and_outlines_lie_inside_of_them(make):
    result = make((120, 200))
    opaque = object_overlay(result, 1.0, names=False, legend=False)
    outlined = np.zeros((120, 200), bool)
    for color, mask, place in zip(object_colors(result), masks_of(result), range(3), strict=False):
        flat = mask & (uppermost_segments(result) == place)
        share = np.mean(np.all(opaque[flat] == color, axis=-1))
        assert 0.6 < share < 1
        outlined |= mask
    outside = uppermost_segments(result) < 0
    far = outside & ~np.roll(outlined, 1, 0) & ~np.roll(outlined, -1, 0)
    far &= ~np.roll(outlined, 1, 1) & ~np.roll(outlined, -1, 1) & ~outlined
    changed = np.any(opaque != result.image, axis=-1)
    assert not changed[far][10:].any() or make is made_up_panoptic
    unchanged = object_overlay(result, 0.0, names=False, legend=False)
    np.testing.assert_array_equal(unchanged, result.image)


@BOTH
def test_picture_is_scaled_and_has_a_legend(make):
    result = make((120, 200))
    small = object_overlay(result, long_side=400, legend=False)
    assert small.shape == (240, 400, 3)
    whole = object_overlay(result)
    assert len(whole) > 120 and whole.shape[1] == 200
    assert (whole[125:] != 255).any()


def test_nothing_found_is_the_picture_itself():
    for result in nothing_found():
        assert uppermost_segments(result).max() == -1
        np.testing.assert_array_equal(object_overlay(result, legend=False), result.image)
        assert len(object_overlay(result)) > len(result.image)


def test_impossible_opacity_is_refused():
    with pytest.raises(ValueError, match=r"opacity: expected 0 to 1, got 1\.5"):
        object_overlay(made_up_instances(), 1.5)
