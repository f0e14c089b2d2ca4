"""supervision, transformers, Label Studio and GeoJSON, with the packages themselves."""

import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage
from shapely.geometry import shape
from shapely.validation import explain_validity
from skimage.draw import polygon2mask
from transformers import Mask2FormerImageProcessorPil as Mask2FormerImageProcessor
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerForUniversalSegmentationOutput,
)

from input_pipeline.label_maps.brush_run_lengths import decode_brush, encode_brush
from maft_jax.inference.interchange import (
    geojson_features,
    label_studio_task,
    supervision_detections,
    transformers_segments,
)
from maft_jax.inference.interchange.outlines import mask_polygons
from maft_jax.inference.segment_masks import masks_of, segments_of
from tests.made_up_segments import CLASS_NAMES, made_up_instances, made_up_panoptic, nothing_found

BOTH = pytest.mark.parametrize("make", [made_up_panoptic, made_up_instances])


@pytest.fixture(scope="module")
def supervision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that OpenCV would be faster
        import supervision

        return supervision


@BOTH
def test_supervision_detections_are_what_supervision_makes_of_transformers_results(
    supervision, make
):
    result = make()
    found = transformers_segments(result)
    found["segmentation"] = torch.from_numpy(found["segmentation"])
    names = dict(enumerate(CLASS_NAMES))
    theirs = supervision.Detections.from_transformers(found, names)
    ours = supervision_detections(result)
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    np.testing.assert_array_equal(ours.mask, list(masks_of(result)))
    np.testing.assert_array_equal(ours.class_id, theirs.class_id)
    np.testing.assert_array_equal(ours["class_name"], theirs["class_name"])
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-6)
    # Their lower right corners are the last pixels' own; ours the pixels' ends, as area says.
    np.testing.assert_array_equal(ours.xyxy - theirs.xyxy, [[0, 0, 1, 1]] * len(ours))
    assert ours[ours.class_id == 0]["thing"].all()


def test_supervision_takes_a_result_without_objects(supervision):
    for result in nothing_found():
        assert len(supervision_detections(result)) == 0


def test_missing_supervision_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match="pip install supervision"):
        supervision_detections(made_up_instances())


def test_segments_of_transformers_have_the_form_of_its_own():
    """Two masks of 384 x 384, which is the size that it brings all to."""
    masks = torch.full((1, 2, 384, 384), -9.0)
    masks[0, 0, :, :100], masks[0, 1, :, 100:] = 9, 9
    classes = torch.tensor([[[5.0, 0, 0, 0], [0, 0, 5, 0]]])
    outputs = Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=classes, masks_queries_logits=masks
    )
    (theirs,) = Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse={2}
    )
    ours = transformers_segments(made_up_panoptic())
    assert ours.keys() == theirs.keys()
    assert torch.from_numpy(ours["segmentation"]).dtype == theirs["segmentation"].dtype
    kinds = [{name: type(value) for name, value in row.items()} for row in theirs["segments_info"]]
    for row in ours["segments_info"]:
        assert {name: type(value) for name, value in row.items()} == kinds[0]
    assert [row["was_fused"] for row in theirs["segments_info"]] == [False, True]
    assert [row["was_fused"] for row in ours["segments_info"]] == [False, False, False, True]


def test_brush_strokes_are_the_bytes_of_label_studios_converter():
    """label_studio_sdk 2.1.2, converter.brush.encode_rle."""
    mask = np.zeros((3, 5), bool)
    mask[1, 1:4] = mask[2, 2] = True
    written = [0, 0, 0, 60, 57, 27, 254, 23, 0, 183, 255, 108, 2, 63, 249, 192, 0]
    assert list(encode_brush(mask)) == written


@pytest.mark.parametrize("seed", range(5))
def test_brush_strokes_are_read_again(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((4, 6)) < 0.5, np.ones((90, 70), bool))
    mask ^= rng.random(mask.shape) < 0.01 * seed
    np.testing.assert_array_equal(decode_brush(list(encode_brush(mask)), mask.shape), mask)


@BOTH
def test_label_studio_task_has_a_stroke_for_each_object(make):
    result = make()
    task = label_studio_task(result, "/data/local-files/?d=a.jpg", from_name="brush")
    assert task["data"] == {"image": "/data/local-files/?d=a.jpg"}
    (prediction,) = task["predictions"]
    for row, segment, mask in zip(
        prediction["result"], segments_of(result), masks_of(result), strict=True
    ):
        size = row["original_height"], row["original_width"]
        np.testing.assert_array_equal(decode_brush(row["value"]["rle"], size), mask)
        assert row["value"]["brushlabels"] == [segment.class_name]
        assert (row["from_name"], row["to_name"]) == ("brush", "image")


@BOTH
def test_polygons_are_valid_and_cover_the_masks_exactly(make):
    result = make()
    features = geojson_features(result)["features"]
    for feature, segment, mask in zip(features, segments_of(result), masks_of(result), strict=True):
        geometry = shape(feature["geometry"])
        assert geometry.is_valid
        left, top, width, height = segment.box
        assert geometry.bounds == (left, top, left + width, top + height)
        assert geometry.area == feature["properties"]["area"]
        np.testing.assert_array_equal(_drawn(feature["geometry"]["coordinates"], mask.shape), mask)


@pytest.mark.parametrize("seed", range(40))
def test_polygons_of_any_mask_are_valid_and_exact(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 16, 2))) < rng.random()
    polygons = mask_polygons(mask)
    assert len(polygons) == ndimage.label(mask)[1]
    area = 0
    for polygon in polygons:
        geometry = shape({"type": "Polygon", "coordinates": polygon})
        assert geometry.is_valid, explain_validity(geometry)
        assert geometry.exterior.is_ccw  # as RFC 7946 has it
        assert not any(hole.is_ccw for hole in geometry.interiors)
        area += geometry.area
    assert area == mask.sum()
    np.testing.assert_array_equal(_drawn(polygons, mask.shape), mask)


def test_an_object_without_pixels_has_no_geometry():
    assert mask_polygons(np.zeros((3, 4), bool)) == []


def _drawn(polygons, size):
    """Pixels whose centres an odd number of rings encloses."""
    inside = np.zeros(size, int)
    for polygon in polygons:
        for ring in polygon:
            inside += polygon2mask(size, np.array(ring)[:-1, ::-1] - 0.5)
    return inside % 2 == 1
