"""Label Studio's JSON export as label maps."""

import json
import logging
import zipfile

import numpy as np
import pytest
from PIL import Image
from skimage.draw import polygon2mask

from input_pipeline.examples import IGNORE
from input_pipeline.folder_source import FolderSource
from tests.input_pipeline.label_maps.brush_encoder import encode_mask

SIZE = (6, 10)


def mask(rows, columns):
    pixels = np.zeros(SIZE, bool)
    pixels[rows, columns] = True
    return pixels


def stroke(number, label, pixels, **more):
    return {
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_mask(pixels), "brushlabels": [label]},
        "id": number,
        "from_name": "tag",
        "to_name": "image",
        "type": "brushlabels",
        "origin": "manual",
    } | more


def task(number, image, *results, **of_annotation):
    annotation = {"id": 10 * number, "result": list(results), "was_cancelled": False}
    annotations = [annotation | {"ground_truth": False} | of_annotation]
    return {"id": number, "data": {"image": image}, "annotations": annotations, "predictions": []}


def write_data(root, tasks, images=("a.jpg",), classes="car\nroad\n"):
    for name in images:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (90, 120, 150)).save(path)
    (root / "project-1.json").write_text(json.dumps(tasks))
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def open_data(root):
    return FolderSource(root, annotations="project-1.json")


CAR, ROAD = mask(slice(2, 4), slice(3, 6)), mask(slice(1, 6), slice(0, 10))


def test_strokes_become_classes_and_the_smaller_lies_on_top(tmp_path):
    strokes = stroke("x", "car", CAR), stroke("y", "road", ROAD)
    root = write_data(tmp_path, [task(1, "/data/upload/4/0a1b2c3d-a.jpg", *strokes)])
    expected = np.where(CAR, 0, np.where(ROAD, 1, IGNORE))
    source = open_data(root)
    np.testing.assert_array_equal(source[0].label_map, expected)
    assert source.class_names == ("car", "road")


def test_pixels_of_no_stroke_are_background_where_that_is_a_class(tmp_path):
    tasks = [task(1, "a.jpg", stroke("x", "car", CAR)), task(2, "b.jpg")]
    root = write_data(tmp_path, tasks, ("a.jpg", "b.jpg"), "background\ncar\n")
    np.testing.assert_array_equal(open_data(root)[0].label_map, CAR)
    np.testing.assert_array_equal(open_data(root)[1].label_map, np.zeros(SIZE))


def test_labels_are_the_classes_without_a_list(tmp_path, caplog):
    strokes = stroke("x", "road", ROAD), stroke("y", "car", CAR), stroke("z", "void", CAR)
    root = write_data(tmp_path, [task(1, "a.jpg", *strokes)], classes=None)
    with caplog.at_level(logging.INFO):
        source = open_data(root)
    assert source.class_names == ("car", "road")
    assert source[0].label_map[2, 3] == IGNORE  # of equal ones the later is on top
    assert "2 classes of" in caplog.text and "project-1.json, its labels" in caplog.text


def test_brush_and_labels_as_two_results_are_one_stroke(tmp_path):
    """As <Brush> with <Labels> exports it: one result with what was painted, one with its name."""
    painted = stroke("x", "car", CAR, type="brush")
    del painted["value"]["brushlabels"]
    named = stroke("x", "car", CAR, type="labels")
    named["value"]["labels"] = named["value"].pop("brushlabels")
    choice = {"id": "c", "type": "choices", "value": {"choices": ["sunny"]}}
    root = write_data(tmp_path, [task(1, "a.jpg", choice, painted, named)])
    np.testing.assert_array_equal(open_data(root)[0].label_map, np.where(CAR, 0, IGNORE))


def test_polygons_are_in_percent(tmp_path):
    value = {"points": [[0, 0], [60, 0], [60, 50], [0, 50]], "polygonlabels": ["car"]}
    polygon = stroke("x", "car", CAR, type="polygonlabels", value=value)
    labels = open_data(write_data(tmp_path, [task(1, "a.jpg", polygon)]))[0].label_map
    corners = np.array([[0, 0], [0, 5.5], [2.5, 5.5], [2.5, 0]])
    np.testing.assert_array_equal(labels == 0, polygon2mask(SIZE, corners))


def test_the_short_export_and_archives_are_read(tmp_path):
    full = stroke("x", "car", CAR)
    short = {"original_width": SIZE[1], "original_height": SIZE[0], **full["value"]}
    tasks = [{"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 1, "tag": [short], "annotator": 1}]
    root = write_data(tmp_path / "data", tasks)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in root.rglob("*"):
            archive.write(file, file.relative_to(root))
    for place in (root, tmp_path / "data.zip"):
        np.testing.assert_array_equal(open_data(place)[0].label_map, np.where(CAR, 0, IGNORE))


def test_annotations_that_were_cancelled_or_are_not_there_do_not_count(tmp_path, caplog):
    tasks = [
        task(1, "a.jpg", stroke("x", "car", CAR)),
        task(2, "b.jpg", stroke("x", "car", CAR), was_cancelled=True),
        {"id": 3, "data": {"image": "c.jpg"}, "annotations": []},
    ]
    root = write_data(tmp_path, tasks, ("a.jpg", "b.jpg", "c.jpg"))
    assert open_data(root).example_ids == ("a",)
    assert "2 tasks have no annotation: 2, 3" in caplog.text
    assert "2 images are not in" in caplog.text


def test_of_several_annotations_ground_truth_counts_or_they_are_refused(tmp_path):
    several = task(1, "a.jpg", stroke("x", "car", CAR))
    several["annotations"].append({"id": 11, "result": [stroke("x", "road", ROAD)]})
    with pytest.raises(ValueError, match=r"task 1: has 2 annotations \(ids 10, 11\); mark one as"):
        open_data(write_data(tmp_path, [several]))
    several["annotations"][1]["ground_truth"] = True
    labels = open_data(write_data(tmp_path, [several]))[0].label_map
    np.testing.assert_array_equal(labels == 1, ROAD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"value": {"rle": [], "brushlabels": ["tree"]}},
            "label 'tree' is no class of .* 1 regions",
        ),
        ({"value": {"rle": [], "brushlabels": []}}, r"task 1, region 'x': expected one label"),
        (
            {"value": {"x": 1, "rectanglelabels": ["car"]}, "type": "rectanglelabels"},
            "region 'x': is of type 'rectanglelabels'; brush strokes and polygons are read",
        ),
        ({"original_width": None}, "region 'x': expected original_width and original_height"),
        ({"image_rotation": 90}, "was drawn on the image rotated by 90 degrees"),
    ],
)
def test_what_is_not_read_is_refused_before_anything_is(tmp_path, change, message):
    root = write_data(tmp_path, [task(1, "a.jpg", stroke("x", "car", CAR) | change)])
    with pytest.raises(ValueError, match=message) as refusal:
        open_data(root)
    assert str(refusal.value).startswith(f"{root}/project-1.json")


def test_corrupt_strokes_name_image_and_region(tmp_path):
    broken = stroke("x", "car", CAR)
    broken["value"]["rle"] = broken["value"]["rle"][:12]
    root = write_data(tmp_path, [task(1, "a.jpg", broken)])
    message = r"project-1\.json: image 'a\.jpg', region 'x': rle: ends early: .*; draw it again"
    with pytest.raises(ValueError, match=message):
        open_data(root)[0]


def test_signature_follows_the_strokes_of_the_image_alone(tmp_path):
    tasks = [task(i, f"{i}.jpg", stroke("x", "car", CAR)) for i in range(2)]
    root = write_data(tmp_path, tasks, ("0.jpg", "1.jpg"))
    before = [open_data(root).signature(i) for i in range(2)]
    tasks[1] = task(1, "1.jpg", stroke("x", "car", ROAD))
    after = [open_data(write_data(tmp_path, tasks)).signature(i) for i in range(2)]
    assert before[0] == after[0] and before[1] != after[1]
