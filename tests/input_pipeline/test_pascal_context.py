import io
import logging
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from input_pipeline.class_lists import load_class_list
from input_pipeline.examples import IGNORE
from input_pipeline.layouts import open_dataset
from input_pipeline.layouts.pascal_context import read_label_matrix

# The numbers of the 59 classes in labels.txt, as mmsegmentation's converter has them.
VALUES_OF_59 = [
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113),
    *(115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324),
    *(326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
]
TRAIN, VAL = "2008_000008", "2008_000002"


def write_image(path, shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (shape[1], shape[0]), (10, 60, 200)).save(path)


def write_label(path, labels, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, dtype)).save(path)


def write_official(root, labels):
    """Images and lists as in VOC's archive, label maps as in trainval.tar.gz."""
    voc = root / "VOCdevkit" / "VOC2010"
    for name, values in labels.items():
        values = np.asarray(values, np.uint16)
        write_image(voc / "JPEGImages" / f"{name}.jpg", values.shape)
        path = root / "trainval" / f"{name}.mat"
        path.parent.mkdir(exist_ok=True)
        scipy.io.savemat(path, {"LabelMap": values}, do_compression=True)
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"{TRAIN}\n")
    (lists / "val.txt").write_text(f"{VAL}\n")


def write_converted(root, labels):
    voc = root / "VOCdevkit" / "VOC2010"
    for name, values in labels.items():
        write_image(voc / "JPEGImages" / f"{name}.jpg", np.shape(values))
        write_label(voc / "SegmentationClassContext" / f"{name}.png", values)
    lists = voc / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"{TRAIN}\n")
    (lists / "val.txt").write_text(f"{VAL}\n")


def write_prepared(root, name, labels_59=None, labels_459=None):
    folder = root / "pascal_ctx_d2"
    if labels_59 is not None:
        write_label(folder / "annotations_ctx59" / "validation" / f"{name}.png", labels_59)
    if labels_459 is not None:
        path = folder / "annotations_ctx459" / "validation" / f"{name}.tif"
        write_label(path, labels_459, np.uint16)
    shape = np.shape(labels_59 if labels_59 is not None else labels_459)
    write_image(folder / "images" / "validation" / f"{name}.jpg", shape)


@pytest.fixture
def official(tmp_path):
    write_official(tmp_path, {TRAIN: [[2, 0], [459, 1]], VAL: [[458, 397, 0], [9, 5, 431]]})
    return tmp_path


def test_the_59_classes_are_found_among_the_459(tmp_path):
    write_official(tmp_path, {TRAIN: [VALUES_OF_59] * 2, VAL: [[0]]})
    source = open_dataset("pascal_context_59", tmp_path, "train")
    np.testing.assert_array_equal(source[0].label_map[0], np.arange(59))


def test_official_label_maps_have_all_459_classes(official):
    source = open_dataset("pascal_context_459", official, "train")
    assert source.example_ids == (TRAIN,)
    np.testing.assert_array_equal(source[0].label_map, [[1, IGNORE], [458, 0]])
    assert source.class_names == load_class_list("pascal_context_459", ignore_labels=()).names


def test_official_label_maps_are_ignored_outside_the_59(official):
    source = open_dataset("pascal_context_59", official, "val")
    names = source.class_names
    wood, table, bag = (names.index(name) for name in ("wood", "diningtable", "bag"))
    expected = [[wood, table, IGNORE], [bag, IGNORE, IGNORE]]
    np.testing.assert_array_equal(source[0].label_map, expected)


def test_official_archives_are_read_as_they_are(official, tmp_path_factory):
    expected = open_dataset("pascal_context_459", official, "val")
    root = tmp_path_factory.mktemp("archives")
    for archive, folder, mode in (
        ("VOCtrainval_03-May-2010.tar", "VOCdevkit", "w"),
        ("trainval.tar.gz", "trainval", "w:gz"),
    ):
        with tarfile.open(root / archive, mode) as target:
            target.add(official / folder, folder)
    source = pickle.loads(pickle.dumps(open_dataset("pascal_context_459", root, "val")))
    assert source.example_ids == expected.example_ids
    np.testing.assert_array_equal(source[0].label_map, expected[0].label_map)
    assert source.image_bytes(0) == expected.image_bytes(0)


@pytest.mark.parametrize("folder", ["VOC2010", "."])
def test_label_matrices_may_lie_beside_the_images(official, folder):
    (official / folder).parent.mkdir(exist_ok=True)
    for path in (official / "VOCdevkit" / "VOC2010").iterdir():
        (official / folder).mkdir(exist_ok=True)
        shutil.move(path, official / folder / path.name)
    if folder != ".":
        shutil.move(official / "trainval", official / folder / "trainval")
    assert len(open_dataset("pascal_context_459", official, "val")) == 1


def test_label_maps_of_the_converter_start_at_one(tmp_path):
    write_converted(tmp_path, {TRAIN: [[0, 1], [59, 255]], VAL: [[2, 2], [2, 2]]})
    source = open_dataset("pascal_context_59", tmp_path, "train")
    np.testing.assert_array_equal(source[0].label_map, [[IGNORE, 0], [58, IGNORE]])


def test_converted_label_map_with_unknown_value_is_an_error(tmp_path):
    write_converted(tmp_path, {TRAIN: [[60, 1], [59, 255]], VAL: [[2, 2], [2, 2]]})
    source = open_dataset("pascal_context_59", tmp_path, "train")
    with pytest.raises(ValueError, match=rf"{TRAIN}\.png: label values 60 are neither"):
        source[0]


def test_converter_and_official_files_agree(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    write_official(one, {TRAIN: [[0, 454], [2, 9]], VAL: [[0]]})
    write_converted(other, {TRAIN: [[0, 58], [1, 2]], VAL: [[0]]})
    maps = [open_dataset("pascal_context_59", at, "train")[0].label_map for at in (one, other)]
    np.testing.assert_array_equal(*maps)


def test_lists_of_the_converter_come_before_those_of_voc(official, caplog):
    lists = official / "VOCdevkit" / "VOC2010" / "ImageSets" / "SegmentationContext"
    lists.mkdir()
    (lists / "val.txt").write_text(f"{TRAIN}\n{VAL}\n")
    with caplog.at_level(logging.INFO):
        assert len(open_dataset("pascal_context_459", official, "val")) == 2
        assert len(open_dataset("pascal_context_459", official, "train")) == 1
    assert "pascal_context_459 val: 2 images, those of" in caplog.text
    assert "ImageSets/SegmentationContext/val.txt" in caplog.text
    assert "ImageSets/Main/train.txt" in caplog.text


def test_prepared_label_maps_hold_class_ids(tmp_path):
    write_prepared(tmp_path, VAL, [[0, 58], [255, 7]], [[0, 458], [65535, 300]])
    small = open_dataset("pascal_context_59", tmp_path, "val")
    large = open_dataset("pascal_context_459", tmp_path / "pascal_ctx_d2", "val")
    np.testing.assert_array_equal(small[0].label_map, [[0, 58], [IGNORE, 7]])
    np.testing.assert_array_equal(large[0].label_map, [[0, 458], [IGNORE, 300]])


def test_prepared_image_may_lack_labels_of_the_other_vocabulary(tmp_path):
    write_prepared(tmp_path, VAL, labels_459=[[0, 458], [1, 1]])
    write_prepared(tmp_path, TRAIN, [[0, 58], [1, 1]], [[0, 458], [1, 1]])
    assert open_dataset("pascal_context_59", tmp_path, "val").example_ids == (TRAIN,)
    assert open_dataset("pascal_context_459", tmp_path, "val").example_ids == (VAL, TRAIN)


@pytest.mark.parametrize("classes", [59, 459])
def test_empty_root_says_what_to_put_where(tmp_path, classes):
    with pytest.raises(ValueError) as error:
        open_dataset(f"pascal_context_{classes}", tmp_path, "val")
    for part in (
        "VOCtrainval_03-May-2010.tar",
        "pascal-context/trainval.tar.gz",
        "VOCdevkit/VOC2010/JPEGImages/*.jpg",
        "trainval/*.mat",
        f"pascal_ctx_d2/annotations_ctx{classes}/validation",
    ):
        assert part in str(error.value)
    assert ("SegmentationClassContext" in str(error.value)) == (classes == 59)


def test_missing_label_maps_alone_are_asked_for(official):
    shutil.rmtree(official / "trainval")
    with pytest.raises(ValueError, match=r"pascal-context/trainval\.tar\.gz") as error:
        open_dataset("pascal_context_459", official, "val")
    assert "VOCtrainval" not in str(error.value)


def test_missing_list_is_an_error(official):
    (official / "VOCdevkit/VOC2010/ImageSets/Main/val.txt").unlink()
    with pytest.raises(ValueError, match=r"ImageSets/Main/val\.txt"):
        open_dataset("pascal_context_59", official, "val")


def test_missing_matrix_is_an_error(official):
    (official / "trainval" / f"{VAL}.mat").unlink()
    with pytest.raises(ValueError, match=rf"no label map.*trainval/{VAL}\.mat"):
        open_dataset("pascal_context_59", official, "val")


def _matrix_file(**variables):
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"Labels": np.eye(3)}, "none"),
        ({"LabelMap": np.eye(3)}, "float64 of shape"),
        ({"LabelMap": np.zeros((2, 2, 3), np.uint16)}, r"uint16 of shape \(2, 2, 3\)"),
        ({"LabelMap": "text"}, "<U4 of shape"),
    ],
)
def test_matrix_of_something_else_is_refused(variables, found):
    with pytest.raises(ValueError, match=rf"^x\.mat: expected a matrix .*found {found}"):
        read_label_matrix(_matrix_file(**variables), "x.mat")


def test_corrupt_matrix_names_its_file():
    good = _matrix_file(LabelMap=np.arange(600, dtype=np.uint16).reshape(20, 30))
    rng = np.random.default_rng(0)
    corrupt = [b"", b"nonsense", good[:-20], good[:130], *_with_flipped_bytes(good, rng, 60)]
    refused = 0
    for data in corrupt:
        try:
            read_label_matrix(data, "x.mat")
        except ValueError as error:
            assert str(error).startswith("x.mat: ")
            refused += 1
    assert refused >= 40


def _with_flipped_bytes(data, rng, count):
    for at in rng.integers(128, len(data), count):  # the first 128 bytes are free text
        yield data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
