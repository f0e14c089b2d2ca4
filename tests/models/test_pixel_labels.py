"""Label maps from proposals and their probabilities, against the official numbers and torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from maft_jax.inference.segmenter import ensemble
from maft_jax.models.pixel_labels import (
    IGNORE,
    covers_pixels,
    label_pixels,
    pixel_scores,
)
from maft_jax.models.pixel_tiles import TILES
from maft_jax.models.resize import resize
from tests.golden_files import golden

label = jax.jit(label_pixels, static_argnames="out_size")
scores_of = jax.jit(pixel_scores, static_argnames="out_size")


def sizes(*values) -> jax.Array:
    return jax.device_put(np.array(values, np.int32))


def in_array(masks, height, width):
    """The masks in the corner of a larger array; what is around them must not matter."""
    n, h, w = masks.shape
    array = np.random.default_rng(9).integers(0, 256, (n, height, width)).astype(masks.dtype)
    array[:, :h, :w] = masks
    return jax.device_put(array)


def random_case(seed, mask_size, num_proposals=20, num_classes=7):
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 256, (num_proposals, *mask_size)).astype(np.uint8)
    probabilities = rng.dirichlet(np.full(num_classes, 0.3), num_proposals).astype(np.float32)
    return jax.device_put(probabilities), masks


def official(probabilities, masks, image_size, label_size):
    """Scores in the official order: image size, sum over proposals, native size."""
    masks = torch.tensor(masks[None]).float() / 255
    masks = interpolate(masks, image_size, mode="bilinear", align_corners=True)[0]
    scores = torch.einsum("nc,nhw->chw", torch.tensor(np.asarray(probabilities)), masks)
    return interpolate(scores[None], label_size, mode="bilinear", align_corners=False)[0].numpy()


@functools.cache
def pipeline_masks():
    """Soft masks of the golden pipeline at the padded size."""
    arrays = golden("pipeline_ops")
    logits = jax.device_put(arrays["mask_logits_stride4_f16"].astype(np.float32))
    padded = tuple(int(side) for side in arrays["padded_size"])
    return jax.nn.sigmoid(resize(logits[None], padded, axes=(2, 3), align_corners=True))[0]


def label_pipeline(function, probabilities):
    """`function` of the golden masks, cropped to the image, at its original size."""
    arrays = golden("pipeline_ops")
    image_size = sizes(*arrays["image_size"])
    original = tuple(int(side) for side in arrays["original_size"])
    return function(
        probabilities, pipeline_masks(), image_size, image_size, sizes(*original), out_size=original
    )


def pipeline_probabilities():
    logits = jax.device_put(golden("pipeline_ops")["class_logits"])
    return jax.nn.softmax(logits[:, :-1], axis=-1)


def test_label_map_is_the_official_one():
    arrays = golden("pipeline_ops")
    pixels = label_pipeline(label, pipeline_probabilities())
    np.testing.assert_array_equal(pixels.label_map, arrays["semseg_argmax"])
    best = arrays["semseg_scores_f16"].max(axis=0)
    np.testing.assert_allclose(pixels.score, best, rtol=2**-11, atol=0)


def test_scores_are_the_official_ones():
    scores = label_pipeline(scores_of, pipeline_probabilities())
    np.testing.assert_allclose(
        scores, golden("pipeline_ops")["semseg_scores_f16"], rtol=2**-11, atol=0
    )


def test_ensemble_label_map_is_the_official_one():
    arrays = golden("pipeline_ops")
    size = sizes(*arrays["padded_size"])
    covers = jax.jit(covers_pixels, static_argnums=3)(
        pipeline_masks(), size, size, tuple(map(int, size))
    )
    assert np.flatnonzero(~covers).tolist() == [3], "the empty proposal"
    probabilities = jax.jit(ensemble, static_argnums=4)(
        pipeline_probabilities()[None],
        jax.device_put(arrays["generator_logits"][None]),
        covers[None],
        arrays["seen"].astype(bool),
        float(arrays["ensemble_weight"]),
    )[0]
    pixels = label_pipeline(label, probabilities)
    np.testing.assert_array_equal(pixels.label_map, arrays["semseg_ensemble_argmax"])


@pytest.mark.parametrize(
    "mask_size, image_size, label_size",
    [
        ((40, 54), (160, 213), (120, 160)),  # as usual
        ((40, 54), (160, 213), (375, 500)),  # a large original
        ((40, 54), (160, 213), (12, 16)),  # a small one
        ((7, 160), (26, 640), (3, 77)),
        ((1, 1), (1, 1), (1, 1)),
        ((1, 1), (3, 4), (5, 5)),
        ((50, 60), (50, 60), (50, 60)),  # masks of full resolution
        ((97, 61), (33, 44), (64, 64)),  # and finer ones
    ],
)
def test_scores_and_labels_agree_with_torch(mask_size, image_size, label_size):
    probabilities, masks = random_case(0, mask_size)
    expected = official(probabilities, masks, image_size, label_size)
    array = in_array(masks, 100, 170)
    arguments = (probabilities, array, sizes(*mask_size), sizes(*image_size), sizes(*label_size))
    out_size = (380, 510)
    height, width = label_size
    scores = np.asarray(scores_of(*arguments, out_size=out_size))
    np.testing.assert_allclose(scores[:, :height, :width], expected, rtol=2e-6, atol=0)
    pixels = label(*arguments, out_size=out_size)
    best = np.asarray(pixels.score[:height, :width])
    np.testing.assert_allclose(best, expected.max(axis=0), rtol=2e-6, atol=0)
    total = np.asarray(pixels.total[:height, :width])
    np.testing.assert_allclose(total, expected.sum(axis=0), rtol=2e-6, atol=0)
    second, first = np.sort(expected, axis=0)[-2:]
    clear = first - second > 1e-5
    assert clear.mean() > 0.98
    labels = np.asarray(pixels.label_map[:height, :width])
    np.testing.assert_array_equal(labels[clear], expected.argmax(axis=0)[clear])
    zeros = (pixels.score, pixels.total, scores[0])
    for array, outside in ((pixels.label_map, IGNORE), *((array, 0) for array in zeros)):
        assert np.all(np.asarray(array)[height:] == outside)
        assert np.all(np.asarray(array)[:, width:] == outside)


def test_ties_go_to_the_lower_class():
    probabilities = jnp.array([[0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]])
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, :, :2] = 255
    masks[1, :, 2:] = 255
    pixels = label(probabilities, jax.device_put(masks), *[sizes(4, 4)] * 3, out_size=(4, 4))
    assert np.asarray(pixels.label_map).tolist() == [[1, 1, 0, 0]] * 4


def test_uncovered_pixels_have_the_first_class_and_score_zero():
    """As in the official code, whose argmax sees nothing but zeros there."""
    probabilities, masks = random_case(0, (8, 8))
    masks[:, :, 4:] = 0
    pixels = label(probabilities, jax.device_put(masks), *[sizes(8, 8)] * 3, out_size=(8, 8))
    assert np.all(np.asarray(pixels.label_map[:, 4:]) == 0)
    assert np.all(np.asarray(pixels.score[:, 4:]) == 0)
    assert np.all(np.asarray(pixels.score[:, :4]) > 0)


def test_label_map_does_not_depend_on_the_array_around_it():
    mask_size, image_size, label_size = (40, 54), (160, 213), (93, 141)
    probabilities, masks = random_case(1, mask_size, num_classes=150)
    results = []
    for extra in (0, 37, 300):
        pixels = label(
            probabilities,
            in_array(masks, mask_size[0] + extra, mask_size[1] + 2 * extra),
            sizes(*mask_size),
            sizes(*image_size),
            sizes(*label_size),
            out_size=(label_size[0] + 2 * extra, label_size[1] + extra),
        )
        height, width = label_size
        results.append([np.asarray(x[:height, :width]) for x in (pixels.label_map, pixels.score)])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("tile", [(1, 8), (8, 200), (128, 128)])
def test_label_map_does_not_depend_on_the_tiles(tile, monkeypatch):
    probabilities, masks = random_case(2, (20, 30), num_classes=847)
    arguments = (
        probabilities,
        jax.device_put(masks),
        sizes(20, 30),
        sizes(77, 117),
        sizes(90, 100),
    )
    run = functools.partial(label_pixels, *arguments, out_size=(90, 100))
    expected = jax.jit(run)()
    monkeypatch.setitem(TILES, "cpu", tile)
    pixels = jax.jit(functools.partial(run))()
    np.testing.assert_array_equal(pixels.label_map, expected.label_map)
    np.testing.assert_allclose(pixels.score, expected.score, rtol=1e-6)


def test_one_class_is_everywhere():
    probabilities, masks = random_case(0, (8, 8), num_classes=1)
    pixels = label(probabilities, jax.device_put(masks), *[sizes(8, 8)] * 3, out_size=(8, 8))
    assert np.all(np.asarray(pixels.label_map) == 0) and np.all(np.asarray(pixels.score) > 0)


@pytest.mark.parametrize("image_size", [(39, 62), (64, 64), (1, 1)])
def test_masks_that_cover_are_those_above_one_half_at_full_resolution(image_size):
    grid = tuple(-(-side // 4) for side in image_size)
    rng = np.random.default_rng(0)
    # only a point that is a pixel, or nearly, takes such a mask above one half
    masks = (rng.integers(0, 128, (200, *grid)) + rng.integers(0, 2, (200, *grid))).astype(np.uint8)
    full = torch.tensor(masks[None]).float() / 255
    full = interpolate(full, image_size, mode="bilinear", align_corners=True)[0]
    expected = (full > 0.5).flatten(1).any(dim=1).numpy()
    if max(image_size) > 1:
        at_points = (masks > 127).any(axis=(1, 2))
        assert 0 < expected.sum() < at_points.sum(), "the case is there"
    ours = jax.jit(covers_pixels, static_argnums=3)(
        in_array(masks, 40, 40), sizes(*grid), sizes(*image_size), (80, 100)
    )
    np.testing.assert_array_equal(ours, expected)


def test_hundreds_of_classes_on_large_images_fit_two_gigabytes():
    def bytes_of(num_classes, size):
        program = jax.jit(label_pixels, static_argnames="out_size").lower(
            jax.ShapeDtypeStruct((100, num_classes), jnp.float32),
            jax.ShapeDtypeStruct((100, size // 4, size // 4), jnp.uint8),
            *[jax.ShapeDtypeStruct((2,), jnp.int32)] * 3,
            out_size=(size, size),
        )
        memory = program.compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    large = bytes_of(847, 2048)
    assert large < 0.3 * 2**30
    assert large - bytes_of(20, 2048) < 20 * 2**20, "scores of one tile, whatever the image"
