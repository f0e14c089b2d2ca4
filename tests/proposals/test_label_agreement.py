"""Labels and classes agree, or somebody is told before anything is made or trained."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from input_pipeline.folder_source import FolderSource
from input_pipeline.records.record_shards import done_path
from input_pipeline.records.record_source import RecordSource
from maft_jax.evaluators.data_sets import find_evaluation_data
from maft_jax.proposals.label_agreement import check_several_classes
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config, records_folder
from maft_jax.training.training_data import open_records, open_training_data
from tests.runs import small_config

pytestmark = pytest.mark.usefixtures("summaries_drawn_once")


def write_data(root, classes, *label_maps, dtype=np.uint8):
    """Grey images of 24x16 with these label maps, which are repeated to that size."""
    for name in ("images", "annotations"):
        (root / name).mkdir(parents=True)
    for i, labels in enumerate(label_maps):
        labels = np.asarray(labels, dtype).repeat(24 // len(labels))
        Image.new("RGB", (24, 16), (90, 120, 150)).save(root / f"images/photo_{i}.png")
        Image.fromarray(np.tile(labels, (16, 1))).save(root / f"annotations/photo_{i}.png")
    (root / "classes.txt").write_text(classes)
    return root


def config_of(root, **changes):
    data = {"data.root": str(root), "data.cache_dir": str(root / "cache")}
    return small_config(data, **changes)


def test_black_and_white_masks_are_refused_before_anything_is_written(tmp_path):
    root = write_data(tmp_path / "skin", "background\nlesion\n", [0, 255], [0, 0], [0, 255])
    config = config_of(root)
    with pytest.raises(ValueError) as refusal:
        open_training_data(config)
    assert str(refusal.value) == (
        f"{root}/annotations/photo_0.png and the 2 other label maps: no pixel shows 'lesion'; "
        "every pixel is 0 (background, 66.7 %) or 255 (ignored, 33.3 %). If pixels of value 255 "
        "should be learnt, as in masks of 0 and 255, write '0<TAB>background', '255<TAB>lesion' as "
        "lines of the class list, or set ignore_labels (--config.data.ignore_labels) to other "
        "values"
    )
    assert not records_folder(config).exists()


def test_the_advice_for_black_and_white_masks_works(tmp_path):
    root = write_data(tmp_path / "skin", "0\tbackground\n255\tlesion\n", [0, 255], [0, 0])
    source = open_training_data(config_of(root))
    assert source.class_names == ("background", "lesion")
    assert np.unique(source[0].label_map).tolist() == [0, 1]


def test_one_class_without_ignored_pixels_is_refused_too(tmp_path):
    root = write_data(tmp_path / "data", "sky\ntree\nroad\n", [1, 1], [1, 1])
    with pytest.raises(ValueError, match=r"shows 'sky', 'road'; every pixel is 1 \(tree, 100.0 %"):
        check_several_classes(FolderSource(root))


def test_label_maps_of_ignored_pixels_alone_are_refused(tmp_path):
    root = write_data(tmp_path / "data", "sky\ntree\n", [255], [255])
    with pytest.raises(ValueError, match=r"'sky', 'tree'; every pixel is 255 \(ignored"):
        check_several_classes(FolderSource(root))


def test_no_more_label_maps_are_read_than_show_two_classes(tmp_path, monkeypatch):
    root = write_data(tmp_path / "data", "sky\ntree\n", [0, 0], [0, 1], [1, 1])
    source, read = FolderSource(root), []
    values = source.label_values
    monkeypatch.setattr(source, "label_values", lambda index: read.append(index) or values(index))
    check_several_classes(source)
    assert read == [0, 1]


def test_label_values_without_a_class_are_counted_over_the_whole_set(tmp_path):
    root = write_data(tmp_path / "data", "sky\ntree\n", [0, 1], [0, 7], [7, 7, 9], [1, 0])
    job = job_from_config(config_of(root))
    with pytest.raises(ValueError) as refusal:
        precompute(job, num_workers=1)
    lines = [line.strip() for line in str(refusal.value).splitlines()]
    assert lines[0].startswith("2 of 4 examples cannot be used")
    assert "photo_1.png: label values 7 are neither in the class list (2 classes" in lines[1]
    assert "192 of 384 pixels have them" in lines[1] and "photo_2.png" in lines[2]
    assert lines[3:] == [
        "label value 7 has no class: 448 pixels of 2 label maps, the first of them "
        f"{root}/annotations/photo_1.png",
        "label value 9 has no class: 128 pixels of 1 label maps, the first of them "
        f"{root}/annotations/photo_2.png",
    ]


def test_class_that_no_pixel_shows_is_named_and_training_goes_on(tmp_path, caplog):
    root = write_data(tmp_path / "data", "sky\ntree\nroad\nsea\n", [0, 2, 255], [0, 0])
    config = config_of(root)
    with caplog.at_level(logging.WARNING):
        source = open_training_data(config)
    assert len(source) == 2
    assert "no pixel shows 'tree', 'sea' (2 of 4 classes), which cannot be learnt" in caplog.text
    assert "16.7% of all pixels are ignored" in caplog.text
    summary = precompute(job_from_config(config), num_workers=1)
    assert "WARNING: no pixel of any label map shows 'tree', 'sea' (2 of 4" in summary.describe()


def test_labels_that_agree_are_passed_without_a_word(tmp_path, caplog):
    root = write_data(tmp_path / "data", "sky\ntree\n", [0, 1])
    with caplog.at_level(logging.WARNING):
        open_training_data(config_of(root))
    assert not caplog.records


@pytest.mark.parametrize(
    ("classes", "unseen", "message"),
    [
        ("sky\ntree\nroad\n", ("sky", "tree"), "only 'road' is left to learn of 3 classes; two"),
        ("sky\ntree\nroad\nsea\n", ("sky", "tree"), "shows 'sea'; every pixel is 0 .sky, 33.3"),
        ("sky\ntree\nroad\n", ("sky",), None),
    ],
)
def test_fewer_than_two_classes_to_learn_are_refused(tmp_path, classes, unseen, message):
    root = write_data(tmp_path / "data", classes, [0, 1, 2])
    config = config_of(root, data__unseen_classes=unseen)
    if message is None:
        assert len(open_training_data(config).class_names) == 2
        return
    with pytest.raises(ValueError, match=message):
        open_training_data(config)
    assert not records_folder(config).exists()


@pytest.mark.parametrize(
    ("unseen", "message"),
    [
        (("sky", "tree", "sea"), "only 'road' is left to learn of 4 classes; training needs two"),
        (("sky", "tree"), "only 'road' is left to learn of 4 classes, no pixel shows 'sea'; train"),
    ],
)
def test_fewer_than_two_classes_to_learn_are_refused_of_records_too(tmp_path, unseen, message):
    root = write_data(tmp_path / "data", "sky\ntree\nroad\nsea\n", [0, 1, 2])
    records = {"data__records": str(tmp_path / "records")}
    precompute(job_from_config(config_of(root, **records)), num_workers=1)
    with pytest.raises(ValueError, match=message):
        open_training_data(config_of(root, **records, data__unseen_classes=unseen))


def test_class_list_of_one_class_cannot_be_learnt(tmp_path):
    root = write_data(tmp_path / "data", "lesion\n", [0, 255])
    with pytest.raises(ValueError, match="only 'lesion' is left to learn of 1 classes"):
        open_training_data(config_of(root))


def test_records_alone_are_checked_as_well(tmp_path):
    """Those that an earlier version made of black-and-white masks."""
    root = write_data(tmp_path / "skin", "background\nlesion\n", [0, 255], [0, 255])
    config = config_of(root, data__records=str(tmp_path / "records"))
    precompute(job_from_config(config), num_workers=1)
    message = r"only 'background' is left .* no pixel shows 'lesion'; 50.0% of all pixels are ign"
    with pytest.raises(ValueError, match=message):
        open_records(config)


def test_counts_are_written_beside_the_records_and_read_from_them(tmp_path):
    root = write_data(tmp_path / "data", "sky\ntree\nsea\n", [0, 1, 255], [0, 0])
    config = config_of(root, data__records=str(tmp_path / "records"))
    precompute(job_from_config(config), num_workers=1)
    assert json.loads((tmp_path / "records/label_counts.json").read_text()) == {
        "ignored_pixels": 128,
        "classes": [
            {"name": "sky", "images": 2, "pixels": 512},
            {"name": "tree", "images": 1, "pixels": 128},
            {"name": "sea", "images": 0, "pixels": 0},
        ],
    }
    counts = RecordSource(tmp_path / "records").label_counts
    assert (counts.images, counts.pixels, counts.ignored_pixels) == ((2, 1, 0), (512, 128, 0), 128)
    assert counts.absent == ("sea",)
    assert [line.split() for line in counts.table().splitlines()] == [
        ["class", "images", "pixels", "share"],
        ["sky", "2", "512", "66.67%"],
        ["tree", "1", "128", "16.67%"],
        ["sea", "0", "0", "0.00%"],
        ["(ignored)", "128", "16.67%"],
    ]


def test_removed_counts_are_written_again_and_no_shard_is(tmp_path):
    root = write_data(tmp_path / "data", "sky\ntree\n", [0, 1])
    config = config_of(root, data__records=str(tmp_path / "records"))
    job = job_from_config(config)
    precompute(job, num_workers=1)
    written = (tmp_path / "records/label_counts.json").read_bytes()
    (tmp_path / "records/label_counts.json").unlink()
    before = done_path(job.folder, job.stem(0)).stat().mtime
    precompute(job, num_workers=1)
    assert (tmp_path / "records/label_counts.json").read_bytes() == written
    assert done_path(job.folder, job.stem(0)).stat().mtime == before


def test_evaluation_of_one_class_goes_on_with_a_warning(tmp_path, caplog):
    root = write_data(tmp_path / "skin", "background\nlesion\n", [0, 255], [0, 0])
    config = config_of(root, evaluation__roots__folder=str(root))
    with caplog.at_level(logging.WARNING):
        (found,) = find_evaluation_data(config)
        assert len(found.open().source) == 2
    assert "show fewer than two classes, no pixel shows 'lesion'" in caplog.text
