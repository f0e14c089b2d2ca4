import io
import logging
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline.class_lists import load_class_list
from input_pipeline.examples import IGNORE
from input_pipeline.file_trees import open_tree
from input_pipeline.layouts import open_dataset
from input_pipeline.layouts.ade20k_full import read_object_ids

RELEASE = "ADE20K_2021_17_01"
STREET, KITCHEN = "training/urban/street", "validation/home_or_hotel/kitchen"
# (folder, file name, object ids): 2978 is wall, 401 car, 3148 the last class, 1 none of the 847.
IMAGES = [
    (KITCHEN, "ADE_val_00000001", [[2978, 0, 1], [401, 3148, 0]]),
    (STREET, "ADE_train_00000002", [[401, 401], [0, 2978]]),
    (STREET, "ADE_frame_00000001", [[2978, 2978], [2978, 2978]]),
]
WALL, CAR = 0, 14


def _objects():
    """The 3,688 names of the release, of which those of our class list are real."""
    names = [f"object {number}" for number in range(1, 3689)]
    classes = load_class_list("ade20k_847")
    for name, value in zip(classes.names, classes.label_values, strict=True):
        names[value - 1] = name
    return names


def _index(images=IMAGES, objects=None):
    return {
        "filename": [f"{name}.jpg" for _, name, _ in images],
        "folder": [f"{RELEASE}/images/ADE/{folder}" for folder, _, _ in images],
        "objectnames": _objects() if objects is None else objects,
        "objectPresence": np.ones((4, len(images)), np.float32),
        "description": {"filename": "array of length N with the image file names"},
    }


def write_release(root, index=None):
    """Writes a release of three images as the official archive has it."""
    for folder, name, ids in IMAGES:
        ids = np.array(ids)
        place = root / RELEASE / "images" / "ADE" / folder
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", ids.shape[::-1], (90, 10, 200)).save(place / f"{name}.jpg")
        instance = np.full(ids.shape, 77)
        colors = np.stack([ids // 256 * 10, ids % 256, instance], -1).astype(np.uint8)
        Image.fromarray(colors).save(place / f"{name}_seg.png")
        (place / name).mkdir()
        Image.new("L", ids.shape[::-1]).save(place / name / f"instance_000_{name}.png")
    data = pickle.dumps(_index() if index is None else index, protocol=4)
    (root / RELEASE / "index_ade20k.pkl").write_bytes(data)


def write_prepared(root, split, name, labels):
    labels = np.array(labels, np.uint16)
    for kind, suffix in (("images", "jpg"), ("annotations", "tif")):
        place = root / RELEASE / f"{kind}_detectron2" / split
        place.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", labels.shape[::-1]) if kind == "images" else None
        (image or Image.fromarray(labels)).save(place / f"{name}.{suffix}")


@pytest.fixture
def root(tmp_path):
    write_release(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("building, edifice", 312),
        ("car, auto, automobile, machine, motorcar", 401),
        ("person, individual, someone, somebody, mortal, soul", 1831),
        ("sidewalk, pavement", 2377),
        ("signboard, sign", 2380),
        ("traffic light, traffic signal, stoplight", 2836),
        ("tree", 2855),
    ],
)
def test_object_ids_are_those_of_the_official_sample(name, value):
    """From ADE_train_00016869.json of the data set's repository."""
    classes = load_class_list("ade20k_847")
    assert dict(zip(classes.names, classes.label_values, strict=True))[name] == value


def test_class_ids_follow_the_training_frequency():
    names = load_class_list("ade20k_847").names
    assert len(names) == 847
    assert (names[WALL], names[CAR][:4]) == ("wall", "car,")
    assert names[846] == "adding machine, totalizer, totaliser"


def test_object_ids_of_colours():
    colors = np.array([[[0, 0, 9], [10, 0, 0], [115, 255, 3], [116, 162, 0]]], np.uint8)
    file = io.BytesIO()
    Image.fromarray(colors).save(file, "PNG")
    np.testing.assert_array_equal(read_object_ids(file.getvalue(), "x"), [[0, 256, 3071, 2978]])


def test_grey_label_map_is_refused():
    file = io.BytesIO()
    Image.new("L", (4, 3)).save(file, "PNG")
    with pytest.raises(ValueError, match=r"^x: expected a colour image.*got mode L"):
        read_object_ids(file.getvalue(), "x")


def test_release_is_read_by_its_index(root):
    train, val = (open_dataset("ade20k_full", root, split) for split in ("train", "val"))
    assert train.example_ids == ("ADE_frame_00000001", "ADE_train_00000002")
    assert val.example_ids == ("ADE_val_00000001",)
    assert len(val.class_names) == 847
    np.testing.assert_array_equal(train[1].label_map, [[CAR, CAR], [IGNORE, WALL]])
    np.testing.assert_array_equal(val[0].label_map, [[WALL, IGNORE, IGNORE], [CAR, 846, IGNORE]])


@pytest.mark.parametrize("inside", ["", RELEASE, "ade"])
def test_release_is_found_from_the_folders_people_point_to(root, inside):
    if inside == "ade":
        (root / "ade").mkdir()
        shutil.move(root / RELEASE, root / "ade" / RELEASE)
        inside = ""
    assert len(open_dataset("ade20k_full", root / inside, "train")) == 2


def test_release_is_read_inside_its_archive(root, tmp_path):
    archive = tmp_path / f"{RELEASE}.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted((root / RELEASE).rglob("*")):
            target.write(path, path.relative_to(root))
    expected = open_dataset("ade20k_full", root, "train")[1]
    shutil.rmtree(root / RELEASE)
    for place in (archive, tmp_path):
        source = open_dataset("ade20k_full", place, "train")
        np.testing.assert_array_equal(source[1].label_map, expected.label_map)
        copy = pickle.loads(pickle.dumps(source))
        assert copy.image_bytes(0)[:2] == b"\xff\xd8"


def test_prepared_label_maps_hold_class_ids(tmp_path):
    write_prepared(tmp_path, "validation", "ADE_val_00000002", [[0, 846], [65535, 300]])
    source = open_dataset("ade20k_full", tmp_path, "val")
    assert source.example_ids == ("ADE_val_00000002",)
    np.testing.assert_array_equal(source[0].label_map, [[0, 846], [IGNORE, 300]])


def test_prepared_images_come_before_the_release_they_are_made_of(root, caplog):
    write_prepared(root, "validation", "ADE_val_00000001", [[5, 6], [7, 8]])
    with caplog.at_level(logging.INFO):
        source = open_dataset("ade20k_full", root, "val")
    np.testing.assert_array_equal(source[0].label_map, [[5, 6], [7, 8]])
    assert "images_detectron2/validation" in caplog.text
    assert open_dataset("ade20k_full", root, "train")[0].example_id == "ADE_frame_00000001"


def test_prepared_image_without_label_map_is_an_error(tmp_path):
    write_prepared(tmp_path, "training", "ADE_train_00000001", [[0, 1], [2, 3]])
    write_prepared(tmp_path, "training", "ADE_train_00000002", [[0, 1], [2, 3]])
    path = f"{RELEASE}/annotations_detectron2/training/ADE_train_00000002.tif"
    (tmp_path / path).unlink()
    with pytest.raises(ValueError, match=rf"1 of the 2 .* no label map.*{path}"):
        open_dataset("ade20k_full", tmp_path, "train")


def test_object_beyond_the_index_is_an_error(root):
    path = root / RELEASE / "images" / "ADE" / STREET / "ADE_train_00000002_seg.png"
    Image.new("RGB", (2, 2), (140, 105, 0)).save(path)  # 14 * 256 + 105 = 3689
    source = open_dataset("ade20k_full", root, "train")
    with pytest.raises(ValueError, match=r"ADE_train_00000002_seg\.png: label values 3689 "):
        source[1]


def test_index_of_another_release_is_refused(root):
    shifted = ["-", *_objects()[:-1]]
    write_index(root, _index(objects=shifted))
    message = (
        r"index_ade20k\.pkl: this is not the index of the release ADE20K_2021_17_01: "
        r"847 of 847 objects .*2978 is .*, not 'wall'"
    )
    with pytest.raises(ValueError, match=message):
        open_dataset("ade20k_full", root, "train")


def test_short_index_is_refused(root):
    write_index(root, _index(objects=_objects()[:2000]))
    with pytest.raises(ValueError, match="2978 is 'nothing', not 'wall'"):
        open_dataset("ade20k_full", root, "train")


def test_differently_spelled_objects_are_reported(root, caplog):
    objects = _objects()
    objects[2977] = "walls"
    objects[311] = "Building,  edifice"
    write_index(root, _index(objects=objects))
    assert len(open_dataset("ade20k_full", root, "train")) == 2
    assert "2978 is 'walls', not 'wall'" in caplog.text
    assert "312 is" not in caplog.text


def test_names_may_be_arrays_of_objects(root):
    index = _index()
    arrays = {key: np.array(index[key], object) for key in ("filename", "folder", "objectnames")}
    write_index(root, index | arrays)
    assert len(open_dataset("ade20k_full", root, "train")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": np.zeros(3)}, "'filename' is a list of strings"),
        ({"folder": [1, 2, 3]}, "'folder' is a list of strings"),
        ({"folder": ["a"]}, "1 folders for 3 names"),
        ({"folder": [f"{RELEASE}/images/../../x"] * 3}, "expected images"),
        ({"folder": ["/etc"] * 3}, "expected images"),
        ({"filename": ["a/../b.jpg"] * 3}, "expected images"),
        ({"filename": ["a.png"] * 3}, "expected images"),
        ({"filename": ["ADE_val_1.jpg"] * 3}, "no image of this split"),
    ],
)
def test_senseless_index_is_refused(root, change, message):
    write_index(root, _index() | change)
    with pytest.raises(ValueError, match=rf"index_ade20k\.pkl: .*{message}"):
        open_dataset("ade20k_full", root, "train")


def test_index_that_would_run_something_is_refused(root, tmp_path):
    class Program:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    write_index(root, _index() | {"scene": Program()})
    with pytest.raises(ValueError, match=r"asks to run \w*io\.open"):
        open_dataset("ade20k_full", root, "train")
    assert not (tmp_path / "made").exists()


def test_missing_files_of_the_release_are_counted_for_the_split_alone(root):
    place = root / RELEASE / "images" / "ADE" / STREET
    (place / "ADE_train_00000002_seg.png").unlink()
    with pytest.raises(ValueError, match=r"1 of the 4 files .*ADE_train_00000002_seg\.png\. "):
        open_dataset("ade20k_full", root, "train")
    assert len(open_dataset("ade20k_full", root, "val")) == 1


def test_empty_root_says_what_to_get_and_where_to_put_it(tmp_path):
    message = r"(?s)registration.*ADE20K_2021_17_01\.zip"
    with pytest.raises(ValueError, match=message) as error:
        open_dataset("ade20k_full", tmp_path, "train")
    assert f"{RELEASE}/index_ade20k.pkl" in str(error.value)
    assert f"{RELEASE}/images_detectron2/training/*.jpg" in str(error.value)


def test_count_that_is_not_official_is_logged(root, caplog):
    open_dataset("ade20k_full", root, "val")
    assert "1 examples found, the whole data set has 2000" in caplog.text


def test_checking_the_files_does_not_list_folders(root, monkeypatch):
    """Listing a scene's folder would walk the masks of single objects, a million in all."""
    tree = open_tree(root)
    listed = []
    names = type(tree).names
    monkeypatch.setattr(
        type(tree), "names", lambda self, folder="": listed.append(folder) or names(self, folder)
    )
    open_dataset("ade20k_full", root, "train")
    assert not any("images/ADE" in folder or not folder for folder in listed)


def write_index(root, index):
    (root / RELEASE / "index_ade20k.pkl").write_bytes(pickle.dumps(index, protocol=4))
