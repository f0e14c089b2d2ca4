"""COCO panoptic, ADE20K's panoptic conversion and Cityscapes, as they are published."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from input_pipeline.dataset_specs import SPECS
from input_pipeline.examples import IGNORE
from input_pipeline.layouts import open_dataset
from input_pipeline.layouts.base import MissingFiles
from input_pipeline.run_lengths import decode_segmentation

SEGMENTS = np.array([[0, 5, 5, 300], [70000, 70000, 9, 300]])


def encoded(array, file_format="PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, file_format)
    return content.getvalue()


def png_of_segments() -> bytes:
    parts = [SEGMENTS % 256, SEGMENTS // 256 % 256, SEGMENTS // 65536]
    return encoded(np.stack(parts, axis=-1).astype(np.uint8))


JPEG = encoded(np.zeros((2, 4, 3), np.uint8), "JPEG")


def write(root, files):
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def panoptic_json(name, categories, of_segments) -> bytes:
    segments = [
        {"id": number, "category_id": category, "iscrowd": crowd}
        for number, (category, crowd) in of_segments.items()
    ]
    content = {
        "images": [{"id": 7, "file_name": f"{name}.jpg", "height": 2, "width": 4}],
        "annotations": [{"image_id": 7, "file_name": f"{name}.png", "segments_info": segments}],
        "categories": categories,
    }
    return json.dumps(content).encode()


def coco_files() -> dict:
    spec = SPECS["coco_panoptic"]
    values = zip(spec.classes.label_values, spec.classes.names, strict=True)
    categories = [{"id": value, "name": name} for value, name in values]
    of_segments = {5: (1, 0), 300: (1, 0), 9: (3, 1), 70000: (200, 0)}
    return {
        "val2017/000000000139.jpg": JPEG,
        "val2017/000000000999.jpg": JPEG,  # without labels
        "annotations/panoptic_val2017.json": panoptic_json("000000000139", categories, of_segments),
        "annotations/panoptic_val2017/000000000139.png": png_of_segments(),
    }


@pytest.mark.parametrize("prefix", ["", "coco/"])
def test_coco_panoptic_has_classes_and_its_objects(tmp_path, prefix):
    write(tmp_path, {prefix + path: content for path, content in coco_files().items()})
    source = open_dataset("coco_panoptic", tmp_path, "val")
    assert source.example_ids == ("000000000139",)
    example = source[0]
    assert example.label_map.tolist() == [[IGNORE, 0, 0, 0], [132, 132, 2, 0]]
    one, other = example.instances[0, 1], example.instances[0, 3]
    assert one != other and min(one, other) > 0
    assert example.instances[0, 0] == example.instances[1, 2] == 0, "void and crowd"


def instances_json(names) -> bytes:
    """Two persons, one over the other, in the first image."""
    rows = [
        {"id": 7 + i, "file_name": f"{name}.jpg", "height": 2, "width": 4}
        for i, name in enumerate(names)
    ]
    overlapping = [[0, 0, 4, 0, 4, 2, 0, 2]], [[0, 0, 2, 0, 2, 2, 0, 2]]
    annotations = [
        {"id": 1 + i, "image_id": 7, "category_id": 1, "area": 7.5 - i, "segmentation": polygons}
        for i, polygons in enumerate(overlapping)
    ]
    content = {"images": rows, "annotations": annotations}
    return json.dumps(content | {"categories": [{"id": 1, "name": "person"}]}).encode()


def test_objects_of_coco_are_those_of_its_instances_uncut(tmp_path):
    write(tmp_path, coco_files())
    source = open_dataset("coco_panoptic", tmp_path, "val")
    assert source.object_masks() is None, "label maps have them alone"
    assert (source.ids.images, source.ids.categories[-1]) == ((7,), 200)
    at = "annotations/instances_val2017.json"
    write(tmp_path, {at: instances_json(["000000000999", "000000000139"])})
    masks = pickle.loads(pickle.dumps(open_dataset("coco_panoptic", tmp_path, "val")))
    assert masks.object_masks().objects(0) == [], "those of 7, which is another image there"
    write(tmp_path, {at: instances_json(["000000000139"])})
    found = open_dataset("coco_panoptic", tmp_path, "val").object_masks().objects(0)
    pixels = [decode_segmentation(one.run_lengths, (2, 4)).sum() for one in found]
    assert pixels == [8, 4] and [one.area for one in found] == [7.5, 6.5]
    write(tmp_path, {at: instances_json(["000000000999"])})
    with pytest.raises(ValueError, match="lacks 1 of 1 images of the panoptic labels: 0000000001"):
        open_dataset("coco_panoptic", tmp_path, "val").object_masks()


def test_missing_labels_of_coco_panoptic_are_named(tmp_path):
    write(tmp_path, {path: c for path, c in coco_files().items() if not path.endswith(".png")})
    with pytest.raises(MissingFiles, match=r"(?s)panoptic_val2017.json with the PNGs in .*zip"):
        open_dataset("coco_panoptic", tmp_path, "val")
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingFiles) as missing:
        open_dataset("coco_panoptic", tmp_path, "val")
    assert [download.file_name for download in missing.value.downloads] == ["val2017.zip"]


def ade_files(ids) -> dict:
    categories = [{"id": i, "name": f"short name {i}", "isthing": 0} for i in ids]
    of_segments = {5: (12, 0), 300: (12, 0), 9: (0, 0), 70000: (149, 0)}
    root = "ADEChallengeData2016"
    return {
        f"{root}/images/validation/ADE_val_00000001.jpg": JPEG,
        f"{root}/ade20k_panoptic_val.json": panoptic_json(
            "ADE_val_00000001", categories, of_segments
        ),
        f"{root}/ade20k_panoptic_val/ADE_val_00000001.png": png_of_segments(),
    }


def test_classes_of_ade20k_panoptic_go_by_the_ids_of_the_conversion(tmp_path):
    write(tmp_path, ade_files(range(150)))
    source = open_dataset("ade20k_panoptic", tmp_path, "val")
    assert source[0].label_map.tolist() == [[IGNORE, 12, 12, 12], [149, 149, 0, 12]]
    assert source.class_names == SPECS["ade20k_150"].classes.names
    assert source[0].instances[0, 1] != source[0].instances[0, 3]


OBJECTS = np.stack([[[4, 4, 0, 1], [4, 100, 0, 4]], [[3, 3, 0, 9], [5, 6, 0, 5]]], axis=-1)
"""Red and green: three persons' and others' pixels, of objects 3, 5, 6 and 9."""


@pytest.mark.parametrize("dataset", ["ade20k_150", "ade20k_panoptic"])
def test_objects_of_ade20k_are_those_of_the_official_conversion(tmp_path, dataset):
    name, root = "ADE_val_00000001", "ADEChallengeData2016"
    labels = {f"{root}/annotations/validation/{name}.png": encoded(np.ones((2, 4), np.uint8))}
    pixels = np.concatenate([OBJECTS, np.zeros((2, 4, 1))], axis=-1).astype(np.uint8)
    at = f"{root}/annotations_instance/validation/{name}.png"
    write(tmp_path, ade_files(range(150)) | labels | {at: encoded(pixels)})
    source = open_dataset(dataset, tmp_path, "val")
    found = [
        (one.class_id, one.area, np.argwhere(decode_segmentation(one.run_lengths, (1, 1))).tolist())
        for one in source.object_masks().objects(0)
    ]
    assert found == [  # bed, person and flag: 7, 12 and 149 in ade20k_instance_catid_mapping.txt
        (12, 2.0, [[0, 0], [0, 1]]),
        (12, 2.0, [[1, 0], [1, 3]]),
        (149, 1.0, [[1, 1]]),
        (7, 1.0, [[0, 3]]),
    ]
    assert source.ids.categories == tuple(range(150))
    assert source.ids.images == ((name,) if dataset == "ade20k_150" else (7,))
    pixels[0, 0, 0] = 101
    write(tmp_path, {at: encoded(pixels)})
    with pytest.raises(ValueError, match=r"object 3: expected one thing from 1 to 100 .* 4 to 101"):
        source.object_masks().objects(0)
    write(tmp_path, {at: encoded(pixels[..., 0])})
    with pytest.raises(ValueError, match="got a grey image"):
        source.object_masks().objects(0)
    (tmp_path / at).rename((tmp_path / at).with_name("other.png"))
    with pytest.raises(ValueError, match="1 of 1 images have no objects: ADE_val_00000001"):
        open_dataset(dataset, tmp_path, "val").object_masks()


def test_other_categories_of_ade20k_panoptic_are_refused(tmp_path):
    write(tmp_path, ade_files(range(1, 151)))
    with pytest.raises(ValueError, match="ids 0 to 149 in this order"):
        open_dataset("ade20k_panoptic", tmp_path, "val")
    broken = "ADEChallengeData2016/ade20k_panoptic_val.json"
    write(tmp_path, ade_files(range(150)) | {broken: b"{"})
    with pytest.raises(ValueError, match="expected JSON"):
        open_dataset("ade20k_panoptic", tmp_path, "val")
    write(tmp_path, {broken: b'{"categories": []}'})
    with pytest.raises(ValueError, match="this order, found"):
        open_dataset("ade20k_panoptic", tmp_path, "val")


CITY = {
    "instanceIds": np.array([[26001, 26000, 26, 7], [24003, 3, 23, 7]], np.uint16),
    "labelIds": np.array([[26, 26, 26, 7], [24, 3, 23, 7]], np.uint8),
    "labelTrainIds": np.array([[13, 13, 13, 0], [11, 255, 10, 0]], np.uint8),
}


@pytest.mark.parametrize("kind", CITY)
def test_cityscapes_is_read_from_each_of_its_label_maps(tmp_path, kind):
    name = "frankfurt_000000_000294"
    files = {
        f"leftImg8bit/val/frankfurt/{name}_leftImg8bit.png": encoded(np.zeros((2, 4, 3), np.uint8)),
        f"gtFine/val/frankfurt/{name}_gtFine_{kind}.png": encoded(CITY[kind]),
        f"gtFine/val/frankfurt/{name}_gtFine_color.png": encoded(np.zeros((2, 4, 3), np.uint8)),
    }
    source = open_dataset("cityscapes", write(tmp_path, files), "val")
    assert source.example_ids == (f"frankfurt/{name}",)
    example = source[0]
    assert example.label_map.tolist() == [[13, 13, 13, 0], [11, IGNORE, 10, 0]]
    if kind == "instanceIds":
        assert example.instances.tolist() == [[3, 2, 0, 0], [1, 0, 0, 0]]
    else:
        assert example.instances is None


def test_missing_parts_of_cityscapes_are_named(tmp_path):
    with pytest.raises(MissingFiles, match="registration") as missing:
        open_dataset("cityscapes", tmp_path, "val")
    assert "leftImg8bit/val" in str(missing.value) and "instanceIds" in str(missing.value)
