"""COCO's instances as label maps, compared with pycocotools."""

import gc
import importlib.util
import logging
import pickle
import unicodedata
import zipfile

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from input_pipeline.examples import IGNORE
from input_pipeline.folder_source import FolderSource
from input_pipeline.label_maps import opening
from input_pipeline.run_lengths import decode_segmentation
from maft_jax.proposals.label_agreement import check_several_classes
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config
from tests.input_pipeline.label_maps.coco_files import annotation, box, image_row, write_coco
from tests.runs import small_config

ONE = [image_row(7, "a.jpg")]


def run_lengths(mask):
    """Plain ones, which go down the columns and begin with zeros."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [2]])
    counts, last = [], 0
    for value in flat[1:-1]:
        if value != last:
            counts.append(0)
        counts = counts or [0]
        counts[-1] += 1
        last = value
    if flat[1] == 1:
        counts.insert(0, 0)
    return {"size": list(mask.shape), "counts": counts}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_run_lengths_and_crowds_are_those_of_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    height, width = 40, 56
    mask = np.zeros((height, width), bool)
    mask[3:18, 5:50] = rng.random((15, 45)) > 0.3
    packed = coco_mask.encode(np.asfortranarray((rng.random((height, width)) > 0.9).astype("u1")))
    segmentations = [
        run_lengths(mask),
        {"size": packed["size"], "counts": packed["counts"].decode()},
        *([(rng.random(8) * 60 - 3).tolist(), (rng.random(6) * 30).tolist()] for _ in range(4)),
    ]
    rows = [
        annotation(i, 7, (1, 18, 90)[i % 3], segmentation, iscrowd=int(i == 0))
        for i, segmentation in enumerate(segmentations)
    ]
    images = [image_row(7, "a.jpg", width, height)]
    root = write_coco(tmp_path, ["a.jpg"], images, rows, size=(width, height))
    tool = COCO(root / "annotations/instances_default.json")
    found = FolderSource(root).object_masks().objects(0)
    for row, one in zip(rows, found, strict=True):  # which overlap
        theirs = tool.annToMask(row)
        np.testing.assert_array_equal(decode_segmentation(one.run_lengths, (1, 1)), theirs)
        assert (one.class_id, one.is_crowd) == (row["id"] % 3, row["id"] == 0)
        assert one.area == theirs.sum()
    drawn = [(tool.annToMask(row) > 0, row) for row in tool.loadAnns(tool.getAnnIds(7))]
    drawn.sort(key=lambda pair: (not pair[1]["iscrowd"], -pair[0].sum()))
    expected = np.full((height, width), IGNORE)
    for region, row in drawn:
        expected[region] = tool.getCatIds().index(row["category_id"])
    source = FolderSource(root)
    assert source.class_names == ("person", "dog", "toothbrush")
    np.testing.assert_array_equal(source[0].label_map, expected)
    assert len(np.unique(expected)) == 4


def test_smaller_regions_lie_on_larger_ones_and_crowds_below_all(tmp_path):
    rows = [
        annotation(1, 7, 18, box(4, 2, 6, 4)),
        annotation(2, 7, 1, box(0, 0, 8, 8)),
        annotation(3, 7, 90, box(5, 0, 6, 1), iscrowd=1),
        annotation(4, 7, 90, box(7, 3, 9, 5)),
        annotation(5, 7, 18, box(7, 3, 9, 5)),
    ]
    labels = FolderSource(write_coco(tmp_path, ["a.jpg"], ONE, rows))[0].label_map
    assert labels[0].tolist() == [0] * 8 + [IGNORE] * 4
    assert labels[3].tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 1, IGNORE, IGNORE, IGNORE]


def test_instances_are_kept_and_crowds_are_none(tmp_path):
    rows = [
        annotation(1, 7, 18, box(0, 0, 3, 8)),
        annotation(2, 7, 18, box(3, 0, 5, 8)),
        annotation(3, 7, 18, box(6, 0, 9, 8), iscrowd=1),
    ]
    example = FolderSource(write_coco(tmp_path, ["a.jpg"], ONE, rows))[0]
    assert example.label_map[0].tolist() == [1] * 5 + [IGNORE] + [1] * 3 + [IGNORE] * 3
    numbers = example.instances[0].tolist()
    assert numbers[0] == numbers[2] != numbers[3] == numbers[4] and numbers[5:] == [0] * 7


def test_pixels_of_no_region_are_background_where_that_is_a_class(tmp_path):
    root = write_coco(tmp_path, ["a.jpg"], ONE, [annotation(1, 7, 18, box(0, 0, 12, 4))])
    (root / "classes.txt").write_text("background\ndog\nperson\ntoothbrush\n")
    source = FolderSource(root)
    assert source.class_names == ("background", "dog", "person", "toothbrush")
    assert source[0].label_map[:, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    check_several_classes(source)


def test_one_class_without_background_is_refused_with_what_to_do(tmp_path):
    root = write_coco(tmp_path, ["a.jpg"], ONE, [annotation(1, 7, 18, box(0, 0, 12, 4))])
    message = r"no pixel shows 'person', 'toothbrush'; every pixel is no region \(ignored, 50.0 %\)"
    with pytest.raises(ValueError, match=message + r".*class 1 \(dog, .*a class background: write"):
        check_several_classes(FolderSource(root))


def test_annotations_without_area_are_no_regions_and_counted(tmp_path, caplog):
    rows = [
        annotation(1, 7, 18, box(0, 0, 12, 4)),
        annotation(2, 7, 1, []),
        annotation(3, 7, 1, [[]]),
        annotation(4, 7, 1, [[3, 3, 8, 8]]),
    ]
    root = write_coco(tmp_path, ["a.jpg"], ONE, rows)
    assert np.unique(FolderSource(root)[0].label_map).tolist() == [IGNORE, 1]
    assert "3 of 4 annotations have no segmentation, or one of no area, and are" in caplog.text
    root = write_coco(tmp_path / "boxes", ["a.jpg"], ONE, rows[1:])
    with pytest.raises(ValueError, match=r"default\.json: none of its 3 annotations has a segme"):
        FolderSource(root)


@pytest.mark.parametrize(
    "name",
    [
        "train\\café 1.jpg",
        "images/train/cafe\u0301 1.jpg",
        "..\\..\\media\\upload\\4\\café 1.jpg",
        "C:\\data\\images\\train\\café 1.jpg",
        "https://host/bucket/train/caf%C3%A9%201.jpg?token=3",
        "/data/local-files/?d=photos/caf%C3%A9%201.jpg",
        "/data/upload/4/0a1b2c3d-café 1.jpg",
        "café 1.png",
        "0a1b2c3d-café 1.jpg",
        "images\\train\\0a1b2c3d-café 1.jpg",
    ],
)
def test_names_of_other_systems_are_found(tmp_path, name):
    on_disk = unicodedata.normalize("NFD", "train/café 1.jpg")
    rows = [annotation(1, 7, 18, box(0, 0, 12, 4))]
    source = FolderSource(write_coco(tmp_path, [on_disk], [image_row(7, name)], rows))
    assert source.example_ids == (on_disk.removesuffix(".jpg"),)
    assert source[0].label_map[0, 0] == 1


def test_a_name_is_that_of_a_file_before_it_is_one_without_its_ending(tmp_path):
    images = [image_row(1, "a.jpg"), image_row(2, "a.jpg.png")]
    rows = [annotation(i, i, (1, 18)[i - 1], box(0, 0, 12, 4)) for i in (1, 2)]
    source = FolderSource(write_coco(tmp_path, ["a.jpg", "a.jpg.png"], images, rows))
    assert source.example_ids == ("a", "a.jpg")
    assert [source[i].label_map.max() for i in range(2)] == [0, 1]


def test_images_of_another_folder_are_not_taken_for_those_that_are_meant(tmp_path):
    rows = [annotation(1, 7, 18, box(0, 0, 12, 4))]
    root = write_coco(tmp_path, ["val/0001.jpg"], [image_row(7, "train/0001.jpg")], rows)
    with pytest.raises(ValueError, match=r"none of its 1 images is in .*: expected train/0001.jpg"):
        FolderSource(root)


def test_a_name_of_several_images_is_refused_and_its_folder_tells_which(tmp_path):
    rows = [annotation(1, 7, 18, box(0, 0, 12, 4))]
    names = ["x/a.jpg", "y/a.jpg"]
    with pytest.raises(ValueError, match=r"expected one image of .* x/a.jpg, y/a.jpg; name the"):
        FolderSource(write_coco(tmp_path, names, ONE, rows))
    source = FolderSource(write_coco(tmp_path, names, [image_row(7, "photos\\y\\a.jpg")], rows))
    assert source.example_ids == ("y/a",)


def test_what_has_no_partner_is_left_out_and_named(tmp_path, caplog):
    images = [image_row(i, f"{name}.jpg") for i, name in enumerate("cab")]
    rows = [annotation(1, 0, 18, box(0, 0, 12, 4))]
    root = write_coco(tmp_path, ["a.jpg", "c.jpg", "z.jpg"], images, rows)
    with caplog.at_level(logging.INFO):
        source = FolderSource(root)
    assert source.example_ids == ("a", "c")
    assert source[0].label_map.max() == IGNORE and source[1].label_map.max() == 1
    assert "instances_default.json: 1 images are not in" in caplog.text and "b.jpg" in caplog.text
    assert "images: 1 images are not in" in caplog.text and "z.jpg" in caplog.text
    assert "2 images have no region" in caplog.text


def test_json_may_lie_anywhere_and_in_archives(tmp_path):
    rows = [annotation(1, 7, 18, box(0, 0, 12, 4))]
    root = write_coco(tmp_path / "task", ["a.jpg"], ONE, rows, at="images/_annotations.coco.json")
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        for file in root.rglob("*"):
            archive.write(file, f"task/{file.relative_to(root)}")
    at = "images/_annotations.coco.json"
    sources = [
        FolderSource(root, annotations=at),
        FolderSource(root, annotations="images"),
        FolderSource(tmp_path / "task.zip", annotations=at),
        pickle.loads(pickle.dumps(FolderSource(root, annotations=str(root / at)))),
    ]
    for source in sources:
        assert source[0].label_map[:, 0].tolist() == [1] * 4 + [IGNORE] * 4


@pytest.mark.parametrize(
    ("classes", "ignore_labels", "message"),
    [
        ("18\tdog\n1\tperson\n", (255,), None),
        ("dog\nperson\n", (255,), None),
        ("18:hound,dog\n1:human,person,people\n", (255,), None),
        ("dog\n", (1, 255), None),
        ("dog\n", (255,), r"category 1, 'person', is no class of classes.txt, but has 2 annotatio"),
        ("17\tdog\n1\tperson\n", (255,), r"category 18 is 'dog', which has label value 17 in the"),
        (
            "18\tcat\n1\tperson\n",
            (255,),
            r"category 18, 'dog', is no class .* 1 annotations.*a.jpg",
        ),
    ],
)
def test_class_list_and_categories_agree_or_are_refused(tmp_path, classes, ignore_labels, message):
    rows = [annotation(i, 7, number, box(0, i, 12, i + 1)) for i, number in enumerate((18, 1, 1))]
    root = write_coco(tmp_path, ["a.jpg"], ONE, rows)
    (root / "classes.txt").write_text(classes)
    if message:
        with pytest.raises(ValueError, match=message):
            FolderSource(root, ignore_labels=ignore_labels)
        return
    source = FolderSource(root, ignore_labels=ignore_labels)
    person = len(source.class_names) - 1 or IGNORE
    assert source[0].label_map[:3, 0].tolist() == [0, person, person]


@pytest.mark.parametrize(
    ("rows", "annotations", "message"),
    [
        (ONE, [annotation(1, 8, 18, box(0, 0, 2, 2))], "annotations of image_id 8, which is none"),
        (
            ONE,
            [annotation(1, 7, 3, box(0, 0, 2, 2))],
            r"annotations\[0\]: category_id 3 is none of",
        ),
        (
            ONE,
            [{"id": 1, "category_id": 18}],
            r"annotations\[0\]: expected an annotation with imag",
        ),
        (ONE * 2, [annotation(1, 7, 18, box(0, 0, 2, 2))], "images: id 7 stands twice"),
        (
            [*ONE, image_row(8, "x/a.jpg")],
            [annotation(1, 7, 18, box(0, 0, 2, 2))],
            "'a.jpg' and 'x/a.jpg' are the same image",
        ),
        (
            [image_row(7, "q.jpg")],
            [annotation(1, 7, 18, box(0, 0, 2, 2))],
            "none of its 1 images is",
        ),
        (
            [{"id": 7, "file_name": "a.jpg"}],
            [],
            r"images\[0\]: expected an image with id, file_name",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_by_entry(tmp_path, rows, annotations, message):
    root = write_coco(tmp_path, ["a.jpg"], rows, annotations)
    with pytest.raises(ValueError, match=message) as refusal:
        FolderSource(root)
    assert str(refusal.value).startswith(f"{root}/annotations/instances_default.json")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], r"image 'a.jpg', annotation 5: polygon: expected"),
        ([["1", 2, 3, 4, 5, 6]], r"annotation 5: polygon: expected"),
        ({"size": [12, 8], "counts": [96]}, r"expected run lengths of the size .* 8 x 12, got 12"),
        ({"size": [8, 12], "counts": [95]}, r"annotation 5: counts: expected run lengths that add"),
    ],
)
def test_broken_segmentations_name_image_and_annotation(tmp_path, segmentation, message):
    root = write_coco(tmp_path, ["a.jpg"], ONE, [annotation(5, 7, 18, segmentation)])
    with pytest.raises(ValueError, match=message):
        FolderSource(root)[0]


def test_image_of_another_size_than_the_json_says_is_refused(tmp_path):
    rows = [annotation(1, 7, 18, box(0, 0, 12, 4))]
    root = write_coco(tmp_path, ["a.jpg"], ONE, rows, size=(24, 16))
    with pytest.raises(ValueError, match=r"json: image 'a.jpg': expected the size .*24x16 .*12x8"):
        FolderSource(root)[0]


def test_polygons_without_pycocotools_are_refused_at_once(tmp_path, monkeypatch):
    root = write_coco(tmp_path, ["a.jpg"], ONE, [annotation(1, 7, 18, box(0, 0, 12, 4))])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"annotations\[0\]: polygons need pycocotools: pip inst"):
        FolderSource(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "expected a JSON, but Expecting value"),
        ("[1, 2]", "expected a JSON of COCO"),
        ('{"images": [], "annotations": []}', 'expected "categories"'),
    ],
)
def test_other_jsons_are_refused(tmp_path, content, message):
    root = write_coco(tmp_path, ["a.jpg"], ONE, [])
    (root / "annotations/instances_default.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        FolderSource(root)


def test_several_jsons_are_refused_by_name(tmp_path):
    root = write_coco(tmp_path, ["a.jpg"], ONE, [])
    (root / "annotations/captions.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found 2: annotations/captions.json, annotations/inst"):
        FolderSource(root)


def test_signature_follows_the_annotations_of_the_image_alone(tmp_path):
    images = [image_row(1, "a.jpg"), image_row(2, "b.jpg")]
    rows = [annotation(i, i, 18, box(0, 0, 12, 4)) for i in (1, 2)]
    before = FolderSource(write_coco(tmp_path, ["a.jpg", "b.jpg"], images, rows))
    signatures = [before.signature(i) for i in range(2)]
    rows[1]["segmentation"] = box(0, 0, 12, 5)
    write_coco(tmp_path, [], images, rows)
    after = FolderSource(tmp_path)
    assert after.signature(0) == signatures[0] and after.signature(1) != signatures[1]


def test_records_and_counts_are_made_of_a_json(tmp_path):
    images = [image_row(i, f"{i}.jpg") for i in range(2)]
    rows = [annotation(i, i, (1, 18)[i], box(0, 0, 12, 4)) for i in range(2)]
    root = write_coco(tmp_path / "data", ["0.jpg", "1.jpg"], images, rows)
    settings = {"data.root": str(root), "data.records": str(tmp_path / "records")}
    precompute(job_from_config(small_config(settings)), num_workers=1)
    counts = (tmp_path / "records/label_counts.json").read_text()
    assert '"ignored_pixels": 96' in counts and counts.count('"pixels": 48') == 2


def test_large_json_is_said_and_the_garbage_collector_is_as_before(tmp_path, monkeypatch, caplog):
    root = write_coco(tmp_path, ["a.jpg"], ONE, [annotation(1, 7, 18, box(0, 0, 4, 2))])
    monkeypatch.setattr(opening, "_BYTES_OF_SECONDS", 100)
    with caplog.at_level(logging.INFO):
        FolderSource(root)
    assert "instances_default.json, 0 MB of JSON" in caplog.text
    (root / "annotations/instances_default.json").write_text("{")
    with pytest.raises(ValueError, match="expected a JSON, but"):
        FolderSource(root)
    assert gc.isenabled()


def test_areas_matter_to_objects_alone(tmp_path):
    def source(**area):
        rows = [annotation(1, 7, 18, box(0, 0, 5, 5), **area)]
        return FolderSource(write_coco(tmp_path, ["a.jpg"], ONE, rows))

    one, other, wrong = source(area=24.5), source(area=25), source(area="large")
    assert one.object_masks().objects(0)[0].area == 24.5
    stamps = [one.label_signature(0), one.object_masks().object_signature(0)]
    assert other.label_signature(0) == stamps[0], "for which proposals need not be made again"
    assert other.object_masks().object_signature(0) != stamps[1]
    with pytest.raises(ValueError, match="annotation 1: area: expected a number of pixels, got 'l"):
        wrong.object_masks().objects(0)
    assert one.ids == ((7,), (1, 18, 90))
