"""Real processes that are stopped and killed: nothing is lost, and the end is bit-identical."""

import os
import pathlib
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from input_pipeline.sample_folder import write_sample_folder
from tests.runs import command, finish, make_data, read_metrics, start, wait_until

STEPS = {"num_steps": 16, "log_every_steps": 1, "checkpointing__every_steps": 5}
# What goes on where a warm process was stopped is none, so that it hashes strings differently.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def never_interrupted(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference")
    finish(start(command(data, workdir, **STEPS), warm=False))
    return workdir


def final_arrays(workdir):
    state = ocp.StandardCheckpointer().restore(workdir / "checkpoints/16/state")
    return {"trainable": state["trainable"], "moments": state["opt_state"]}


def assert_bit_identical(workdir, expected):
    ours, theirs = final_arrays(workdir), final_arrays(expected)
    compared = []

    def compare(a, b):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        compared.append(a)

    jax.tree.map(compare, ours, theirs)
    assert len(compared) > 3 * 34
    records, expected_records = read_metrics(workdir), read_metrics(expected)
    assert [r["step"] for r in records] == [r["step"] for r in expected_records]
    assert [r["loss"] for r in records] == [r["loss"] for r in expected_records]


def kill_when(condition, data, workdir):
    process = start(command(data, workdir, **STEPS))
    wait_until(condition, process)
    process.kill()
    process.communicate()


def last_step(workdir):
    records = read_metrics(workdir)
    return records[-1]["step"] if records else 0


@pytest.mark.slow
def test_killed_run_ends_bit_identical(data, never_interrupted, tmp_path):
    def unfinished_saves():
        return list((tmp_path / "checkpoints").glob("10.*"))

    kill_when(lambda: last_step(tmp_path) >= 3, data, tmp_path)  # before the first checkpoint
    kill_when(lambda: last_step(tmp_path) >= 8, data, tmp_path)  # between two
    kill_when(unfinished_saves, data, tmp_path)  # during a save
    assert unfinished_saves() and not (tmp_path / "checkpoints/10").exists()
    output = finish(start(command(data, tmp_path, **STEPS), warm=False))
    assert "resuming from the checkpoint of step 5" in output
    assert not unfinished_saves()
    assert_bit_identical(tmp_path, never_interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_the_same_command_resumes(
    data, never_interrupted, tmp_path, number, exit_code
):
    process = start(command(data, tmp_path, **STEPS))
    wait_until(lambda: last_step(tmp_path) >= 2, process)
    process.send_signal(number)
    output = finish(process, exit_code)
    stopped = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert f"stopped by {number.name} at step {stopped}, which is saved" in output
    assert stopped >= 2 and "Traceback" not in output
    finish(start(command(data, tmp_path, **STEPS), warm=False))
    assert_bit_identical(tmp_path, never_interrupted)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_reading_processes_serve_until_all_is_saved_and_change_no_bit(
    data, never_interrupted, tmp_path, number
):
    """A terminal and a scheduler send signals to the whole group."""
    several = STEPS | {"data__reading_processes": 2}
    process = start(command(data, tmp_path, **several), start_new_session=True)
    wait_until(lambda: last_step(tmp_path) >= 2, process)
    os.killpg(process.pid, number)
    output = finish(process, 128 + number)
    assert f"stopped by {number.name} at step" in output and "Traceback" not in output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    finish(start(command(data, tmp_path, **several), warm=False))
    assert_bit_identical(tmp_path, never_interrupted)


@pytest.mark.slow
def test_killed_reading_process_ends_the_run_with_a_reason(data, tmp_path):
    several = STEPS | {"data__reading_processes": 2, "num_steps": 10**6}
    process = start(command(data, tmp_path, **several), start_new_session=True)
    wait_until(lambda: last_step(tmp_path) >= 2, process)
    readers = [
        int(path.parent.name)
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
        if b"input_pipeline.reading_process" in path.read_bytes()
        and os.getpgid(int(path.parent.name)) == process.pid
    ]
    assert len(readers) == 2
    os.kill(readers[0], signal.SIGKILL)
    output = finish(process, 1)
    assert "was killed by SIGKILL" in output and "Traceback" not in output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_sigterm_before_training_leaves_no_process_behind(data, tmp_path):
    write_sample_folder(tmp_path / "data", num_images=64)  # enough for several worker processes
    places = {"data.root": str(tmp_path / "data"), "data.cache_dir": str(tmp_path / "cache")}
    process = start(command(places, tmp_path / "run"), start_new_session=True)
    wait_until(lambda: (tmp_path / "cache/records").exists(), process)
    process.terminate()
    finish(process, 143)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_full_disk_during_a_save_names_the_last_good_checkpoint(data, tmp_path):
    finish(start(command(data, tmp_path, **STEPS | {"num_steps": 5})))
    small_files_only = ["bash", "-c", 'ulimit -f 300; exec "$@"', "run"]
    output = finish(start(small_files_only + command(data, tmp_path, **STEPS)), 1)
    assert "could not be written" in output
    assert "The newest good checkpoint is that of step 5" in output
    last_lines = "\n".join(output.splitlines()[-5:])
    assert "could not be written" in last_lines and "Traceback" not in last_lines
