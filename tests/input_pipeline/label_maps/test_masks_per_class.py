"""Masks in one file for each class of an image."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline.examples import IGNORE
from input_pipeline.folder_source import FolderSource

CLASSES = "cat\nred car\nwall-other\n"


def mask(*columns, value=255, size=(8, 4)):
    """8x4 pixels, of which these columns are set."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[:, list(columns)] = value
    return Image.fromarray(pixels)


def write_data(root, masks, images=("a",), classes=CLASSES):
    for name in images:
        path = root / f"images/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4), (90, 120, 150)).save(path)
    for name, picture in masks.items():
        path = root / f"annotations/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    (root / "classes.txt").write_text(classes)
    return root


def first_row(root, index=0):
    return FolderSource(root)[index].label_map[0].tolist()


def test_smaller_masks_lie_on_larger_ones_and_the_rest_is_ignored(tmp_path):
    root = write_data(tmp_path, {"a_cat": mask(2, 3), "a_red_car": mask(1, 2, 3, 4)})
    assert first_row(root) == [IGNORE, 1, 0, 0, 1, IGNORE, IGNORE, IGNORE]


def test_the_rest_is_background_where_that_is_a_class(tmp_path):
    root = write_data(tmp_path, {"a_cat": mask(2)}, classes="Background\ncat\n")
    assert first_row(root) == [0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "class_id"),
    [
        ("a_red_car", 1),
        ("a_red car", 1),
        ("a_Red-Car", 1),
        ("a_red_car_12", 1),
        ("a/red_car", 1),
        ("a/wall other-3", 2),
        ("a_void", IGNORE),
    ],
)
def test_classes_are_found_however_their_words_are_joined(tmp_path, name, class_id):
    root = write_data(tmp_path, {"a_cat": mask(0, 1, 2), name: mask(1)})
    assert first_row(root)[:3] == [0, class_id, 0]


@pytest.mark.parametrize(
    "picture",
    [
        mask(1).convert("1"),
        mask(1, value=1),
        mask(1).convert("RGB"),
        mask(1, value=1).convert("P"),
        Image.fromarray(np.array(mask(1), np.uint16) * 257),
    ],
)
def test_masks_of_any_two_values_are_read(tmp_path, picture):
    assert first_row(write_data(tmp_path, {"a_cat": picture}))[:3] == [IGNORE, 0, IGNORE]


def test_names_of_images_may_hold_underscores_and_folders(tmp_path):
    images = ("a", "a_red", "b/c_1")
    names = {"a_cat": mask(0), "a_red_cat": mask(1), "b/c_1_red_car": mask(2)}
    root = write_data(tmp_path / "data", names, images)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in root.rglob("*"):
            archive.write(file, file.relative_to(root))
    for place in (root, tmp_path / "data.zip"):
        assert [first_row(place, i).index(c) for i, c in enumerate((0, 0, 1))] == [0, 1, 2]


def test_a_name_that_may_be_read_in_two_ways_is_refused(tmp_path):
    root = write_data(tmp_path, {"a_red_car": mask(0)}, ("a", "a_red"), "car\nred car\n")
    with pytest.raises(ValueError, match=r"a_red_car\.png: may be a mask of 'a' or of 'a_red'"):
        FolderSource(root)


def test_masks_of_classes_that_the_list_lacks_are_refused_by_name(tmp_path):
    names = {"a_cat": mask(0), "a_tree": mask(1), "b_tree": mask(1), "b_sky": mask(2)}
    root = write_data(tmp_path, names, ("a", "b"))
    with pytest.raises(ValueError) as refusal:
        FolderSource(root)
    assert str(refusal.value) == (
        f"{root}/annotations/a_tree.png: 'tree' is no class of classes.txt (cat, red car, "
        "wall-other), 2 masks have that name; add it to the list, or rename the files; so are 'sky'"
    )


def test_label_maps_of_other_names_are_told_from_masks(tmp_path):
    root = write_data(tmp_path, {"a_tissue": mask(0), "b_tissue": mask(1)}, ("a", "b"))
    with pytest.raises(ValueError, match=r"'tissue' is no class .* like the images, without _tiss"):
        FolderSource(root)


def test_an_ending_of_whole_label_maps_that_is_a_class_makes_masks(tmp_path):
    names = {"a_mask": mask(0), "b_mask": mask(1)}
    root = write_data(tmp_path, names, ("a", "b"), "face\nmask\n")
    assert first_row(root)[:2] == [1, IGNORE]
    (root / "classes.txt").write_text("0\tbackground\n255\tlesion\n")
    assert first_row(root)[:2] == [1, 0]  # label maps of indices


def test_images_without_a_mask_are_refused_by_name(tmp_path):
    root = write_data(tmp_path, {"a_cat": mask(0)}, ("a", "b"))
    with pytest.raises(
        ValueError, match=r"1 of 2 images have no mask .*such as b; .*b_cat.png, or"
    ):
        FolderSource(root)


def test_masks_of_no_image_are_counted_and_named(tmp_path, caplog):
    FolderSource(write_data(tmp_path, {"a_cat": mask(0), "z_cat": mask(0)}))
    assert "1 label maps have no image and are left out: annotations/z_cat.png" in caplog.text


def test_soft_masks_are_refused_with_their_values(tmp_path):
    soft = mask(0)
    soft.putpixel((3, 0), 128)
    with pytest.raises(ValueError, match=r"a_cat\.png: expected a mask of 0 .* found 0, 128, 255;"):
        FolderSource(write_data(tmp_path, {"a_cat": soft}))[0]


def test_masks_of_different_sizes_are_refused(tmp_path):
    names = {"a_cat": mask(0), "a_red_car": mask(0, size=(4, 4))}
    with pytest.raises(ValueError, match=r"a_red_car\.png: expected the size of .*8x4, got 4x4"):
        FolderSource(write_data(tmp_path, names))[0]


def test_signature_follows_every_mask(tmp_path):
    root = write_data(tmp_path, {"a_cat": mask(0), "a_red_car": mask(1)})
    before = FolderSource(root).signature(0)
    assert FolderSource(root).signature(0) == before
    mask(1, 2, value=9).save(root / "annotations/a_red_car.png")
    changed = FolderSource(root).signature(0)
    (root / "classes.txt").write_text("cat\nred car\n")
    assert len({before, changed, FolderSource(root).signature(0)}) == 3
