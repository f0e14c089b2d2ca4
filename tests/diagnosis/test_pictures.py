"""Figures: what they show for one and two columns, and for data with little or odd content."""

import io

import numpy as np
import pytest
from PIL import Image

from maft_jax.diagnosis.pictures import (
    crop_around,
    draw_classes,
    draw_false_positives,
    draw_score_against_iou,
    draw_similarity,
)
from maft_jax.diagnosis.report import Measurements, best_known_classes
from maft_jax.diagnosis.statistics import ImageTruth, score_image, top_false_positives

pytestmark = pytest.mark.slow

NAMES = ("$x^$ price", "ネコ", "a street sign of forty letters, no less!", "ελιά", "sea")


def make_measurements(columns=("frozen", "tuned"), num_proposals=9, names=NAMES, **fields):
    """Two images; the scores of every column are drawn anew."""
    rng = np.random.default_rng(0)
    truths = []
    for index in range(2):
        present = np.arange(min(3, len(names))) if index else np.arange(1)
        iou = rng.random((len(present), num_proposals)) ** 3
        truth = {
            "example_index": index,
            "example_id": f"{'folder/' * 20}photo_{index}",
            "proposals": np.arange(num_proposals),
            "present_classes": present,
            "iou": iou,
            "normalised_iou": iou,
            "shares": rng.dirichlet(np.ones(len(present)), num_proposals),
        }
        truths.append(ImageTruth(**truth | fields))
    scores = {
        title: [
            score_image(t, rng.dirichlet(np.ones(len(names)), len(t.proposals))) for t in truths
        ]
        for title in columns
    }
    return Measurements("voc2012", names, truths, scores)


def false_positives(measured):
    crop = np.full((240, 240, 3), 99, np.uint8)
    return {
        title: [(one, crop) for one in top_false_positives(measured.truths, scores, 4)]
        for title, scores in measured.scores.items()
    }


def draw_all(measured):
    return [
        draw_score_against_iou(measured),
        draw_classes(measured),
        draw_similarity(measured),
        draw_false_positives(measured, false_positives(measured)),
    ]


def size_of(png):
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.size


@pytest.fixture(scope="module")
def pair():
    return draw_all(make_measurements())


def test_same_numbers_give_the_same_files(pair):
    measured = make_measurements()
    assert pair[1] == draw_classes(measured)
    assert pair[3] == draw_false_positives(measured, false_positives(measured))


def test_lone_clip_has_one_column(pair):
    alone = draw_all(make_measurements(columns=["clip"]))
    sizes = [(size_of(one), size_of(two)) for one, two in zip(alone, pair, strict=True)]
    scores, classes, _, crops = sizes
    assert scores[0][0] < 0.7 * scores[1][0] and scores[0][1] == scores[1][1]
    for one, two in (classes, crops):
        assert one[0] == two[0] and one[1] < 0.75 * two[1]


@pytest.mark.parametrize(
    "options",
    [
        {"num_proposals": 0},
        {"names": ("cat",)},
        {"names": tuple(f"class {i}" for i in range(847))},
        {
            "present_classes": np.zeros(0, np.int64),
            "iou": np.zeros((0, 9)),
            "normalised_iou": np.zeros((0, 9)),
            "shares": np.zeros((9, 0)),
        },
    ],
    ids=["no proposals", "one class", "847 classes", "nothing labelled"],
)
def test_little_or_much_can_be_drawn(options):
    for png in draw_all(make_measurements(**options)):
        assert min(size_of(png)) > 100


def test_classes_of_the_most_images_come_first():
    measured = make_measurements()
    assert best_known_classes(measured, 2) == [0, 1]
    assert best_known_classes(measured, 9) == [0, 1, 2]


def corner(crop):
    """Height and width of what is not white."""
    inside = (crop != 255).any(-1)
    return int(inside.any(1).sum()), int(inside.any(0).sum())


def test_crop_is_a_square_with_the_mask_and_its_surroundings():
    image = np.full((300, 400, 3), 90, np.uint8)
    inside = np.zeros((300, 400), bool)
    inside[100:200, 150:250] = True
    crop = crop_around(image, inside)
    assert crop.shape == (240, 240, 3)
    np.testing.assert_array_equal(crop[120, 120], [90, 90, 90])
    np.testing.assert_array_equal(crop[5, 5], [45, 45, 45])
    bright = (crop == 90).all(-1).sum() / crop[..., 0].size
    assert bright == pytest.approx(1 / 1.5**2, abs=0.05)


def test_crop_stays_inside_the_image_where_it_can():
    image = np.full((300, 400, 3), 90, np.uint8)
    inside = np.zeros((300, 400), bool)
    inside[290:, 390:] = True
    assert corner(crop_around(image, inside)) == (240, 240)
    inside[:] = True
    assert corner(crop_around(image, inside)) == (180, 240)
    inside[:] = False
    assert corner(crop_around(image, inside)) == (180, 240)


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (2000, 5)])
def test_crop_of_any_image_has_the_same_size(size):
    image, inside = np.full((*size, 3), 90, np.uint8), np.ones(size, bool)
    assert crop_around(image, inside).shape == (240, 240, 3)
