import io
import logging
import multiprocessing
import pickle
import tarfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.dataset_specs import SPECS
from input_pipeline.examples import IGNORE, ExampleSource
from input_pipeline.label_maps.index_maps import IndexMaps
from input_pipeline.layouts import open_dataset
from input_pipeline.layouts.base import MissingFiles

RGB = np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)


def jpeg(size=(4, 3), mode="RGB", **options):
    return _encoded(Image.fromarray(RGB).resize(size).convert(mode), "JPEG", **options)


def png(*values, width=4, dtype=np.uint8):
    """A 3x4 label map that repeats the values from its top left pixel on."""
    return _encoded(Image.fromarray(np.resize(np.array(values, dtype), (3, width))), "PNG")


def _encoded(image, file_format, **options):
    content = io.BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()


def write(root, files, kind="folder", name="archive"):
    root.mkdir(exist_ok=True)
    if kind == "folder":
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    else:
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return root


def _first_row(source, index=0):
    return source[index].label_map.ravel()[:4].tolist()


COCO_IMAGES = {
    "train2017/000000000009.jpg": jpeg(),
    "train2017/000000000025.jpg": jpeg(),
    "val2017/000000000139.jpg": jpeg(),
}
RAW = {
    "train2017/000000000025.png": png(12, 181, 255, 0),
    "train2017/000000000009.png": png(0),
    "val2017/000000000139.png": png(91),
}
RAW_CLASSES = [11, 170, IGNORE, 0]
"""Contiguous ids of the values 12 (stop sign), 181 (wood), 255 and 0 (person)."""


def _below(folder, files, suffix=".png"):
    return {f"{folder}{name}".replace(".png", suffix): data for name, data in files.items()}


COCO_LAYOUTS = {
    "two official zips": lambda root: (
        write(root, COCO_IMAGES, "zip", "images"),
        write(root, RAW, "zip", "stuffthingmaps_trainval2017"),
    ),
    "both extracted in one place": lambda root: write(root, COCO_IMAGES | RAW),
    "stuffthingmaps": lambda root: write(root, COCO_IMAGES | _below("stuffthingmaps/", RAW)),
    "images and annotations": lambda root: write(
        root, _below("images/", COCO_IMAGES) | _below("annotations/stuffthingmaps/", RAW)
    ),
    "folder of the archive's name": lambda root: write(
        root, COCO_IMAGES | _below("stuffthingmaps_trainval2017/", RAW)
    ),
    "mmsegmentation before conversion": lambda root: write(
        root, _below("images/", COCO_IMAGES) | _below("annotations/", RAW)
    ),
    "mmsegmentation after conversion": lambda root: write(
        root,
        _below("images/", COCO_IMAGES)
        | _below("annotations/", RAW)
        | _below("annotations/", {name: png(7) for name in RAW}, "_labelTrainIds.png"),
    ),
    "below coco": lambda root: write(root, _below("coco/", COCO_IMAGES | RAW)),
    "images extracted, labels archived": lambda root: (
        write(root, COCO_IMAGES),
        write(root, RAW, "tar", "labels"),
    ),
}


@pytest.mark.parametrize("layout", COCO_LAYOUTS)
def test_coco_stuff_is_read_in_the_layouts_people_have(tmp_path, layout):
    COCO_LAYOUTS[layout](tmp_path / "data")
    source = open_dataset("coco_stuff", tmp_path / "data", "train")
    assert isinstance(source, ExampleSource) and source.name == "coco_stuff"
    assert source.example_ids == ("000000000009", "000000000025")
    assert source.class_names[0] == "person" and len(source.class_names) == 171
    assert _first_row(source, 1) == RAW_CLASSES
    assert open_dataset("coco_stuff", tmp_path / "data", "val").example_ids == ("000000000139",)


@pytest.mark.parametrize(
    "folder, suffix",
    [("stuffthingmaps_detectron2/", ".png"), ("annotations/", "_labelTrainIds.png")],
)
def test_contiguous_labels_of_coco_stuff_are_taken_as_they_are(tmp_path, folder, suffix):
    converted = {name: png(11, 170, 255, 0) for name in RAW}
    write(tmp_path, COCO_IMAGES | _below(folder, converted, suffix))
    assert _first_row(open_dataset("coco_stuff", tmp_path, "train")) == RAW_CLASSES


def test_unused_value_of_coco_stuff_is_an_error(tmp_path):
    write(tmp_path, COCO_IMAGES | RAW | {"val2017/000000000139.png": png(11)})
    with pytest.raises(ValueError, match=r"139\.png: label values 11 are neither .*171 classes"):
        open_dataset("coco_stuff", tmp_path, "val")[0]


def test_missing_parts_of_coco_stuff_are_named_with_their_downloads(tmp_path):
    with pytest.raises(MissingFiles) as caught:
        open_dataset("coco_stuff", write(tmp_path, COCO_IMAGES), "train")
    for text in ("stuffthingmaps/train2017/*.png", "stuffthingmaps_trainval2017.zip (690 MB)"):
        assert text in str(caught.value)
    assert "train2017.zip (19" not in str(caught.value)
    with pytest.raises(MissingFiles, match=r"train2017\.zip \(19\.3 GB\) and put train2017\.zip"):
        open_dataset("coco_stuff", write(tmp_path / "labels", RAW), "train")


def test_label_without_image_is_an_error(tmp_path):
    del (images := dict(COCO_IMAGES))["train2017/000000000009.jpg"]
    message = (
        r"1 of the 2 examples of train2017/\*\.png have no image\..*missing: train2017/0+9\.jpg"
    )
    with pytest.raises(ValueError, match=message):
        open_dataset("coco_stuff", write(tmp_path, images | RAW), "train")


VOC_LISTS = {
    "ImageSets/Segmentation/train.txt": b"2007_000063\n2007_000032\n",
    "ImageSets/Segmentation/val.txt": b"2007_000033\r\n\r\n",
}
VOC_FILES = {
    **{f"JPEGImages/{name}.jpg": jpeg() for name in ("2007_000032", "2007_000033", "2007_000063")},
    **{f"JPEGImages/{name}.jpg": jpeg() for name in ("2008_000001", "2008_000002")},
    "SegmentationClass/2007_000032.png": png(0, 1, 20, 255),
    "SegmentationClass/2007_000033.png": png(15),
    "SegmentationClass/2007_000063.png": png(9),
    **VOC_LISTS,
}
AUGMENTED = {
    f"SegmentationClassAug/{name}.png": png(2)
    for name in ("2007_000032", "2007_000033", "2008_000001")
}


@pytest.mark.parametrize(
    "prefix, kind", [("VOCdevkit/VOC2012/", "tar"), ("VOC2012/", "zip"), ("", "folder")]
)
def test_voc_is_read_in_the_layouts_people_have(tmp_path, prefix, kind):
    root = write(tmp_path / "data", _below(prefix, VOC_FILES), kind)
    if kind == "tar":
        assert open_dataset("voc2012", root / "archive.tar", "train").example_ids
    source = open_dataset("voc2012", root, "train")
    assert source.example_ids == ("2007_000063", "2007_000032")
    assert _first_row(source, 1) == [IGNORE, 0, 19, IGNORE]
    assert source.class_names[0] == "aeroplane" and len(source.class_names) == 20
    val = open_dataset("voc2012", root, "val")
    assert val.example_ids == ("2007_000033",) and _first_row(val) == [14] * 4


def test_voc_trains_on_augmented_labels_but_is_evaluated_on_plain_ones(tmp_path):
    write(tmp_path, VOC_FILES | AUGMENTED)
    train = open_dataset("voc2012", tmp_path, "train")
    assert train.example_ids == ("2007_000032", "2008_000001")
    assert _first_row(train) == [1] * 4
    assert _first_row(open_dataset("voc2012", tmp_path, "val")) == [14] * 4


@pytest.mark.parametrize(
    "line", ["2008_000001", "/JPEGImages/2008_000001.jpg /Aug/2008_000001.png"]
)
def test_list_of_augmented_voc_is_followed(tmp_path, line):
    trainaug = {"ImageSets/Segmentation/trainaug.txt": line.encode()}
    write(tmp_path, VOC_FILES | AUGMENTED | trainaug)
    assert open_dataset("voc2012", tmp_path, "train").example_ids == ("2008_000001",)


def test_augmented_labels_may_be_an_archive_beside_the_official_one(tmp_path):
    write(tmp_path, _below("VOCdevkit/VOC2012/", VOC_FILES), "tar", "VOCtrainval")
    write(tmp_path, AUGMENTED, "zip", "SegmentationClassAug")
    assert _first_row(open_dataset("voc2012", tmp_path, "train")) == [1] * 4


def test_listed_voc_image_without_label_map_is_an_error(tmp_path):
    files = {name: data for name, data in VOC_FILES.items() if "Class/2007_000063" not in name}
    with pytest.raises(ValueError, match=r"1 of the 2 .*train\.txt have no label map.*000063\.png"):
        open_dataset("voc2012", write(tmp_path, files), "train")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"2007_000063\n2007_000063\n", r"train\.txt: listed more than once: 2007_000063"),
        (b"\n", r"train\.txt: expected one id per line, the file is empty"),
        (b"\xff\xfe2", r"train\.txt: expected a text file of ids"),
    ],
)
def test_bad_list_is_an_error(tmp_path, content, message):
    files = VOC_FILES | {"ImageSets/Segmentation/train.txt": content}
    with pytest.raises(ValueError, match=message):
        open_dataset("voc2012", write(tmp_path, files), "train")


@pytest.mark.parametrize("part", ["JPEGImages", "SegmentationClass", "ImageSets"])
def test_missing_parts_of_voc_are_named_with_the_download(tmp_path, part):
    files = {name: data for name, data in VOC_FILES.items() if not name.startswith(part)}
    with pytest.raises(
        MissingFiles, match=rf"(?s){part}.*VOCtrainval_11-May-2012\.tar \(2\.0 GB\)"
    ):
        open_dataset("voc2012", write(tmp_path, files), "train")


ADE_FILES = {
    "images/training/ADE_train_00000001.jpg": jpeg(),
    "images/validation/ADE_val_00000002.jpg": jpeg(),
}
ADE_LABELS = {
    "annotations/training/ADE_train_00000001.png": png(0, 1, 150, 2),
    "annotations/validation/ADE_val_00000002.png": png(3),
}


@pytest.mark.parametrize("prefix, kind", [("ADEChallengeData2016/", "zip"), ("", "folder")])
def test_ade20k_150_is_read_in_the_layouts_people_have(tmp_path, prefix, kind):
    write(tmp_path, _below(prefix, ADE_FILES | ADE_LABELS), kind)
    source = open_dataset("ade20k_150", tmp_path, "train")
    assert source.example_ids == ("ADE_train_00000001",)
    assert _first_row(source) == [IGNORE, 0, 149, 1]
    assert len(source.class_names) == 150 and source.class_names[149] == "flag"
    assert _first_row(open_dataset("ade20k_150", tmp_path, "val")) == [2] * 4


def test_converted_ade20k_150_is_read_where_the_original_is_missing(tmp_path):
    converted = {"annotations_detectron2/training/ADE_train_00000001.png": png(255, 0, 149, 1)}
    write(tmp_path, ADE_FILES | converted)
    assert _first_row(open_dataset("ade20k_150", tmp_path, "train")) == [IGNORE, 0, 149, 1]


def test_missing_ade20k_150_is_named_with_the_download(tmp_path):
    with pytest.raises(
        MissingFiles, match=r"(?s)annotations/training/\*\.png.*ADEChallengeData2016"
    ):
        open_dataset("ade20k_150", write(tmp_path, ADE_FILES), "train")


def _large_ade(num_images):
    names = [f"{i:08d}" for i in range(num_images)]
    return {
        **{f"images/validation/{name}.jpg": jpeg() for name in names},
        **{f"annotations/validation/{name}.png": png(1) for name in names},
    }


def test_numbers_other_than_the_official_ones_are_logged(tmp_path, caplog):
    write(tmp_path, _large_ade(3))
    with caplog.at_level(logging.WARNING):
        open_dataset("ade20k_150", tmp_path, "val")
    assert "ade20k_150 val: 3 examples found, the whole data set has 2000" in caplog.text


def test_the_official_number_is_not_logged(tmp_path, caplog):
    write(tmp_path, _large_ade(2000), "zip")
    with caplog.at_level(logging.INFO):
        assert len(open_dataset("ade20k_150", tmp_path, "val")) == 2000
    assert caplog.text == ""


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_source_is_read_in_another_process(tmp_path, kind):
    source = open_dataset("ade20k_150", write(tmp_path, ADE_FILES | ADE_LABELS, kind), "train")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        example = pool.submit(source.__getitem__, 0).result()
        assert pool.submit(source.signature, 0).result() == source.signature(0)
    np.testing.assert_array_equal(example.image, source[0].image)
    np.testing.assert_array_equal(example.label_map, source[0].label_map)


def test_image_bytes_are_those_of_the_file(tmp_path):
    source = open_dataset("ade20k_150", write(tmp_path, ADE_FILES | ADE_LABELS, "zip"), "train")
    assert source.image_bytes(0) == ADE_FILES["images/training/ADE_train_00000001.jpg"]


def _ade_with(tmp_path, image=None, label=None):
    files = dict(ADE_FILES | ADE_LABELS)
    files["images/training/ADE_train_00000001.jpg"] = image or jpeg()
    files["annotations/training/ADE_train_00000001.png"] = label or png(1)
    return open_dataset("ade20k_150", write(tmp_path, files, "zip"), "train")


def test_cmyk_and_turned_images_are_read(tmp_path):
    assert _ade_with(tmp_path / "cmyk", jpeg(mode="CMYK"))[0].image.shape == (3, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _ade_with(tmp_path / "exif", jpeg(size=(3, 4), exif=exif))[0]
    assert turned.image.shape == (3, 4, 3)


@pytest.mark.parametrize(
    "image, label, message",
    [
        (jpeg(size=(5, 3)), None, r"archive\.zip:annotations/.*1\.png: expected the size .*, 5x3"),
        (jpeg(size=(1, 3)), None, r"archive\.zip:images/.*1\.jpg: expected at least 2x2 .*got 1x3"),
        (jpeg()[:300], None, r"archive\.zip:images/.*1\.jpg: cannot be read as an image"),
        (None, png(1)[:45], r"archive\.zip:annotations/.*1\.png: cannot be read as a label map"),
        (None, png(1, 151, 9000, dtype=np.uint16), r"1\.png: label values 151, 9000 are neither"),
    ],
)
def test_corrupt_and_impossible_files_are_named(tmp_path, image, label, message):
    with pytest.raises(ValueError, match=message):
        _ade_with(tmp_path, image, label)[0]


def _negative_values(data, where):
    return np.full((3, 4), -3, np.int32)


def test_negative_label_values_are_an_error(tmp_path):
    source = _ade_with(tmp_path)
    source._labels._read_values = _negative_values
    with pytest.raises(ValueError, match=r"label values -3 are neither"):
        source[0]


def test_signature_follows_content_and_meaning(tmp_path):
    signatures = {
        _ade_with(tmp_path / "a").signature(0),
        _ade_with(tmp_path / "b", image=jpeg(quality=10)).signature(0),
        _ade_with(tmp_path / "c", label=png(2)).signature(0),
    }
    assert len(signatures) == 3
    source = _ade_with(tmp_path / "a")
    assert source.signature(0) in signatures
    labels = source._labels
    lookup = labels._class_of_value.copy()
    lookup[1] = 5
    relabelled = IndexMaps(labels._tree, labels._paths, source.class_names, lookup)
    assert relabelled.signature(0) != labels.signature(0)


def test_unknown_names_are_errors_that_list_the_known(tmp_path):
    with pytest.raises(
        ValueError, match=r"dataset 'coco': expected one of \['folder', 'ade20k_full'"
    ):
        open_dataset("coco", tmp_path, "train")
    with pytest.raises(ValueError, match="split 'test': expected one of"):
        open_dataset("coco_stuff", tmp_path, "test")


@pytest.mark.parametrize("dataset", SPECS)
def test_empty_root_is_an_error_that_says_what_to_do(tmp_path, dataset):
    source = "maft_jax.cli.demo" if dataset == "shapes_world" else "http"
    with pytest.raises(ValueError, match=f"{tmp_path}: .*(?s:.*){source}"):
        open_dataset(dataset, tmp_path, "val")


def test_folder_of_ones_own_is_a_data_set_too(tmp_path):
    files = {
        "images/ä.jpg": jpeg(),
        "labels/ä.png": png(1, 65535, 0, dtype=np.uint16),
        "names.txt": b"cat\ndog\n",
    }
    options = {"annotations": "labels", "classes": "names.txt", "ignore_labels": (65535,)}
    for kind in ("folder", "zip"):
        root = write(tmp_path / kind, files, kind)
        source = open_dataset("folder", root, "train", **options)
        assert (source.name, source.example_ids) == ("folder", ("ä",))
        assert _first_row(pickle.loads(pickle.dumps(source))) == [1, IGNORE, 0, 1]
    assert Path(root, "archive.zip").is_file()
