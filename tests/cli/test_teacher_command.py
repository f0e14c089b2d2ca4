"""maft_jax.cli.precompute_proposals with config.loss.cached_teacher, in processes of its own."""

import sys

import numpy as np
import pytest

from maft_jax.training.teacher import cached_probabilities, open_teacher
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import SETTINGS, finish, make_data, small_config, start

CACHED = {"data.augment": False, "loss.cached_teacher": True}


@pytest.fixture
def data(tmp_path):
    data = make_data(tmp_path) | CACHED
    return data | {"data.records": str(tmp_path / "records"), "proposals.generator": "ground_truth"}


def precompute(data, *arguments, exit_code=0, **changes):
    """What the command printed."""
    settings = SETTINGS | data | {name.replace("__", "."): x for name, x in changes.items()}
    command = [
        *(sys.executable, "-m", "maft_jax.cli.precompute_proposals"),
        "--config=configs/folder.py",
        *(f"--config.{name}={value}" for name, value in settings.items()),
        *arguments,
    ]
    return finish(start(command), exit_code)


@pytest.mark.slow
def test_training_reads_what_the_command_computed(data, caplog, tmp_path):
    output = precompute(data, "--workers=1")
    assert "teacher              1 of 1 parts" in output and "8/8 [" in output
    teacher = open_teacher(small_config(data))
    assert teacher.cache.missing_parts() == []
    with caplog.at_level("INFO", "maft_jax"):
        train_and_evaluate(small_config(data, num_steps=1), tmp_path / "run")
    assert "computing teacher probabilities" not in caplog.text
    of_the_command = cached_probabilities(teacher)
    (teacher.cache.folder / "00000-of-00001.npy").unlink()
    on_eight_devices = cached_probabilities(teacher)
    # At a logit scale of 100 a probability moves up to 25 times as far as a similarity (4e-7).
    np.testing.assert_allclose(on_eight_devices, of_the_command, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_teacher_waits_for_the_proposals_of_all_processes(data):
    output = precompute(data, "--process_count=2", "--process_index=1", exit_code=1)
    assert "shards are finished; when the other commands have ended, give all of them" in output
    output = precompute(data, "--process_count=2", "--process_index=0")
    assert "teacher              1 of 1 parts" in output


def test_command_without_weights_is_refused_before_it_computes(data, tmp_path):
    output = precompute(data, exit_code=2, model__pretrained="")
    assert "config.loss.cached_teacher: expected the weights of the teacher" in output
    assert "Traceback" not in output and not (tmp_path / "records").exists()
