"""Run lengths and polygons, against pycocotools and skimage."""

import sys

import numpy as np
import pytest
from pycocotools import mask as coco
from skimage.draw import disk
from skimage.draw import polygon as fill_polygon

from input_pipeline.run_lengths import decode_segmentation, encode_mask


def _compressed(mask):
    run_lengths = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": run_lengths["counts"].decode()}


def _uncompressed(mask):
    """Alternating lengths down the columns, the first of what is outside."""
    pixels = mask.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *changes, len(pixels)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def _disk():
    mask = np.zeros((40, 60), bool)
    mask[disk((15, 20), 9)] = True
    return mask


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("encode", [_compressed, _uncompressed])
def test_decoded_masks_are_those_of_pycocotools(seed, encode):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 200, 2))
    mask = np.kron(rng.random((7, 5)) < 0.5, np.ones((30, 40), bool))[: size[0], : size[1]]
    mask ^= rng.random(mask.shape) < 0.01
    np.testing.assert_array_equal(decode_segmentation(encode(mask), (1, 1)), mask)


@pytest.mark.parametrize("seed", range(20))
def test_encoded_masks_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((7, 5)) < rng.random(), np.ones((30, 40), bool))
    mask = mask[: rng.integers(1, 200), : rng.integers(1, 200)]
    mask = mask ^ (rng.random(mask.shape) < 0.01)
    assert encode_mask(mask) == _compressed(mask)


@pytest.mark.parametrize("inside", [False, True])
def test_a_mask_of_one_value_is_encoded_as_pycocotools_does(inside):
    mask = np.full((3000, 4000), inside)
    assert encode_mask(mask) == _compressed(mask)


def test_run_longer_than_any_photo_is_read():
    mask = np.zeros((4000, 6000), bool)
    mask[-1, -1] = True
    np.testing.assert_array_equal(decode_segmentation(_compressed(mask), (1, 1)), mask)


@pytest.mark.parametrize(
    "damage",
    [
        lambda counts: counts[:-1],
        lambda counts: counts[:2],
        lambda counts: counts + "11",
        lambda counts: counts[:3] + "Ż" + counts[4:],
        lambda counts: "",
        lambda counts: "o" * 40 + "0",
        lambda counts: "P" + counts,
        lambda counts: None,
        lambda counts: [5, -5, 2400],
        lambda counts: [1.5, 2398.5],
        lambda counts: [2**62] * 4 + [2400],  # 2400, where sums wrap around 64 bits
        lambda counts: [2**64 + 2400],
        lambda counts: "PPPPPPPPPPP0" * 4 + counts,
    ],
)
def test_corrupt_counts_are_refused(damage):
    counts = damage(_compressed(_disk())["counts"])
    with pytest.raises(ValueError, match=r"counts: "):
        decode_segmentation({"size": [40, 60], "counts": counts}, (40, 60))


def test_wrapping_compressed_counts_are_refused():
    """Differences of 2**33 each, of which the sum of counts is huge."""
    step = "".join(chr(48 + 32) for _ in range(6)) + chr(48 + 8)  # 8 * 2**30, positive
    with pytest.raises(ValueError, match=r"counts: expected run lengths that add up to"):
        decode_segmentation({"size": [40, 60], "counts": step * 4000}, (40, 60))


@pytest.mark.parametrize("size", [[2**16, 2**16], [2**40, 2**40], [2**1000, 1]])
@pytest.mark.parametrize("encode", [lambda area: {"counts": [area]}, None])
def test_masks_that_no_memory_holds_are_refused_with_the_setting(size, encode):
    segmentation = encode and {"size": size, **encode(size[0] * size[1])}
    with pytest.raises(ValueError, match=r"expected at most 50000000, .* MAFT_JAX_MAX_PIXELS"):
        decode_segmentation(segmentation or [[0, 0, 9, 0, 9, 9]], tuple(size))


def test_a_larger_limit_is_taken_from_the_environment(monkeypatch):
    segmentation = {"size": [1, 60_000_000], "counts": [60_000_000]}
    monkeypatch.setenv("MAFT_JAX_MAX_PIXELS", "60000000")
    assert decode_segmentation(segmentation, (1, 1)).shape == (1, 60_000_000)
    monkeypatch.setenv("MAFT_JAX_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="MAFT_JAX_MAX_PIXELS: expected an integer, got 'many'"):
        decode_segmentation(segmentation, (1, 1))


def test_an_outline_that_pycocotools_would_count_wrongly_is_refused():
    polygon = [-1e6, -1e6, 1e6, 1e6] * 200  # 2e9 steps of a fifth of a pixel
    with pytest.raises(ValueError, match=r"polygon: expected an outline of at most 10000000"):
        decode_segmentation([polygon], (40, 60))


@pytest.mark.parametrize("size", [None, [40], [40, 0], ["40", "60"], 7])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"size: expected \[height, width\]"):
        decode_segmentation({"size": size, "counts": "0"}, (40, 60))


def test_polygons_cover_what_they_enclose():
    # skimage's (row, column), COCO's x0, y0, x1, y1, ...
    triangle, square = [5.0, 5, 50, 8, 20, 35], [40, 25, 55, 25, 55, 38, 40, 38]
    mask = decode_segmentation([triangle, square], (40, 60))
    expected = np.zeros((40, 60), bool)
    for points in (triangle, square):
        expected[fill_polygon(points[1::2], points[0::2])] = True
    assert (mask ^ expected).sum() < 100
    assert (mask & expected).sum() > 0.9 * expected.sum()


@pytest.mark.parametrize(
    "polygon",
    [
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [0, 0, 1, "x", 2, 2],
        3,
        [0, 0, 1, 10**400, 2, 2],
        [0, 0, 1, float("nan"), 2, 2],
    ],
)
def test_impossible_polygons_are_refused(polygon):
    with pytest.raises(ValueError, match=r"polygon: expected \[x0, y0"):
        decode_segmentation([polygon], (40, 60))


def test_missing_pycocotools_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"polygons need pycocotools: pip install"):
        decode_segmentation([[0, 0, 9, 0, 9, 9]], (40, 60))
