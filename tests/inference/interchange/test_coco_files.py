"""COCO's files, read by pycocotools, transformers, supervision and our own readers."""

import contextlib
import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from transformers.image_transforms import rgb_to_id

from input_pipeline.folder_source import FolderSource
from maft_jax.inference.interchange import (
    coco_document,
    coco_panoptic_document,
    decode_panoptic_png,
    encode_panoptic_png,
    write_coco_dataset,
    write_coco_panoptic,
)
from maft_jax.inference.segment_masks import masks_of, segments_of
from tests.made_up_segments import CLASS_NAMES, made_up_instances, made_up_panoptic, nothing_found


def _results():
    return {
        "a.jpg": made_up_instances(),
        "b/c.jpg": made_up_instances((60, 40), seed=1),
        "nothing.png": nothing_found()[1],
    }


def _open(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("ids", [None, [17, 63, 199]])
def test_pycocotools_finds_every_object_of_a_dataset_folder(tmp_path, ids):
    results = _results() | {"stuff.jpg": made_up_panoptic()}
    write_coco_dataset(results, tmp_path / "dataset", ids)
    coco = _open(tmp_path / "dataset/labels.json")
    assert [coco.cats[i]["name"] for i in ids or (1, 2, 3)] == list(CLASS_NAMES)
    for image, result in zip(coco.imgs.values(), results.values(), strict=True):
        pixels = Image.open(tmp_path / "dataset/data" / image["file_name"])
        np.testing.assert_array_equal(pixels, result.image)
        assert pixels.size == (image["width"], image["height"])
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        for annotation, segment, mask in zip(
            found, segments_of(result), masks_of(result), strict=True
        ):
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            assert coco.cats[annotation["category_id"]]["name"] == segment.class_name
            assert annotation["area"] == mask.sum()
            assert annotation["score"] == segment.score
            assert tuple(annotation["bbox"]) == segment.box


def test_supervision_reads_the_same_objects(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that OpenCV would be faster
        from supervision import DetectionDataset
    results = _results()
    write_coco_dataset(results, tmp_path / "dataset")
    data = str(tmp_path / "dataset/data")
    read = DetectionDataset.from_coco(data, str(tmp_path / "dataset/labels.json"))
    assert read.classes == list(CLASS_NAMES)
    by_name = {path.removeprefix(data + "/"): found for path, found in read.annotations.items()}
    for name, result in zip(("a.png", "b/c.png"), results.values(), strict=False):
        np.testing.assert_array_equal(by_name[name].mask, list(masks_of(result)))
        assert by_name[name].class_id.tolist() == [0, 0, 1]


def test_ids_of_segments_are_the_colours_that_transformers_reads():
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 2**24 - 1, 7]], np.int32)
    pixels = np.asarray(Image.open(io.BytesIO(encode_panoptic_png(ids))))
    np.testing.assert_array_equal(rgb_to_id(pixels), ids)
    np.testing.assert_array_equal(decode_panoptic_png(pixels), ids)


@pytest.mark.parametrize("wrong", [-1, 2**24])
def test_ids_without_a_colour_are_refused(wrong):
    with pytest.raises(ValueError, match="expected ids from 0 to 16777215"):
        encode_panoptic_png(np.full((2, 2), wrong, np.int32))


def test_our_own_reader_takes_panoptic_files_as_labels(tmp_path):
    results = {"a.jpg": made_up_panoptic(), "b.png": made_up_panoptic((60, 40), seed=1)}
    write_coco_panoptic(results, tmp_path / "found")
    (tmp_path / "found/images").mkdir()
    for name, result in results.items():
        Image.fromarray(result.image).save(tmp_path / "found/images" / name)
    source = FolderSource(tmp_path / "found", "images", "panoptic.json", "classes.txt")
    assert source.class_names == CLASS_NAMES
    for i, result in enumerate(results.values()):
        classes = np.full(len(result.segments) + 1, -1)
        classes[[s.id for s in result.segments]] = [s.class_index for s in result.segments]
        np.testing.assert_array_equal(source[i].label_map, classes[result.segment_map])


def test_panoptic_document_says_what_things_are_and_what_each_segment_is():
    result = made_up_panoptic()
    document = json.loads(json.dumps(coco_panoptic_document({"a/b.jpg": result}, [5, 6, 7])))
    assert [row["isthing"] for row in document["categories"]] == [1, 1, 0]
    (annotation,) = document["annotations"]
    assert annotation["file_name"] == "a/b.png"
    for row, segment in zip(annotation["segments_info"], result.segments, strict=True):
        assert row["id"] == segment.id
        assert row["category_id"] == 5 + segment.class_index
        assert row["area"] == (result.segment_map == segment.id).sum()


def test_nothing_gives_empty_documents():
    nothing = {"images": [], "categories": [], "annotations": []}
    assert coco_document({}) == coco_panoptic_document({}) == nothing


def test_impossible_files_are_refused_before_anything_is_written(tmp_path):
    result = made_up_instances()
    other = type(result)(result.image, ("dog", "sofa", "wall"), result.instances, ())
    with pytest.raises(ValueError, match="expected the same classes in all images, got 2 lists"):
        coco_document({"a.jpg": result, "b.jpg": other})
    with pytest.raises(ValueError, match="expected one for each of 3 classes, all different"):
        coco_document({"a.jpg": result}, [1, 1, 2])
    with pytest.raises(ValueError, match=r"1 names would be those of several images.*'a\.png'"):
        write_coco_dataset({"a.jpg": result, "a.png": result}, tmp_path / "dataset")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(OSError):
        write_coco_dataset({"a.jpg": result}, tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("write", [write_coco_dataset, write_coco_panoptic])
@pytest.mark.parametrize("name", ["{folder}/a.png", "../a.png", "b/../../../a.png", "..", ""])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, write, name):
    mine = tmp_path / "a.png"
    mine.write_bytes(b"a photograph")
    result = made_up_panoptic()
    with pytest.raises(ValueError, match="expected names of files, perhaps in folders, below"):
        write({name.format(folder=tmp_path): result}, tmp_path / "made")
    assert mine.read_bytes() == b"a photograph" and list(tmp_path.iterdir()) == [mine]
