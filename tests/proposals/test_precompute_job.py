"""From the configuration to a job, and the place of its records in the cache."""

import dataclasses
import os
import pathlib
import re
import tempfile

import pytest

from input_pipeline.records.record_shards import read_dataset_file
from input_pipeline.sample_folder import SAMPLE_CLASSES, write_sample_folder
from maft_jax.config import from_config_dict, preset
from maft_jax.config.sections import DataConfig
from maft_jax.proposals import precompute_job
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import cache_dir, job_from_config, records_folder
from maft_jax.proposals.record_sets import synonyms
from tests.precompute_jobs import DrawnSource, make_job


def make_config(cache="cache", **changes):
    """`changes` use "__" for the dot of a section."""
    config = preset("official")
    settings = {"data.root": "photos", "data.cache_dir": str(cache)}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(settings)
    return from_config_dict(config, require_weights=False)


def test_place_in_the_cache_can_be_read_by_people():
    folder = records_folder(
        make_config(data__dataset="coco_stuff", proposals__num_proposals=50, data__split="val")
    )
    assert folder.parent == pathlib.Path("cache/records")
    assert re.fullmatch("coco_stuff-val-superpixels-50-[0-9a-f]{8}", folder.name)


def test_records_setting_is_the_place():
    assert str(records_folder(make_config(data__records="gs://bucket/coco"))) == "gs://bucket/coco"


def test_what_changes_records_changes_their_place_and_nothing_else_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = records_folder(make_config())
    for change in (
        {"data__root": "other"},
        {"data__split": "val"},
        {"data__dataset": "voc2012"},
        {"data__images": "JPEGImages"},
        {"data__annotations": "labels"},
        {"data__classes": "voc_20"},
        {"data__ignore_labels": (0, 255)},
        {"proposals__generator": "ground_truth"},
        {"proposals__num_proposals": 99},
        {"proposals__path": "masks"},
        {"proposals__kinds": ("regions", "parts")},
    ):
        assert records_folder(make_config(**change)) != place, change
    for change in (
        {"seed": 1},
        {"batch_size": 4},
        {"data__crop_size": 320},
        {"data__unseen_classes": ("sky",)},
        {"data__root": str(tmp_path / "photos")},
        {"model__pretrained": "random:tiny"},
    ):
        assert records_folder(make_config(**change)) == place, change


def test_cache_is_in_the_home_folder_unless_told_otherwise(tmp_path, monkeypatch, caplog):
    data = make_config("").data
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert cache_dir(data) == tmp_path / "there/maft_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_dir(data) == tmp_path / "me/.cache/maft_jax"
    assert not caplog.messages


def test_without_a_writable_home_the_cache_is_among_temporary_files(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    precompute_job._default_cache_dir.cache_clear()
    data = make_config("").data
    assert cache_dir(data) == cache_dir(data) == tmp_path / f"maft_jax-{os.getuid()}"
    (message,) = caplog.messages
    assert "no home to write to" in message and "/proc/nobody" in message
    assert "--config.data.cache_dir" in message
    assert cache_dir(make_config("stated").data) == pathlib.Path("stated")


def test_without_any_folder_to_write_to_the_flag_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nobody")
    precompute_job._default_cache_dir.cache_clear()
    with pytest.raises(ValueError, match=r"no folder for the cache.*--config\.data\.cache_dir="):
        cache_dir(make_config("").data)


@pytest.fixture
def photos(tmp_path):
    write_sample_folder(tmp_path / "photos", num_images=3, size=(48, 32))
    return str(tmp_path / "photos")


def test_job_of_a_folder_is_that_of_the_settings(photos, tmp_path):
    config = make_config(tmp_path, data__root=photos, proposals__num_proposals=7)
    job = job_from_config(config)
    assert len(job.source) == 3 and job.source.class_names == SAMPLE_CLASSES
    assert (job.dataset, job.split, job.unseen_classes) == ("folder", "train", ())
    assert (job.generator.name, job.num_proposals) == ("superpixels", 7)
    assert job.folder == str(records_folder(config)) and job.replace


def test_explicit_records_are_replaced_only_if_asked(photos, tmp_path):
    config = make_config(data__root=photos, data__records=str(tmp_path / "records"))
    assert not job_from_config(config).replace
    assert job_from_config(config, overwrite=True).replace


def test_photo_added_to_a_cached_folder_is_taken_in(photos, tmp_path):
    config = make_config(tmp_path / "cache", data__root=photos, proposals__num_proposals=4)
    assert precompute(job_from_config(config), num_workers=1).num_images == 3
    for folder, kind in (("images", "jpg"), ("annotations", "png")):
        path = pathlib.Path(photos, folder)
        (path / f"another.{kind}").write_bytes((path / f"scene_0001.{kind}").read_bytes())
    assert precompute(job_from_config(config), num_workers=1).num_images == 4
    stems = {path.name.partition(".")[0] for path in records_folder(config).glob("train-*")}
    assert stems == {f"train-{i:05d}-of-00004" for i in range(4)}


def test_missing_root_is_explained():
    with pytest.raises(ValueError, match=r"config.data.root: no data to compute records from"):
        job_from_config(make_config(data__root="", data__records="records"))


def test_published_split_is_part_of_the_description(monkeypatch, tmp_path):
    monkeypatch.setattr(precompute_job, "open_dataset", lambda *_, **__: DrawnSource(2))
    job = job_from_config(make_config(tmp_path, data__dataset="voc2012"))
    assert job.unseen_classes == ("pottedplant", "sheep", "sofa", "train", "tv")
    assert job.description["unseen_classes"] == list(job.unseen_classes)


def test_synonyms_are_described_and_change_no_record(tmp_path):
    """Their text is all that they are; classes without any are described as before."""
    job = make_job(tmp_path / "records", num_examples=2)
    assert "synonyms" not in job.description
    precompute(job, num_workers=1)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").glob("*.tfrecord")}
    several = dataclasses.replace(job, synonyms={"left": ("port",)}, replace=True)
    refused = dataclasses.replace(several, replace=False)
    with pytest.raises(ValueError, match=r"differ in\s+synonyms: None there, {'left': \['port'\]}"):
        precompute(refused, num_workers=1)
    precompute(several, num_workers=1)
    description = read_dataset_file(tmp_path / "records")
    assert synonyms(DataConfig(), description) == {"left": ["port"]}
    assert synonyms(DataConfig(synonyms=False), description) == {}
    precompute(dataclasses.replace(job, replace=True), num_workers=1)
    assert synonyms(DataConfig(), read_dataset_file(tmp_path / "records")) == {}
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_defaults_name_the_folder_of_earlier_versions():
    place = records_folder(make_config(data__root="/photos"))
    assert place.name == "folder-train-superpixels-100-cb3875c7"
    assert records_folder(make_config(data__root="/photos", data__ignore_labels=(255,))) == place
