"""Pictures of training data: shapes, colours, and data with nothing to show."""

import numpy as np
import pytest

from input_pipeline.examples import IGNORE, PreparedExample
from maft_jax.visualize import color_labels, draw_example, outline, palette


def example(num_proposals, size=(40, 60)):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    label_map = np.full(size, IGNORE, np.int32)
    proposals = np.full((num_proposals, 10, 15), 255, np.uint8)
    return PreparedExample("name", image, label_map, proposals)


@pytest.mark.parametrize(("num_proposals", "tiles"), [(0, 2), (1, 3), (2, 4), (100, 6)])
def test_row_has_image_labels_and_up_to_four_proposals(num_proposals, tiles):
    row = draw_example(example(num_proposals), num_proposals=4, height=80)
    assert row.shape == (80, tiles * 120 + (tiles - 1) * 4, 3)


def test_unlabelled_pixels_stay_grey_and_classes_have_colours():
    image = np.full((1, 3, 3), 100, np.uint8)
    drawn = color_labels(image, np.array([[IGNORE, 0, 1]]))
    np.testing.assert_array_equal(drawn[0, 0], [100, 100, 100])
    assert len({tuple(pixel) for pixel in drawn[0]}) == 3


def test_neighbouring_ids_differ_in_colour():
    colours = palette(np.arange(200)).astype(int)
    assert np.abs(np.diff(colours, axis=0)).sum(-1).min() > 60


def test_outside_of_a_mask_is_darkened():
    image = np.full((9, 9, 3), 90, np.uint8)
    inside = np.zeros((9, 9), bool)
    inside[:, 5:] = True
    drawn = outline(image, inside)
    np.testing.assert_array_equal(drawn[4, 0], [30, 30, 30])
    np.testing.assert_array_equal(drawn[4, 8], [90, 90, 90])
