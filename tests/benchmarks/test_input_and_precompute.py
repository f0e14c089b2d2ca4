"""The input pipeline and the proposals, measured on photographs and on configured data."""

import subprocess
import sys

import pytest

from input_pipeline.benchmark import STAGES
from input_pipeline.benchmark_records import write_benchmark_folder, write_benchmark_records
from input_pipeline.layouts import open_dataset
from input_pipeline.records.record_source import RecordSource
from input_pipeline.train_pipeline import read_train_batches
from maft_jax.benchmarks.input import cores_for, measure_input
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.precompute import measure_precompute
from tests.runs import REPOSITORY, make_data, small_config

pytestmark = pytest.mark.slow


def test_input_is_read_with_the_configured_geometry_and_batch(monkeypatch):
    asked = []

    def spy(source, **settings):
        asked.append(settings)
        return read_train_batches(source, **settings)

    monkeypatch.setattr("input_pipeline.benchmark.read_train_batches", spy)
    measured = measure_input(small_config({"data.root": "unused"}), BenchmarkOptions(steps=2))
    assert {settings["global_batch_size"] for settings in asked} == {8}
    assert {settings["geometry"].crop_size for settings in asked} == {64}
    assert measured["images"] == 2 * 8
    assert measured["images_per_second"] > 0
    assert set(STAGES) < set(measured["stage_milliseconds_per_image"])


def test_cores_are_those_that_read_as_fast_as_the_step_computes():
    step = {"pipelined": {"images_per_second": 90.0}}
    assert cores_for(step, {"images_per_second_per_core": 60.0}) == 1.5


def test_precompute_of_photographs_and_of_the_configured_data(tmp_path):
    options = BenchmarkOptions(what=("precompute",), steps=2, warmup=0)
    drawn = measure_precompute(small_config({"data.root": "unused"}), options, num_workers=1)
    data = make_data(tmp_path)
    configured = BenchmarkOptions(what=("precompute",), steps=2, warmup=0, configured_data=True)
    own = measure_precompute(small_config(data), configured, num_workers=1)
    assert drawn["data"] == "photographs of 640x480"
    assert own["data"] == f"folder train in {data['data.root']}"
    for measured in (drawn, own):
        assert measured["generator"] == "superpixels"
        job, blocked = measured["job"], measured["blocked"]
        assert job["images"] == blocked["runs"] == 2
        assert job["images_per_second"] == 2 / job["seconds"]
        assert blocked["images_per_second"] == 1 / blocked["p50_seconds"]
    assert not (tmp_path / "cache").exists(), "records are not left where training looks"


def test_precompute_needs_the_data_that_it_is_told_to_read(tmp_path):
    config = small_config({"data.root": str(tmp_path / "nowhere")})
    options = BenchmarkOptions(what=("precompute",), configured_data=True)
    with pytest.raises(ValueError, match="nowhere"):
        measure_precompute(config, options)


def test_folder_and_records_hold_the_same_photographs(tmp_path):
    write_benchmark_folder(str(tmp_path / "folder"), num_images=2)
    write_benchmark_records(str(tmp_path / "records"), num_images=2, num_proposals=3)
    folder = open_dataset("folder", str(tmp_path / "folder"), "train")
    records = RecordSource(str(tmp_path / "records"))
    assert len(folder) == len(records) == 2
    for index in range(2):
        assert folder[index].image.shape == (480, 640, 3)
        assert (folder[index].image == records[index].image).all()
        assert (folder[index].label_map == records[index].label_map).all()


def test_command_of_version_0_1_runs_the_one_of_today(tmp_path):
    command = [sys.executable, "-m", "input_pipeline.benchmark", f"--records={tmp_path}/nothing"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is python -m maft_jax.cli.benchmark_input now" in done.stderr
    assert f"{tmp_path}/nothing/dataset.json: there is no such file" in done.stderr
