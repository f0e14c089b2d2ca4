"""Panoptic and instance results in the page: what the viewer gets, and what is downloaded."""

import base64
import dataclasses
import gzip
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import maft_jax
from maft_jax.inference.object_overlay import object_colors, object_overlay, uppermost_segments
from maft_jax.inference.segment_masks import segments_of
from maft_jax.web_page.session import PageSession, Result
from maft_jax.web_page.viewer import NO_CLASS, viewer_data
from tests.made_up_segments import made_up_instances, made_up_panoptic, nothing_found

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("make", [made_up_panoptic, made_up_instances])


def shown_labels(data):
    plain = gzip.decompress(base64.b64decode(data["labels"]))
    return np.frombuffer(plain, "<u2").reshape(data["height"], data["width"])


@BOTH
def test_viewer_gets_every_object_with_class_score_and_size(make):
    result = make()
    data = json.loads(json.dumps(viewer_data(Result(result, "photo", 1.0))))
    labels, expected = shown_labels(data), uppermost_segments(result)
    np.testing.assert_array_equal(labels == NO_CLASS, expected == -1)
    colors = object_colors(result)
    for place, segment in enumerate(segments_of(result)):
        (shown,) = np.unique(labels[expected == place])
        entry = data["classes"][shown]
        assert entry["name"] == segment.class_name and entry["color"] == list(colors[place])
        _, _, width, height = segment.box
        assert entry["detail"] == f"score {segment.score:.2f} · {width} x {height} pixels"
        assert entry["share"] == pytest.approx(segment.num_pixels / labels.size)
    assert data["outlines"] and data["note"].startswith("80 x 48 pixels, ")


def test_things_are_named_once():
    data = viewer_data(Result(made_up_panoptic((480, 800)), "large", 1.0))
    names = [entry["name"] for entry in data["written"]]
    assert names.count("cat") == 2 and names.count("sofa") == 1


@BOTH
def test_large_pictures_of_objects_reach_the_browser_smaller(make):
    data = viewer_data(Result(make((1500, 3000)), "large", 1.0))
    assert (data["width"], data["height"]) == (1600, 800)


def test_nothing_found_is_shown():
    for result in nothing_found():
        data = viewer_data(Result(result, "empty", 1.0))
        assert data["classes"] == [] and data["rest"] == 1
        assert data["absent"] == "Not found: cat · sofa · wall"


@BOTH
def test_downloads_are_the_overlay_and_the_objects(make, tmp_path):
    session = PageSession(maft_jax.load("random:tiny"), tmp_path)
    result = Result(make(), "my photo", 1.0)
    with Image.open(session.write_overlay(result, 0.3)) as image:
        np.testing.assert_array_equal(image, object_overlay(result.segmentation, 0.3))
    path = session.write_labels(result)
    assert path.endswith("/my photo_objects.json")
    content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    rows = content.get("segments", content.get("instances"))
    assert [row["name"] for row in rows][:3] == ["cat", "cat", "sofa"]


def test_session_finds_objects_as_the_library_does(tmp_path):
    clip = dataclasses.replace(maft_jax.load("random:tiny"), image_size=96)
    picture = str(tmp_path / "photo.png")
    Image.fromarray(made_up_panoptic((64, 96)).image).save(picture)
    session = PageSession(clip, tmp_path)
    asked = (picture, "cat, sofa", "wall", 25)
    found = session.segment(*asked, task="panoptic", things="cat").segmentation
    options = {"background": ["wall"], "num_proposals": 25}
    expected = maft_jax.segment_panoptic(clip, picture, ["cat", "sofa"], things=["cat"], **options)
    np.testing.assert_array_equal(found.segment_map, expected.segment_map)
    assert found.things == {0}
    instances = session.segment(*asked, task="instance").segmentation.instances
    assert all(instance.score > 0.5 for instance in instances)
    for task, things in (("objects", ""), ("panoptic", "dog")):
        with pytest.raises(ValueError, match=r"^task: expected one of|^things: 'dog' is none"):
            session.segment(*asked, task=task, things=things)
