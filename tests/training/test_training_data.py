"""From configuration to records: the cache, records made elsewhere, and zero-shot splits."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline.numpy_dataset import NumpyBatches
from input_pipeline.records.record_source import RecordSource
from input_pipeline.train_pipeline import TrainGeometry, make_train_dataset
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config, records_folder
from maft_jax.training.training_data import (
    describe_data,
    draw_training_data,
    open_training_data,
    unseen_classes,
)
from tests.runs import SETTINGS, finish, make_data, small_config, start


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Settings of a sample folder whose records are in the cache."""
    data = make_data(tmp_path_factory.mktemp("training_data"))
    open_training_data(small_config(data))
    return data


def test_records_of_the_cache_are_used_again(data):
    config = small_config(data)
    files = [pathlib.Path(path) for path in records_folder(config).glob("*.tfrecord")]
    before = [path.stat().st_mtime_ns for path in files]
    assert before
    open_training_data(config)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_records_made_elsewhere_need_no_data_set(data, tmp_path):
    config = small_config(data, data__records=str(tmp_path / "records"))
    precompute(job_from_config(config), num_workers=1)
    only_records = {"data.records": str(tmp_path / "records"), "data.cache_dir": str(tmp_path)}
    source = open_training_data(small_config(only_records))
    assert source.fingerprint == open_training_data(small_config(data)).fingerprint
    assert records_folder(small_config(data)) != records_folder(config)


def test_records_that_are_not_there_are_named(tmp_path):
    config = small_config({"data.records": str(tmp_path / "none")})
    with pytest.raises(ValueError, match=r"none.*precompute_proposals"):
        open_training_data(config)


def test_several_hosts_need_a_shared_folder(data, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"several hosts need a folder of records"):
        open_training_data(small_config(data))


def test_classes_left_out_are_neither_named_nor_labelled(data):
    whole = open_training_data(small_config(data))
    left_out = whole.class_names[-2:]
    source = open_training_data(small_config(data, data__unseen_classes=left_out))
    assert source.class_names == whole.class_names[:-2]
    kept = whole.example_ids.index(source.example_ids[0])
    before, after = whole[kept].label_map, source[0].label_map
    np.testing.assert_array_equal(after, np.where(before < len(source.class_names), before, -1))
    assert source.fingerprint != whole.fingerprint


def test_published_stands_for_the_split_of_the_data_set():
    config = small_config({"data.root": "x"}, data__unseen_classes=("published", "cat"))
    description = {"dataset": "voc2012", "unseen_classes": ["sheep", "sofa"]}
    assert unseen_classes(config.data, description) == ("sheep", "sofa", "cat")
    with pytest.raises(ValueError, match="folder has no published zero-shot split"):
        unseen_classes(config.data, {"dataset": "folder", "unseen_classes": []})


def test_data_state_is_small_and_tells_what_differs(data):
    state = describe_data(open_training_data(small_config(data)))
    assert state["data_set"] == "folder train"
    assert state["proposals"] == "superpixels, at most 8"
    assert state["num_images"] == 8 and state["num_classes"] == 8
    fewer = small_config(data, data__unseen_classes=("sand",))
    other = describe_data(open_training_data(fewer))
    assert {name for name in state if state[name] != other[name]} == {"num_classes", "data"}


def test_picture_shows_the_first_rows_of_the_step(data):
    config = small_config(data)
    source = open_training_data(config)
    first = draw_training_data(source, config, num_examples=2)
    assert first.dtype == np.uint8 and first.shape[0] == 2 * 240 + 4
    assert not np.array_equal(first, draw_training_data(source, config, 2, step=1))
    reseeded = dataclasses.replace(config, seed=1)
    assert not np.array_equal(first, draw_training_data(source, reseeded, 2))


def batch_of(source, step, **options):
    return next(
        NumpyBatches(
            make_train_dataset(
                source,
                global_batch_size=4,
                seed=5,
                start_step=step,
                geometry=TrainGeometry(64, short_sides=(64, 80)),
                **options,
            )
        )
    )


@pytest.mark.parametrize("step", [0, 123_457, 10_000_000])
def test_records_give_the_same_bytes_on_any_number_of_hosts_and_after_any_resume(data, step):
    config = small_config(data)
    whole = batch_of(open_training_data(config), step, num_workers=1)
    again = RecordSource(records_folder(config))
    for hosts in (2, 4):
        rows = [batch_of(again, step, process_index=i, process_count=hosts) for i in range(hosts)]
        for key, expected in whole.items():
            joined = np.concatenate([part[key] for part in rows])
            assert joined.tobytes() == expected.tobytes(), key


@pytest.mark.slow
def test_command_draws_without_weights(data, tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if not name.startswith("model.")}
    command = [
        sys.executable,
        "-m",
        "maft_jax.cli.visualize",
        "--config=configs/folder.py",
        f"--out={tmp_path / 'sheet.png'}",
        "--num_examples=3",
        *(f"--config.{name}={value}" for name, value in (settings | data).items()),
    ]
    output = finish(start(command))
    assert "sheet.png and" in output and "sheet_labels.png" in output
    rows = [line.split() for line in output.splitlines()]
    assert ["class", "images", "pixels", "share"] in rows
    assert {row[0] for row in rows if len(row) == 4} >= {"class", "sand", "grass"}
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.height == 3 * 240 + 2 * 4
    with Image.open(tmp_path / "sheet_labels.png") as chart:
        assert chart.size == (990, 279)  # two panels, eight classes
