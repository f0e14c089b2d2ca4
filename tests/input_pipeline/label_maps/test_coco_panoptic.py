"""COCO's panoptic PNG and JSON as label maps."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline.examples import IGNORE
from input_pipeline.folder_source import FolderSource
from tests.input_pipeline.label_maps.coco_files import CATEGORIES, image_row, write_coco


def write_panoptic(root, colors, of_segments, file_name="a.png", **more):
    """panoptic.json beside the folder panoptic; segments of these categories in their order."""
    colors = np.array(colors, np.uint8)
    segments = [
        {"id": number, "category_id": category, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]}
        for number, category in of_segments.items()
    ]
    rows = [{"image_id": 7, "file_name": file_name, "segments_info": segments}]
    size = colors.shape[1::-1]
    images = [image_row(7, "a.jpg", *size)]
    write_coco(root, ["a.jpg"], images, rows, size=size, at="labels/panoptic.json", **more)
    (root / "labels/panoptic").mkdir(exist_ok=True)
    Image.fromarray(colors).save(root / "labels/panoptic/a.png")
    return root


def open_data(root):
    return FolderSource(root, annotations="labels/panoptic.json")


COLORS = [[(220, 20, 60), (1, 0, 0), (0, 0, 0)], [(0, 1, 0), (0, 0, 1), (1, 0, 0)]]
OF_SEGMENTS = {3937500: 18, 1: 90, 256: 1, 65536: 18}


def test_segments_become_classes_and_void_is_ignored(tmp_path):
    source = open_data(write_panoptic(tmp_path, COLORS, OF_SEGMENTS))
    assert source.class_names == ("person", "dog", "toothbrush")
    assert source[0].label_map.tolist() == [[1, 2, IGNORE], [0, 1, 2]]
    (first, second, void), (third, fourth, again) = source[0].instances.tolist()
    assert len({first, second, third, fourth, 0}) == 5 and (void, again) == (0, second)


def test_class_background_takes_void(tmp_path):
    root = write_panoptic(tmp_path, COLORS, OF_SEGMENTS)
    (root / "classes.txt").write_text("toothbrush\nperson\nbackground\ndog\n")
    assert open_data(root)[0].label_map.tolist() == [[3, 0, 2], [1, 3, 0]]


def test_the_only_json_of_a_folder_is_found_beside_its_pngs(tmp_path):
    root = write_panoptic(tmp_path, COLORS, OF_SEGMENTS)
    assert FolderSource(root, annotations="labels")[0].label_map.tolist()[1] == [0, 1, 2]


def test_an_archive_is_read(tmp_path):
    root = write_panoptic(tmp_path / "data", COLORS, OF_SEGMENTS)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in root.rglob("*"):
            archive.write(file, file.relative_to(root))
    assert open_data(tmp_path / "data.zip")[0].label_map.tolist() == [[1, 2, IGNORE], [0, 1, 2]]


def test_segments_that_the_json_lacks_are_refused_with_their_pixels(tmp_path):
    root = write_panoptic(tmp_path, COLORS, {3937500: 18, 256: 1, 65536: 18})
    message = (
        r"panoptic/a\.png: segments 1 \(2 of 6 pixels\) are not in segments_info of 'a.png' in"
    )
    with pytest.raises(ValueError, match=message):
        open_data(root)[0]


def test_pngs_without_colours_are_refused(tmp_path):
    root = write_panoptic(tmp_path, COLORS, OF_SEGMENTS)
    Image.new("L", (3, 2)).save(root / "labels/panoptic/a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected segment ids in the colours of an RGB"):
        open_data(root)[0]


def test_pngs_are_found_in_the_only_other_folder_that_has_them(tmp_path):
    root = write_panoptic(tmp_path, COLORS, OF_SEGMENTS)
    (root / "labels/panoptic").rename(root / "masks")
    assert open_data(root)[0].label_map.tolist()[1] == [0, 1, 2]
    (root / "more").mkdir()
    (root / "more/a.png").write_bytes(b"")
    message = r"expected its PNGs in the folder .*labels/panoptic, .* and a.png is in masks, more"
    with pytest.raises(ValueError, match=message):
        open_data(root)


def test_missing_pngs_are_named_with_their_place(tmp_path):
    root = write_panoptic(tmp_path, COLORS, OF_SEGMENTS)
    (root / "labels/panoptic/a.png").rename(root / "labels/panoptic/b.png")
    message = (
        r"1 of 1 PNGs are missing: .*labels/panoptic/a\.png; put them in the folder .*panoptic"
    )
    with pytest.raises(ValueError, match=message):
        open_data(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"segments_info": [{"id": 1, "category_id": 5}]},
            r"segments_info\[0\]: category_id 5 is n",
        ),
        (
            {"segments_info": [{"category_id": 1}]},
            r"segments_info\[0\]: expected a segment with id",
        ),
        (
            {"segments_info": [{"id": 7, "category_id": 1}, {"id": 7, "category_id": 1}]},
            r"annotations\[0\]: segments_info has the id 7 twice",
        ),
        ({"image_id": 8}, "annotations of image_id 8, which is none of its 1 images"),
        ({"image_id": None}, r"annotations\[0\]: expected an annotation with image_id, file_name"),
    ],
)
def test_what_contradicts_itself_is_refused_by_entry(tmp_path, change, message):
    root = write_panoptic(tmp_path, COLORS, OF_SEGMENTS)
    path = root / "labels/panoptic.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as refusal:
        open_data(root)
    assert str(refusal.value).startswith(str(path))


def test_signature_follows_png_and_segments(tmp_path):
    root = write_panoptic(tmp_path, COLORS, OF_SEGMENTS)
    before = open_data(root).signature(0)
    assert open_data(root).signature(0) == before
    changed = open_data(write_panoptic(tmp_path, COLORS, OF_SEGMENTS | {1: 18})).signature(0)
    renamed = [CATEGORIES[0] | {"name": "human"}, *CATEGORIES[1:]]
    other = open_data(write_panoptic(tmp_path, COLORS, OF_SEGMENTS, categories=renamed))
    assert len({before, changed, other.signature(0)}) == 3
