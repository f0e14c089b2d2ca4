"""Pictures of training data and of predictions: shapes, colours, data with nothing to show."""

import numpy as np
import pytest

from input_pipeline.examples import IGNORE
from maft_jax.pictures.sheets import (
    color_labels,
    comparison_sheet,
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


TITLE = 20
"""Height of the band of column titles on a comparison sheet, in pixels."""


def make_comparison(sizes=((60, 120), (120, 30)), **changes):
    """Images of these sizes with a red right half; frozen finds no class, tuned class 1 at left."""
    images, nothing, left = [], [], []
    for height, width in sizes:
        images.append(np.full((height, width, 3), 90, np.uint8))
        images[-1][:, width // 2 :] = [255, 0, 0]
        nothing.append(np.full((height, width), IGNORE, np.int32))
        left.append(nothing[-1].copy())
        left[-1][:, : width // 2] = 1
    arguments = {
        "images": images,
        "label_maps": left,
        "frozen": nothing,
        "tuned": left,
        "class_names": ("sky", "sea"),
        "example_ids": ["wide", "tall"][: len(sizes)],
        "tile_size": TILE,
    }
    return comparison_sheet(**arguments | changes)


def test_comparison_has_titles_and_a_row_as_high_as_each_image_is_when_fitted():
    sheet = make_comparison()
    assert sheet.shape == (TITLE + GAP + 60 + GAP + 120, 4 * TILE + 3 * GAP, 3)
    titles = [
        sheet[:TITLE, column * (TILE + GAP) : column * (TILE + GAP) + TILE] for column in range(4)
    ]
    assert all((title == 255).any() for title in titles)
    assert len({title.tobytes() for title in titles}) == 4


def test_comparison_keeps_the_aspect_ratio_and_centres_in_white():
    tall = make_comparison()[TITLE + GAP + 60 + GAP :, :TILE]
    assert (tall[:, :45] == 255).all() and (tall[:, 75:] == 255).all()
    np.testing.assert_array_equal(tall[20, 50], [90, 90, 90])
    np.testing.assert_array_equal(tall[20, 70], [255, 0, 0])


def test_comparison_shows_classes_in_their_colours_and_leaves_the_rest_grey():
    sheet = make_comparison(sizes=((60, 120),))
    rows = [sheet[TITLE + GAP :, i * (TILE + GAP) : i * (TILE + GAP) + TILE] for i in range(4)]
    image, labels, frozen, tuned = rows
    np.testing.assert_array_equal(labels, tuned)
    assert np.ptp(frozen, axis=-1).max() == 0
    np.testing.assert_array_equal(tuned[:, 60:], frozen[:, 60:])
    expected = color_labels(image[5:6, 5:6], np.array([[1]]))
    np.testing.assert_array_equal(tuned[5:6, 5:6], expected)


def test_comparison_of_the_same_data_is_the_same_picture():
    np.testing.assert_array_equal(make_comparison(), make_comparison())


def test_end_of_a_long_example_id_stays_visible():
    ids = [f"{folder}/{'deep/' * 30}photo_17" for folder in "ab"]
    sheets = [make_comparison(sizes=((60, 120),), example_ids=[name]) for name in ids]
    np.testing.assert_array_equal(*sheets)
    other = make_comparison(sizes=((60, 120),), example_ids=[f"{'deep/' * 30}photo_18"])
    assert (other != sheets[0]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ()}, r"expected at least one image"),
        ({"example_ids": ["one"]}, r"shorter"),
        ({"tuned": [np.zeros((60, 120), int)] * 2}, r"tuned of tall: .*\(120, 30\), got \(60, 120"),
    ],
)
def test_comparison_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_comparison(**changes)
