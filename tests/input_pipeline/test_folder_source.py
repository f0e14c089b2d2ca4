import pickle
import shutil
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline.examples import IGNORE, ExampleSource
from input_pipeline.folder_source import FolderSource
from input_pipeline.sample_folder import SAMPLE_CLASSES, write_sample_folder


def _add(root, name, labels, size=None, exif=None):
    labels = np.asarray(labels)
    image = root / "images" / name
    label = (root / "annotations" / name).with_suffix(".png")
    image.parent.mkdir(parents=True, exist_ok=True)
    label.parent.mkdir(parents=True, exist_ok=True)
    options = {} if exif is None else {"exif": exif}
    Image.new("RGB", size or labels.shape[::-1]).save(image, **options)
    Image.fromarray(labels).save(label)
    return image, label


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    _add(tmp_path, "b/two.JPG", np.array([[0, 1], [255, 1]], np.uint8))
    _add(tmp_path, "a.png", np.zeros((3, 4), np.uint8))
    return tmp_path


def test_reads_nested_images_in_order_of_their_paths(folder):
    source = FolderSource(folder)
    assert isinstance(source, ExampleSource)
    assert source.example_ids == ("a", "b/two")
    assert source.class_names == ("cat", "dog")
    example = source[1]
    assert example.image.shape == (2, 2, 3)
    assert example.label_map.dtype == np.int32
    np.testing.assert_array_equal(example.label_map, [[0, 1], [IGNORE, 1]])


def test_label_values_become_contiguous(folder):
    (folder / "classes.txt").write_text("1\tdog\n0\tcat\n")
    np.testing.assert_array_equal(FolderSource(folder)[1].label_map, [[1, 0], [IGNORE, 0]])


def test_several_values_can_be_ignored(folder):
    (folder / "classes.txt").write_text("1\tdog\n")
    source = FolderSource(folder, ignore_labels=(0, 255))
    np.testing.assert_array_equal(source[1].label_map, [[IGNORE, 0], [IGNORE, 0]])


def test_sixteen_bit_ignore_label(folder):
    _add(folder, "c.png", np.array([[1, 65535], [0, 0]], np.uint16))
    source = FolderSource(folder, ignore_labels=(65535,))
    np.testing.assert_array_equal(source[2].label_map, [[1, IGNORE], [0, 0]])


def test_label_map_matches_the_upright_image(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    _add(folder, "turned.jpg", np.zeros((5, 3), np.uint8), size=(5, 3), exif=exif)
    assert FolderSource(folder)[2].image.shape == (5, 3, 3)


def test_label_map_of_another_size_is_an_error(folder):
    _add(folder, "c.png", np.zeros((3, 4), np.uint8), size=(5, 3))
    with pytest.raises(ValueError, match=r"annotations/c\.png.*images/c\.png, 5x3 .*got 4x3"):
        FolderSource(folder)[2]


def test_label_beyond_the_class_list_is_an_error(folder):
    _add(folder, "c.png", np.array([[0, 7], [2, 9]], np.uint16) * 1000)
    message = r"c\.png: label values 2000, 7000, 9000 are neither .*\(2 classes, values 0 to 1\)"
    with pytest.raises(ValueError, match=message):
        FolderSource(folder)[2]


def test_one_pixel_image_is_an_error(folder):
    _add(folder, "c.png", np.zeros((1, 1), np.uint8))
    with pytest.raises(ValueError, match=r"c\.png: expected at least 2x2 pixels, got 1x1"):
        FolderSource(folder)[2]


def test_missing_label_maps_are_counted_and_listed(folder):
    for number in range(12):
        Image.new("RGB", (2, 2)).save(folder / "images" / f"z{number:02d}.png")
    with pytest.raises(ValueError, match=r"12 of 14 images have no label map.*z09\.png, \.\.\."):
        FolderSource(folder)


def test_images_that_share_a_label_map_are_refused(folder):
    Image.new("RGB", (4, 3)).save(folder / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png would share"):
        FolderSource(folder)


def test_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    with pytest.raises(ValueError, match="found none"):
        FolderSource(tmp_path)


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="images: expected a folder"):
        FolderSource(tmp_path)


def test_missing_class_list_error_lists_built_in_names(folder):
    with pytest.raises(ValueError, match="voc_20"):
        FolderSource(folder, classes="names.txt")


def test_built_in_class_list(folder):
    assert len(FolderSource(folder, classes="ade20k_150", ignore_labels=(0,)).class_names) == 150


def test_signature_follows_files_and_class_list(folder):
    before = FolderSource(folder).signature(0)
    assert FolderSource(folder).signature(0) == before
    (folder / "classes.txt").write_text("cat\ncow\n")
    relabelled = FolderSource(folder).signature(0)
    _add(folder, "a.png", np.ones((4, 4), np.uint8))
    assert len({before, relabelled, FolderSource(folder).signature(0)}) == 3


def test_source_can_be_sent_to_another_process(folder):
    copy = pickle.loads(pickle.dumps(FolderSource(folder)))
    assert copy[0].example_id == "a"


def test_sample_folder_is_valid_and_the_same_every_time(tmp_path):
    for name in ("one", "two"):
        write_sample_folder(tmp_path / name, num_images=3, size=(60, 40))
    one, two = FolderSource(tmp_path / "one"), FolderSource(tmp_path / "two")
    assert one.class_names == SAMPLE_CLASSES
    for i in range(3):
        assert one[i].image.shape == (40, 60, 3)
        np.testing.assert_array_equal(one[i].image, two[i].image)
        np.testing.assert_array_equal(one[i].label_map, two[i].label_map)
    with pytest.raises(ValueError, match="it exists"):
        write_sample_folder(tmp_path / "one")


def _zipped(root, folders):
    """Moves folders of the root into an archive there."""
    with zipfile.ZipFile(root / "data.zip", "w") as archive:
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root)
            if path.is_file() and inside.parts[0] in folders:
                archive.write(path, inside)
                path.unlink()
    for name in folders:
        if (root / name).is_dir():
            shutil.rmtree(root / name)


@pytest.mark.parametrize("folders", [["images"], ["annotations"], ["images", "annotations"]])
def test_folders_may_be_inside_an_archive(folder, folders):
    plain = FolderSource(folder)
    examples = [plain[i] for i in range(2)]
    _zipped(folder, folders)
    source = FolderSource(folder)
    assert source.example_ids == plain.example_ids
    for i, example in enumerate(examples):
        np.testing.assert_array_equal(source[i].image, example.image)
        np.testing.assert_array_equal(source[i].label_map, example.label_map)


def test_root_may_be_an_archive_with_its_class_list(folder):
    _zipped(folder, ["images", "annotations", "classes.txt"])
    assert FolderSource(folder / "data.zip").class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"data\.zip:names\.txt: there is no such class list"):
        FolderSource(folder / "data.zip", classes="names.txt")


def test_folders_may_be_written_with_slashes_and_dots(folder):
    ids = FolderSource(folder).example_ids
    for images, annotations in (
        ("./images/", "annotations//"),
        (str(folder / "images"), str(folder / "annotations")),
        ("images/../images", "./annotations/."),
    ):
        source = FolderSource(folder, images, annotations)
        assert source.example_ids == ids and source[1].image.shape == (2, 2, 3)


def test_root_itself_may_hold_the_images(folder):
    source = FolderSource(folder / "images", ".", "../annotations", folder / "classes.txt")
    assert source.example_ids == ("a", "b/two") and source[1].image.shape == (2, 2, 3)


def test_image_bytes_are_those_of_the_file(folder):
    source = FolderSource(folder)
    assert source.image_bytes(1) == (folder / "images" / "b" / "two.JPG").read_bytes()


def test_copies_that_macos_leaves_behind_are_not_images(folder):
    (folder / "images" / "._a.png").write_bytes(b"\0")
    assert FolderSource(folder).example_ids == ("a", "b/two")


def test_non_ascii_names_are_kept(folder):
    _add(folder, "grün/日本 1.png", np.zeros((2, 2), np.uint8))
    assert FolderSource(folder).example_ids[2] == "grün/日本 1"
    assert FolderSource(folder)[2].label_map.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_class_of_value_255_is_a_class_in_8_and_16_bits(tmp_path, dtype):
    _add(tmp_path, "a.png", np.array([[0, 255], [255, 0]], dtype))
    (tmp_path / "classes.txt").write_text("0\tbackground\n255\tlesion\n")
    source = FolderSource(tmp_path)
    assert source.class_names == ("background", "lesion")
    assert source[0].label_map.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match=r"classes\.txt:2: label value 255 is class 'lesion' here"):
        FolderSource(tmp_path, ignore_labels=(255, 3))


def test_sixteen_bits_hold_both_a_class_of_value_255_and_ignored_pixels(tmp_path):
    _add(tmp_path, "a.png", np.array([[0, 255], [65535, 0]], np.uint16))
    (tmp_path / "classes.txt").write_text("0\tbackground\n255\tlesion\n")
    source = FolderSource(tmp_path, ignore_labels=(65535,))
    assert source[0].label_map.tolist() == [[0, 1], [IGNORE, 0]]


def test_signature_is_that_of_earlier_versions(folder):
    """Records would be computed anew, were it another: the literal is what version 0.1 wrote."""
    meaning = FolderSource(folder).signature(0).split("|")
    assert meaning[2:] == ["67fb476ac7fb3cd3cab6ed02c9e5e7816b708bb34563b54b0e31bc5c59bf0575"]
    assert [stamp.split(":")[0] for stamp in meaning[:2]] == ["images/a.png", "annotations/a.png"]


def test_endings_of_label_maps_may_be_in_capitals(folder):
    (folder / "annotations/a.png").rename(folder / "annotations/a.PNG")
    assert FolderSource(folder)[0].label_map.shape == (3, 4)


def test_files_that_are_not_read_are_counted_and_named(folder, caplog):
    Image.new("RGB", (4, 3)).save(folder / "images/scan.pcx")
    (folder / "images/notes.txt").write_text("")
    _add(folder, "c.png", np.zeros((3, 4), np.uint8))[0].unlink()
    assert FolderSource(folder).example_ids == ("a", "b/two")
    kinds, labels = caplog.messages
    assert "left out 2 files of kinds that are not read as images (1 .txt, 1 .pcx)" in kinds
    assert "notes.txt" in kinds and "scan.pcx" in kinds
    assert "1 label maps have no image and are left out: annotations/c.png" in labels


def test_a_folder_that_fits_says_nothing(folder, caplog):
    FolderSource(folder)
    assert not caplog.messages


@pytest.mark.parametrize(("of_image", "of_label"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_are_the_same_however_they_are_written(folder, of_image, of_label):
    image, label = _add(folder, "c.png", np.ones((3, 4), np.uint8))
    name = "caf\u00e9.png"
    image.rename(image.with_name(unicodedata.normalize(of_image, name)))
    label.rename(label.with_name(unicodedata.normalize(of_label, name)))
    source = FolderSource(folder)
    assert source.example_ids[-1] == unicodedata.normalize(of_image, "caf\u00e9")
    np.testing.assert_array_equal(source[2].label_map, np.ones((3, 4)))


def test_a_zip_with_one_folder_at_its_top_is_looked_into(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("zips") / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/photos/._x", "")
        for file in folder.rglob("*"):
            archive.write(file, f"photos/{file.relative_to(folder)}")
    packed, plain = FolderSource(path), FolderSource(folder)
    assert packed.example_ids == plain.example_ids and packed.class_names == plain.class_names
    np.testing.assert_array_equal(packed[1].label_map, plain[1].label_map)
    with pytest.raises(ValueError, match="expected a folder, there is none"):
        FolderSource(path, images="pictures")


def test_default_of_ignored_values_yields_to_a_class_and_a_given_one_contradicts_it(folder):
    (folder / "classes.txt").write_text("0\tcat\n1\tdog\n255\tlesion\n")
    assert FolderSource(folder)[1].label_map.tolist() == [[0, 1], [2, 1]]
    with pytest.raises(ValueError, match=r":3: label value 255 is class 'lesion' here, but ignore"):
        FolderSource(folder, ignore_labels=(255,))


def test_lists_of_several_names_leave_their_unused_values_unlabelled(folder):
    (folder / "classes.txt").write_text("0:invalid_class_id\n1:dog,puppy\n2:cat\n")
    source = FolderSource(folder)
    assert source.class_names == ("dog", "cat") and source.synonyms == {"dog": ("puppy",)}
    assert source[1].label_map.tolist() == [[IGNORE, 0], [IGNORE, 0]]
    (folder / "classes.txt").write_text("cat\ndog\n")
    assert FolderSource(folder).synonyms == {}
