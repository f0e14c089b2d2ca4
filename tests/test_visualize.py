"""Pictures of training data: shapes, colours, and data with nothing to show."""

import numpy as np
import pytest

from input_pipeline.examples import IGNORE
from maft_jax.visualize import (
    color_labels,
    contact_sheet,
    name_regions,
    outline,
    palette,
    write_text,
)

TILE, GAP = 120, 4


def make_batch(num_valid=6, size=64):
    """Two crops: the left half is class 0, the right class 2; every mask is the left half."""
    labels = np.zeros((2, size, size), np.int32)
    labels[:, :, size // 2 :] = 2
    proposals = np.zeros((2, 8, size // 4, size // 4), np.uint8)
    proposals[:, :, :, : size // 8] = 255
    return {
        "image": np.full((2, size, size, 3), 90, np.uint8),
        "label_map": labels,
        "proposals": proposals,
        "proposal_valid": np.arange(8) < np.full((2, 1), num_valid),
    }


def tile(sheet, row, column):
    """One tile of a contact sheet of TILE pixels a side."""
    y, x = row * (TILE + GAP), column * (TILE + GAP)
    return sheet[y : y + TILE, x : x + TILE]


def draw(**options):
    return contact_sheet(make_batch(**options), ("sky", "sea", "cat"), ("one", "two"), 4, TILE)


def test_sheet_has_a_row_for_every_example_and_room_for_the_proposals():
    assert draw().shape == (2 * TILE + GAP, 6 * TILE + 5 * GAP, 3)
    for row in range(2):
        assert (tile(draw(num_valid=0), row, 2) == 255).all()


@pytest.mark.parametrize(("num_valid", "drawn"), [(0, 0), (1, 1), (3, 3), (8, 4)])
def test_only_valid_proposals_are_drawn(num_valid, drawn):
    sheet = draw(num_valid=num_valid)
    blank = [bool((tile(sheet, 0, 2 + i) == 255).all()) for i in range(4)]
    assert blank == [i >= drawn for i in range(4)]


def test_proposal_darkens_what_it_leaves_out():
    drawn = tile(draw(), 0, 2)
    np.testing.assert_array_equal(drawn[60, 20], [90, 90, 90])
    np.testing.assert_array_equal(drawn[60, 100], [30, 30, 30])


def test_names_stand_inside_their_regions():
    labels = np.full((80, 200), IGNORE, np.int32)
    labels[:, :90], labels[:, 110:] = 0, 1
    blank = np.full((80, 200, 3), 128, np.uint8)
    left = (name_regions(blank, labels, ("cat", "sea")) != 128).any(-1)
    assert left[:, :90].any() and left[:, 110:].any() and not left[:, 90:110].any()
    assert not left[:20].any() and not left[60:].any()


def test_specks_and_unlabelled_pixels_get_no_name():
    labels = np.full((80, 80), IGNORE, np.int32)
    labels[3:5, 3:5] = 0
    blank = np.full((80, 80, 3), 128, np.uint8)
    np.testing.assert_array_equal(name_regions(blank, labels, ("cat",)), blank)


def test_text_at_the_border_is_moved_inside():
    blank = np.full((40, 100, 3), 128, np.uint8)
    corner = (write_text(blank, {"lamp": (0, 0)}) != 128).any(-1)
    inside = (write_text(blank, {"lamp": (50, 20)}) != 128).any(-1)
    assert abs(int(corner.sum()) - int(inside.sum())) < 0.2 * inside.sum()


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
