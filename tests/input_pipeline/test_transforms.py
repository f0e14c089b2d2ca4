import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

from input_pipeline.examples import IGNORE, PreparedExample, proposal_grid_size
from input_pipeline.transforms import (
    Placement,
    TrainGeometry,
    fitting_placement,
    place_image,
    place_label_map,
    place_proposals,
    random_placement,
    transform_example,
    uniform_draws,
)


def _example(height, width, grid, num_proposals=2):
    rng = np.random.default_rng(0)
    return PreparedExample(
        "scene",
        rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        rng.integers(IGNORE, 4, (height, width)).astype(np.int32),
        rng.integers(0, 256, (num_proposals, *grid)).astype(np.uint8),
        np.ones(num_proposals, np.float32),
    )


def _transformed(example, geometry, seed=(0, 0), num_proposals=None):
    return transform_example(example, seed, geometry, num_proposals or len(example.proposals))


def _placed_proposals(proposals, placement, crop_size):
    out = np.zeros((len(proposals), *proposal_grid_size(crop_size, crop_size)), np.uint8)
    place_proposals(proposals, placement, crop_size, out)
    return out


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "resized, offset, visible",
    [
        ((37, 50), (0, 0), (37, 50)),
        ((75, 100), (5, 7), (30, 38)),
        ((160, 230), (129, 190), (31, 40)),
        ((161, 97), (0, 3), (161, 90)),
    ],
)
def test_resize_and_crop_equal_pillow(resized, offset, visible, flip):
    """Pillow on the whole image; its box has single precision, hence one level here and there."""
    image = np.random.default_rng(0).integers(0, 256, (75, 100, 3)).astype(np.uint8)
    whole = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR)
    (top, left), (height, width) = offset, visible
    expected = np.asarray(whole, int)[top : top + height, left : left + width]
    placed = place_image(image, Placement((75, 100), resized, offset, visible, flip))
    difference = np.abs(placed - (expected[:, ::-1] if flip else expected))
    assert difference.max() <= 1 and difference.mean() < 0.05


def test_every_crop_of_every_size_stays_inside_the_image():
    """Pillow refuses a box that exceeds the image by a rounding error."""
    for size in range(2, 60):
        image = np.zeros((size, 3, 3), np.uint8)
        for resized in (7, 64, 97, 641):
            placement = Placement((size, 3), (resized, 5), (resized - 3, 0), (3, 5), False)
            assert place_image(image, placement).shape == (3, 5, 3)


@pytest.mark.parametrize("resized, visible", [((50, 33), (40, 30)), ((12, 90), (9, 30))])
def test_labels_are_resized_by_floor_index(resized, visible):
    labels = np.random.default_rng(0).integers(-1, 90, (31, 47)).astype(np.int32)
    rows = np.arange(resized[0]) * 31 // resized[0]
    columns = np.arange(resized[1]) * 47 // resized[1]
    expected = labels[rows][:, columns][3 : 3 + visible[0], 2 : 2 + visible[1]]
    placement = Placement((31, 47), resized, (3, 2), visible, False)
    np.testing.assert_array_equal(place_label_map(labels, placement), expected)
    flipped = place_label_map(labels, placement._replace(flip=True))
    np.testing.assert_array_equal(flipped, expected[:, ::-1])


def test_unmoved_proposals_are_unchanged():
    proposals = np.random.default_rng(0).integers(0, 256, (3, 16, 16)).astype(np.uint8)
    placement = Placement((64, 64), (64, 64), (0, 0), (64, 64), False)
    np.testing.assert_array_equal(_placed_proposals(proposals, placement, 64), proposals)
    mirrored = _placed_proposals(proposals, placement._replace(flip=True), 64)
    np.testing.assert_array_equal(mirrored, proposals[:, :, ::-1])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("resized, offset", [((90, 131), (20, 60)), ((200, 290), (130, 200))])
def test_proposals_are_interpolated_between_stored_points_as_scipy_does(resized, offset, flip):
    """Seven proposals: not a multiple of those that are computed at a time."""
    proposals = np.random.default_rng(0).integers(0, 256, (7, 13, 19)).astype(np.uint8)
    placement = Placement((50, 74), resized, offset, (64, 64), flip)
    points = np.linspace(0, 63, 16)
    columns = 63 - points if flip else points
    y = ((points + offset[0] + 0.5) * 50 / resized[0] - 0.5) * 12 / 49
    x = ((columns + offset[1] + 0.5) * 74 / resized[1] - 0.5) * 18 / 73
    where = np.meshgrid(y, x, indexing="ij")
    expected = [map_coordinates(p.astype(float), where, order=1, mode="nearest") for p in proposals]
    placed = _placed_proposals(proposals, placement, 64)
    assert np.abs(placed - np.array(expected)).max() < 0.51


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "resized, offset, visible",
    [((96, 120), (0, 0), (64, 64)), ((96, 120), (32, 56), (64, 64)), ((48, 60), (0, 0), (48, 60))],
)
def test_image_labels_and_proposals_stay_aligned(resized, offset, visible, flip):
    """An image, a label map and a proposal of the same half plane agree to within a pixel."""
    y, x = np.mgrid[:80, :100].astype(np.float32)
    labels = (x + 0.7 * y > 80).astype(np.int32)
    image = np.repeat(255 * labels[..., None], 3, axis=-1).astype(np.uint8)
    grid_y, grid_x = np.mgrid[:20, :25] * np.array([79 / 19, 99 / 24])[:, None, None]
    proposals = (255 * np.clip((grid_x + 0.7 * grid_y - 80) / 4 + 0.5, 0, 1)).astype(np.uint8)[None]
    placement = Placement((80, 100), resized, offset, visible, flip)
    placed_image = place_image(image, placement)[..., 0] > 127
    placed_labels = place_label_map(labels, placement) > 0
    assert np.mean(placed_image != placed_labels) < 0.02
    placed_proposal = _placed_proposals(proposals, placement, 64)[0]
    points = np.linspace(0, 63, 16)
    rows, columns = (points[points <= size - 0.5].round().astype(int) for size in visible)
    inside = placed_proposal[: len(rows), : len(columns)]
    certain = np.abs(inside.astype(int) - 128) > 100
    assert certain.mean() > 0.8
    np.testing.assert_array_equal(
        (inside > 127)[certain], placed_image[np.ix_(rows, columns)][certain]
    )
    assert not placed_proposal[len(rows) :].any()
    assert not placed_proposal[:, len(columns) :].any()


def test_padding_is_grey_ignored_and_outside_every_proposal():
    example = PreparedExample(
        "tall",
        np.full((20, 10, 3), 200, np.uint8),
        np.zeros((20, 10), np.int32),
        np.full((2, 5, 3), 255, np.uint8),
        np.ones(2, np.float32),
    )
    image, labels, proposals, valid = _transformed(example, TrainGeometry(32, augment=False))
    assert np.all(image[:, :16] == 200) and np.all(image[:, 16:] == 128)
    assert np.all(labels[:, :16] == 0) and np.all(labels[:, 16:] == IGNORE)
    assert np.all(proposals[:, :, :4] == 255) and np.all(proposals[:, :, 4:] == 0)
    assert valid.all()


def test_proposal_that_leaves_the_crop_becomes_invalid_and_empty():
    """The crop is at most a quarter of the image; one proposal fills each quarter, one is faint."""
    example = _example(64, 64, (16, 16), 6)
    example.proposals[:] = 0
    for k in range(4):
        y, x = 8 * (k // 2), 8 * (k % 2)
        example.proposals[k, y : y + 8, x : x + 8] = 255
    example.proposals[4], example.proposals[5] = 127, 128
    geometry = TrainGeometry(8, short_sides=(64,))
    seen = set()
    for position in range(40):
        out = _transformed(example, geometry, seed=(0, position), num_proposals=7)
        np.testing.assert_array_equal(out.proposal_valid, (out.proposals >= 128).any(axis=(1, 2)))
        assert not out.proposals[~out.proposal_valid].any()
        assert out.proposal_valid[4:].tolist() == [False, True, False]
        seen.add(tuple(out.proposal_valid[:4]))
    assert (True, False, False, False) in seen and (False, False, False, True) in seen


def test_example_without_proposals_has_no_valid_one():
    out = _transformed(_example(20, 30, (5, 8), 0), TrainGeometry(16), num_proposals=3)
    assert not out.proposal_valid.any() and not out.proposals.any()


def test_without_augmentation_the_whole_image_fits():
    placement = fitting_placement((30, 100), 64)
    assert placement == Placement((30, 100), (19, 64), (0, 0), (19, 64), False)


def test_random_placement_follows_its_draws():
    geometry = TrainGeometry(64, short_sides=(32, 96), max_long_side=150)
    low = random_placement((50, 100), np.zeros(4), geometry)
    assert low == Placement((50, 100), (32, 64), (0, 0), (32, 64), True)
    high = random_placement((50, 100), np.full(4, 1 - 1e-9), geometry)
    assert high == Placement((50, 100), (75, 150), (75 - 64, 150 - 64), (64, 64), False)


def test_extremely_long_image_keeps_at_least_one_pixel():
    placement = fitting_placement((2, 1000), 64)
    assert placement.resized_size == placement.visible_size == (1, 64)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 1), (6000, 40)])
@pytest.mark.parametrize("augment", [False, True])
def test_any_size_of_image_and_grid_gives_the_square(size, augment):
    example = _example(*size, proposal_grid_size(*size))
    for position in range(3):
        out = _transformed(example, TrainGeometry(32, augment=augment), seed=(1, position))
        assert out.image.shape == (32, 32, 3)
        assert set(np.unique(out.label_map)) <= {IGNORE, 0, 1, 2, 3}


def test_draws_are_uniform_and_never_change():
    """Literal numbers: the first words of the Philox stream of this key, as fractions."""
    words = np.random.Philox(key=np.array([2**64 - 5, 10_000_000], np.uint64)).random_raw(3)
    np.testing.assert_array_equal(
        uniform_draws((-5, 10_000_000), 3), [int(word) // 2**11 / 2**53 for word in words]
    )
    draws = np.array([uniform_draws((7, position), 4) for position in range(2000)])
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.1


def test_seed_decides_everything():
    example = _example(60, 80, (15, 20))
    geometry = TrainGeometry(32, short_sides=(30, 40, 50), max_long_side=200)
    for first, second in zip(
        _transformed(example, geometry, (3, 4)),
        _transformed(example, geometry, (3, 4)),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)
    for other in ((3, 5), (4, 4)):
        assert np.any(
            _transformed(example, geometry, (3, 4)).image
            != _transformed(example, geometry, other).image
        )


def test_impossible_geometry_is_refused():
    with pytest.raises(ValueError, match="at least one positive short side"):
        TrainGeometry(64, short_sides=())
    with pytest.raises(ValueError, match="crop_size >= 2"):
        dataclasses.replace(TrainGeometry(), crop_size=1)
