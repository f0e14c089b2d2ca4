"""What is written of panoptic and instance results: JSON, panoptic PNG, overlay."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from transformers.image_transforms import rgb_to_id

from maft_jax.inference.files import find_images, predict_images, write_prediction
from maft_jax.inference.object_overlay import object_colors, object_overlay
from maft_jax.inference.segment_masks import masks_of, segments_of
from tests.made_up_segments import CLASS_NAMES, made_up_instances, made_up_panoptic, nothing_found

BOTH = pytest.mark.parametrize(
    ("make", "task", "key"),
    [(made_up_panoptic, "panoptic", "segments"), (made_up_instances, "instance", "instances")],
)


@BOTH
def test_json_has_every_object_with_its_mask(tmp_path, make, task, key):
    result = make()
    write_prediction(result, tmp_path, "below/a", {"weights": "w"})
    content = json.loads((tmp_path / "below/a.json").read_text(encoding="utf-8"))
    assert content["task"] == task and content["weights"] == "w"
    assert content["class_names"] == list(CLASS_NAMES)
    covered = np.zeros(result.image.shape[:2], bool)
    rows = zip(
        content[key], segments_of(result), masks_of(result), object_colors(result), strict=True
    )
    for row, segment, mask, color in rows:
        runs = row["segmentation"]
        assert coco.area({**runs, "counts": runs["counts"].encode()}) == row["pixels"] == mask.sum()
        assert coco.toBbox({**runs, "counts": runs["counts"].encode()}).tolist() == row["box"]
        assert (row["id"], row["name"]) == (segment.id, segment.class_name)
        assert row["score"] == pytest.approx(segment.score, abs=1e-4)
        assert row["color"] == "#{:02x}{:02x}{:02x}".format(*color)
        assert row["thing"] == (row["name"] != "wall")
        covered |= mask
    assert content[f"no_{key[:-1]}"]["pixels"] == (~covered).sum()


def test_panoptic_png_has_the_ids_and_instances_have_none(tmp_path):
    result = made_up_panoptic()
    write_prediction(result, tmp_path, "a", {})
    write_prediction(made_up_instances(), tmp_path, "b", {}, picture_format="jpg")
    names = {"a.json", "a_overlay.png", "a_panoptic.png", "b.json", "b_overlay.jpg"}
    assert {path.name for path in tmp_path.iterdir()} == names
    ids = rgb_to_id(np.asarray(Image.open(tmp_path / "a_panoptic.png")))
    np.testing.assert_array_equal(ids, result.segment_map)
    files = json.loads((tmp_path / "a.json").read_text())["files"]
    assert files == {"overlay": "a_overlay.png", "panoptic": "a_panoptic.png"}
    np.testing.assert_array_equal(
        Image.open(tmp_path / "a_overlay.png"), object_overlay(result, 0.6)
    )


@BOTH
def test_pictures_of_an_earlier_prediction_are_not_predicted(tmp_path, make, task, key):
    Image.fromarray(made_up_panoptic().image).save(tmp_path / "a.png")
    for times in range(2):
        images, problems = find_images([str(tmp_path)])
        assert [image.name for image in images] == ["a"] and not problems, times
        assert predict_images(lambda path, example_id: make(), images, tmp_path, {}) == []


def test_pictures_of_an_earlier_prediction_of_another_kind_are_removed(tmp_path):
    for name in ("a_labels.png", "a_panoptic.png", "b_overlay.png"):
        (tmp_path / name).write_bytes(b"mine")
    content = {
        "files": {"overlay": "a_overlay.jpg", "labels": "a_labels.png", "b": "b_overlay.png"}
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "a_overlay.jpg").touch()
    write_prediction(made_up_instances(), tmp_path, "a", {})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.json", "a_overlay.png", "a_panoptic.png", "b_overlay.png"}
    (tmp_path / "a.json").write_text('{"files": ["somebody else\'s"]}')
    write_prediction(made_up_panoptic(), tmp_path, "a", {})
    assert {path.name for path in tmp_path.iterdir()} == names


def test_nothing_found_is_written_too(tmp_path):
    for result, rest in zip(nothing_found(), ("no_segment", "no_instance"), strict=True):
        write_prediction(result, tmp_path, rest, {})
        content = json.loads((tmp_path / f"{rest}.json").read_text())
        assert content[rest] == {"pixels": 600, "share": 1.0}
