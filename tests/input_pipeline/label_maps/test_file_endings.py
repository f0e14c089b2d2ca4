"""Label maps whose names are those of their images with another ending."""

import logging

import numpy as np
import pytest
from PIL import Image

from input_pipeline.folder_source import FolderSource

ROAD, CAR = (128, 64, 128), (0, 0, 142)
COLORS = np.array([[ROAD, CAR]], np.uint8).repeat(2, axis=0)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("ending", ["_mask", "-labels", "_seg", ".gt"])
def test_known_endings_are_read_and_said(tmp_path, caplog, ending):
    (tmp_path / "classes.txt").write_text("sky\ntree\n")
    for name in ("a", "b"):
        save(tmp_path / f"images/{name}.jpg", COLORS)
        save(tmp_path / f"annotations/{name}{ending}.png", np.array([[0, 1], [1, 1]], np.uint8))
    with caplog.at_level(logging.INFO):
        source = FolderSource(tmp_path)
    assert source[1].label_map.tolist() == [[0, 1], [1, 1]]
    assert f"label maps are those that end in {ending}.png" in caplog.text
    (tmp_path / f"annotations/b{ending}.png").unlink()
    with pytest.raises(ValueError, match=rf"1 of 2 images have no label map.*/b{ending}\.png"):
        FolderSource(tmp_path)


def write_cityscapes(root, *kinds):
    at = "train/aachen/aachen_000000_000019"
    save(root / f"leftImg8bit/{at}_leftImg8bit.png", COLORS)
    drawn = np.dstack([COLORS, np.full((2, 2), 255, np.uint8)])
    for kind in kinds:
        pixels = drawn if kind == "color" else np.array([[7, 26], [7, 26]], np.uint8)
        save(root / f"gtFine/{at}_gtFine_{kind}.png", pixels)
    (root / "colors.txt").write_text("128 64 128 road\n0 0 142 car\n")
    (root / "ids.txt").write_text("7\troad\n26\tcar\n")
    return root


@pytest.mark.parametrize("classes", ["colors.txt", "ids.txt"])
def test_cityscapes_is_read_by_colours_or_by_ids(tmp_path, classes):
    root = write_cityscapes(tmp_path, "color", "instanceIds", "labelIds")
    source = FolderSource(root, "leftImg8bit", "gtFine", classes)
    assert source.example_ids == ("train/aachen/aachen_000000_000019_leftImg8bit",)
    assert source[0].label_map.tolist() == [[0, 1], [0, 1]]


def test_label_maps_of_two_kinds_are_refused(tmp_path):
    root = write_cityscapes(tmp_path, "labelIds", "labelTrainIds")
    with pytest.raises(ValueError, match="end in _gtFine_labelIds or _gtFine_labelTrainIds; move"):
        FolderSource(root, "leftImg8bit", "gtFine", "ids.txt")


@pytest.mark.parametrize("label_map", ["a_mask.png", "a.png", "a-seg.PNG"])
def test_label_maps_in_the_folder_of_the_images_are_no_images(tmp_path, label_map):
    """As Roboflow exports them: train/a.jpg, train/a_mask.png, train/_classes.csv."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/_classes.csv").write_text("Pixel Value, Class\n0, sky\n1, tree\n")
    save(tmp_path / "train/a.jpg", COLORS)
    save(tmp_path / "train" / label_map, np.array([[0, 1], [1, 1]], np.uint8))
    source = FolderSource(tmp_path, "train", "train", "train/_classes.csv")
    assert source.example_ids == ("a",)
    assert source[0].label_map.tolist() == [[0, 1], [1, 1]]


def test_image_that_would_be_its_own_label_map_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\ntree\n")
    save(tmp_path / "masks/a.png", np.array([[0, 1], [1, 1]], np.uint8))
    with pytest.raises(ValueError, match=r"masks/a.png: is an image and its own label map; set co"):
        FolderSource(tmp_path, "masks", "masks")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.npy", r"no PNG files \(1 .npy\): set config.data.annotations to the folder that has"),
        ("sub/a.txt", r"no PNG files \(1 .txt\)"),
        ("task-1-annotation-2-by-3-tag-sky-0.png", "PNGs of Label Studio do not say which image"),
        ("b.png", "Add the label maps or remove the images"),
    ],
)
def test_files_that_are_no_label_maps_of_the_images_are_named_with_what_to_do(
    tmp_path, name, message
):
    (tmp_path / "classes.txt").write_text("sky\ntree\n")
    save(tmp_path / "images/a.jpg", COLORS)
    (tmp_path / "annotations" / name).parent.mkdir(parents=True)
    (tmp_path / "annotations" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"1 of 1 images have no label map.*{message}"):
        FolderSource(tmp_path)


def test_missing_class_list_names_files_that_may_be_one(tmp_path):
    save(tmp_path / "images/a.jpg", COLORS)
    save(tmp_path / "annotations/a.png", COLORS)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nsky:0,0,0::\n")
    with pytest.raises(ValueError, match=r"classes.txt: there is no such .* \(labelmap.txt\), or"):
        FolderSource(tmp_path)
