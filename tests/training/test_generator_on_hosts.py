"""Training a generator in two real processes: its evaluation measures what one process measures."""

import jax
import numpy as np
import pytest
from etils import epath

from input_pipeline.sample_folder import draw_scene, write_sample_folder
from maft_jax.config.sections import MeshConfig
from maft_jax.convert.generators import open_generator
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config
from maft_jax.runtime.metric_logging import make_writer
from maft_jax.runtime.sharding import make_mesh
from maft_jax.runtime.stop_signals import StopSignals
from maft_jax.training.generator_task import open_generator_task
from tests.hosts import on_hosts
from tests.runs import command, read_metrics
from tests.training.test_generator_training import SETTINGS, run_config

STEPS = SETTINGS | {"num_steps": 2, "checkpointing.every_steps": 2, "mesh.fsdp": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Records for training, and of five images: the first process has two sizes of them."""
    folder = tmp_path_factory.mktemp("generator_on_hosts")
    for name, number in (("train", 8), ("val", 4)):
        write_sample_folder(folder / name, number, seed=number, size=(96, 64))
    picture, labels = draw_scene(np.random.default_rng(0), (64, 64))
    picture.save(folder / "val/images/square.jpg")
    labels.save(folder / "val/annotations/square.png")
    cache = {"data.cache_dir": str(folder / "cache")}
    for name, split in (("train", "train"), ("val", "val")):
        where = {"data.root": str(folder / name), "data.split": split}
        where["data.records"] = str(folder / "records" / name / "folder")
        precompute(job_from_config(run_config(cache | where)), num_workers=1)
    return cache | {
        "data.records": str(folder / "records/train/folder"),
        "evaluation.records": str(folder / "records/val"),
    }


def measured(workdir) -> dict[int, dict]:
    """By step; each must be there once."""
    records = [r for r in read_metrics(workdir) if "evaluation/folder/best_iou" in r]
    by_step = {record["step"]: record for record in records}
    assert len(by_step) == len(records)
    return by_step


def measure_alone(data, step: int, parameters, workdir) -> None:
    """In this process, on all of its devices."""
    config = run_config(data | STEPS)
    task = open_generator_task(config, make_mesh(MeshConfig(), jax.devices()))
    state = task.setup.place_state(parameters or task.parameters)
    writer = make_writer(epath.Path(workdir), config.num_steps)
    with StopSignals() as signals:
        task.make_evaluation().evaluate(
            epath.Path(workdir), state.replace(step=step), {}, writer, signals
        )
    writer.close()


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(data, tmp_path):
    workdir, alone = tmp_path / "run", tmp_path / "alone"
    run = command(data, workdir, **STEPS)
    first, _ = on_hosts(run, tmp_path / "logs", num_devices=2).finish(timeout=500)
    assert "2 processes (flags) with 4 devices, 2 of them here" in first
    assert "step 2: folder: best_iou 0." in first
    found = measured(workdir)
    assert list(found) == [0, 2] and found[0] != found[2]
    alone.mkdir()
    measure_alone(data, 0, None, alone)
    measure_alone(data, 2, open_generator(workdir / "generator").parameters(), alone)
    assert measured(alone) == found
