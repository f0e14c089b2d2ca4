import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline.examples import IGNORE
from input_pipeline.transforms import (
    Placement,
    TrainGeometry,
    fitting_placement,
    jitter_colors,
    place_image,
    place_label_map,
    place_proposals,
    random_placement,
    transform_example,
)

RNG = np.random.default_rng(0)


def _smooth_noise(height, width):
    small = RNG.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _placement(image_size, resized, offset, visible, flip=False):
    sizes = [tf.constant(size, tf.int32) for size in (image_size, resized, offset, visible)]
    return Placement(*sizes, tf.constant(flip))


@pytest.mark.parametrize("resized", [(37, 50), (75, 100), (160, 230)])
def test_resize_and_crop_equal_pillow(resized):
    image = RNG.integers(0, 256, (75, 100, 3)).astype(np.uint8)
    expected = np.asarray(
        Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR), np.float32
    )[5:35, 7:45]
    placed = place_image(image, _placement((75, 100), resized, (5, 7), (30, 38))).numpy()
    assert np.abs(placed - expected).max() < 1.5


def test_labels_are_resized_by_floor_index():
    labels = RNG.integers(-1, 90, (31, 47)).astype(np.int32)
    rows, columns = np.arange(50) * 31 // 50, np.arange(33) * 47 // 33
    expected = labels[rows][:, columns][3:43, 2:32]
    placement = _placement((31, 47), (50, 33), (3, 2), (40, 30))
    np.testing.assert_array_equal(place_label_map(labels, placement), expected)
    flipped = place_label_map(labels, placement._replace(flip=tf.constant(True)))
    np.testing.assert_array_equal(flipped, expected[:, ::-1])


def test_unmoved_proposals_are_unchanged():
    proposals = RNG.integers(0, 256, (3, 16, 16)).astype(np.uint8)
    placement = _placement((64, 64), (64, 64), (0, 0), (64, 64))
    np.testing.assert_array_equal(place_proposals(proposals, placement, 64), proposals)
    mirrored = place_proposals(proposals, placement._replace(flip=tf.constant(True)), 64)
    np.testing.assert_array_equal(mirrored, proposals[:, :, ::-1])


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
    placement = _placement((80, 100), resized, offset, visible, flip)
    placed_image = place_image(image, placement).numpy()[..., 0] > 127
    placed_labels = place_label_map(labels, placement).numpy() > 0
    assert np.mean(placed_image != placed_labels) < 0.02
    placed_proposal = place_proposals(proposals, placement, 64).numpy()[0]
    assert placed_proposal.shape == (16, 16)
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
    geometry = TrainGeometry(crop_size=32, augment=False)
    image, labels, proposals = transform_example(
        tf.fill([20, 10, 3], tf.constant(200, tf.uint8)),
        tf.zeros([20, 10], tf.int32),
        tf.fill([2, 5, 3], tf.constant(255, tf.uint8)),
        tf.constant([0, 0], tf.int64),
        geometry,
    )
    assert image.shape == (32, 32, 3) and proposals.shape == (2, 8, 8)
    assert np.all(image[:, :16] == 200) and np.all(image[:, 16:] == 128)
    assert np.all(labels[:, :16] == 0) and np.all(labels[:, 16:] == IGNORE)
    assert np.all(proposals[:, :, :4] == 255) and np.all(proposals[:, :, 4:] == 0)


def test_without_augmentation_the_whole_image_fits():
    placement = fitting_placement(tf.constant([30, 100]), 64)
    assert placement.resized_size.numpy().tolist() == [19, 64]
    assert placement.visible_size.numpy().tolist() == [19, 64]
    assert not placement.flip


def test_random_placement_follows_its_draws():
    geometry = TrainGeometry(64, short_sides=(32, 96), max_long_side=150)
    low = random_placement(tf.constant([50, 100]), tf.zeros(4, tf.float64), geometry)
    assert low.resized_size.numpy().tolist() == [32, 64]
    assert bool(low.flip)
    almost_one = tf.fill([4], tf.constant(1 - 1e-9, tf.float64))
    high = random_placement(tf.constant([50, 100]), almost_one, geometry)
    assert high.resized_size.numpy().tolist() == [75, 150]
    assert high.offset.numpy().tolist() == [75 - 64, 150 - 64]
    assert not high.flip


def test_extremely_long_image_keeps_at_least_one_pixel():
    placement = fitting_placement(tf.constant([2, 1000]), 64)
    assert placement.resized_size.numpy().tolist() == [1, 64]


def test_undrawn_jitter_changes_nothing():
    pixels = _smooth_noise(16, 16).astype(np.float32)
    draws = tf.constant([0.9] * 4 + [0.1] * 5, tf.float64)
    np.testing.assert_allclose(jitter_colors(pixels, draws), pixels, atol=1e-3)


@pytest.mark.parametrize(
    "kind, amount, color, expected",
    [
        (0, 1.0, (10, 100, 250), (42, 132, 255)),
        (1, 0.0, (10, 100, 250), (5, 50, 125)),
        (2, 0.0, (200, 100, 100), (200, 150, 150)),
        (3, 1.0, (200, 0, 0), (200, 120, 0)),
    ],
)
def test_each_jitter_does_what_it_says(kind, amount, color, expected):
    draws = np.full(9, 0.9)
    draws[kind] = 0.1
    draws[5 + kind] = amount
    jittered = jitter_colors(tf.constant([[color]], tf.float32), tf.constant(draws))
    np.testing.assert_allclose(jittered[0, 0], expected, atol=0.01)


def test_seed_decides_everything():
    image, labels = _smooth_noise(60, 80), RNG.integers(0, 4, (60, 80)).astype(np.int32)
    proposals = RNG.integers(0, 256, (2, 15, 20)).astype(np.uint8)
    geometry = TrainGeometry(32, short_sides=(30, 40, 50), max_long_side=200)

    def run(seed):
        results = transform_example(image, labels, proposals, tf.constant(seed, tf.int64), geometry)
        return [result.numpy() for result in results]

    for first, second in zip(run([3, 4]), run([3, 4]), strict=True):
        np.testing.assert_array_equal(first, second)
    assert np.any(run([3, 4])[0] != run([3, 5])[0])


def test_impossible_geometry_is_refused():
    with pytest.raises(ValueError, match="at least one positive short side"):
        TrainGeometry(64, short_sides=())
