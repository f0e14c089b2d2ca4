"""Real processes as the hosts of one run: what they compute, how they stop, how they fail."""

import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from maft_jax.evaluators.results import read_result
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config
from maft_jax.training.train_loop import train_and_evaluate
from tests.hosts import HEARTBEAT_SECONDS, on_hosts
from tests.runs import command, make_data, read_metrics, small_config

THREE_STEPS = {"num_steps": 3, "log_every_steps": 1, "evaluation__num_pictures": 2}
STEPS = {"num_steps": 12, "log_every_steps": 1, "checkpointing__every_steps": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Settings that point to records for training, where all hosts can read them."""
    folder = tmp_path_factory.mktemp("many_hosts")
    data = make_data(folder)
    records = {"data.records": str(folder / "records/train")}
    precompute(job_from_config(small_config(data | records)), num_workers=1)
    return {"data.cache_dir": str(folder / "cache")} | records


@pytest.fixture(scope="module")
def evaluated_data(data, tmp_path_factory):
    """The same, and records for evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    records = {"data.records": str(folder / "folder"), "data.split": "val"}
    precompute(job_from_config(small_config(make_data(folder) | records)), num_workers=1)
    return data | {"evaluation.records": str(folder), "evaluation.short_side": 120}


@pytest.fixture(scope="module")
def one_process(evaluated_data, tmp_path_factory):
    """Three steps of this process with its eight devices."""
    workdir = tmp_path_factory.mktemp("one_process")
    train_and_evaluate(small_config(evaluated_data, **THREE_STEPS), workdir)
    return workdir


def arrays_of(workdir, step):
    """As they lie on disk, whatever devices they came from."""
    path = workdir / f"checkpoints/{step}/state"
    with ocp.PyTreeCheckpointer() as reader:
        leaves = reader.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
        state = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {"trainable": state["trainable"], "opt_state": state["opt_state"]}


def losses_of(workdir):
    return [record["loss"] for record in read_metrics(workdir) if "loss" in record]


def assert_same_training(workdir, expected, step):
    """Within CONTRIBUTING's tolerances of one mesh against another."""
    ours, theirs = (arrays_of(folder, step)["trainable"] for folder in (workdir, expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), ours, theirs)
    np.testing.assert_allclose(losses_of(workdir), losses_of(expected), rtol=1e-4)
    tuned = load_file(workdir / "tuned.safetensors")
    for name, value in load_file(expected / "tuned.safetensors").items():
        np.testing.assert_allclose(tuned[name], value, rtol=0, atol=2e-6)


def evaluation_command(data, workdir, checkpoint):
    """Without the settings of a training run, which its workdir has itself."""
    words = command(data, workdir, checkpoint=checkpoint)
    of_training = ("--config.model.", "--config.data.records", "--config.data.crop")
    words = [word for word in words if not word.startswith(of_training)]
    return [word.replace("folder.py", "eval_only.py") for word in words]


def counts_of(workdir, step):
    return read_result(workdir / f"evaluation/step_{step}/folder.json").confusion


def copy_of(workdir, target):
    """Without tuned weights, which the next run writes."""
    shutil.copytree(workdir, target)
    (target / "tuned.safetensors").unlink()
    return target


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, {"mesh__fsdp": 8}], ids=["data", "fsdp over both"])
def test_two_processes_of_four_devices_are_one_of_eight(
    evaluated_data, one_process, tmp_path, mesh
):
    workdir = tmp_path / "run"
    run = command(evaluated_data, workdir, **THREE_STEPS, **mesh)
    first, second = on_hosts(run, tmp_path, num_devices=4).finish()
    assert "2 processes (flags) with 8 devices, 4 of them here" in first
    assert "step 3/3" in first and "step 3/3" not in second
    assert_same_training(workdir, one_process, step=3)
    np.testing.assert_array_equal(counts_of(workdir, 0), counts_of(one_process, 0))
    events = [path for path in workdir.iterdir() if "tfevents" in path.name]
    assert len(events) == 2, "of training and of the last evaluation, by one process"
    assert (workdir / "evaluation/folder.png").read_bytes() == (
        one_process / "evaluation/folder.png"
    ).read_bytes()


@pytest.mark.slow
def test_checkpoint_of_one_layout_goes_on_in_the_other(evaluated_data, one_process, tmp_path):
    longer = THREE_STEPS | {"num_steps": 4}
    in_two, in_one = copy_of(one_process, tmp_path / "in_two"), tmp_path / "in_one"
    run = command(evaluated_data, in_two, **longer, mesh__fsdp=4, mesh__model=2)
    first, _ = on_hosts(run, tmp_path / "logs", num_devices=4).finish()
    assert "resuming from the checkpoint of step 3" in first
    copy_of(in_two, in_one)
    state = train_and_evaluate(small_config(evaluated_data, **longer | {"num_steps": 5}), in_one)
    assert int(state.step) == 5
    copy_of(one_process, tmp_path / "expected")
    train_and_evaluate(small_config(evaluated_data, **longer), tmp_path / "expected")
    assert_same_training(in_two, tmp_path / "expected", step=4)

    evaluation = evaluation_command(evaluated_data, tmp_path / "of_run", in_two)
    first, second = on_hosts(evaluation, tmp_path / "logs", num_devices=2).finish()
    assert "mIoU" in first and "mIoU" not in second
    of_run = read_result(tmp_path / "of_run/evaluation/folder.json")
    np.testing.assert_array_equal(of_run.confusion, counts_of(in_two, 4))


@pytest.mark.slow
def test_preempted_and_killed_run_ends_bit_identical(data, tmp_path):
    expected, workdir = tmp_path / "expected", tmp_path / "run"
    on_hosts(command(data, expected, **STEPS), tmp_path / "logs").finish()

    def last_step():
        return len(read_metrics(workdir))

    hosts = on_hosts(command(data, workdir, **STEPS), tmp_path / "logs")
    hosts.wait_until(lambda: last_step() >= 1)
    hosts.processes[1].send_signal(signal.SIGTERM)  # of one host alone
    outputs = hosts.finish(143, 143)
    stopped = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 1 < stopped < 12
    for output in outputs:
        assert f"stopped by SIGTERM at step {stopped}, which is saved" in output
        assert "Traceback" not in output

    hosts = on_hosts(command(data, workdir, **STEPS), tmp_path / "logs")
    hosts.wait_until(lambda: last_step() >= stopped + 1)
    hosts.processes[1].kill()
    killed = time.monotonic()
    assert hosts.wait()[0] not in (0, None)
    assert time.monotonic() - killed < 3 * HEARTBEAT_SECONDS

    first, _ = on_hosts(command(data, workdir, **STEPS), tmp_path / "logs").finish()
    assert "resuming from the checkpoint of step" in first
    ours, theirs = arrays_of(workdir, 12), arrays_of(expected, 12)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert losses_of(workdir) == losses_of(expected)


@pytest.mark.slow
def test_first_process_killed_leaves_no_other_behind(data, tmp_path):
    hosts = on_hosts(command(data, tmp_path / "run", **STEPS), tmp_path)
    hosts.wait_until(lambda: "compiling the train step" in hosts.outputs()[0])
    hosts.processes[0].kill()
    killed = time.monotonic()
    assert hosts.wait()[1] not in (0, None)
    assert time.monotonic() - killed < 3 * HEARTBEAT_SECONDS


@pytest.mark.slow
def test_what_one_process_cannot_read_stops_all_with_its_reason(data, tmp_path):
    only_second = [[], ["--config.data.records=nowhere"]]
    hosts = on_hosts(command(data, tmp_path / "run"), tmp_path, own_flags=only_second)
    first, second = hosts.finish(2, 2, timeout=100)
    assert "process 1 of 2 stopped: nowhere" in first
    assert "nowhere" in second and "Traceback" not in first + second


@pytest.mark.slow
def test_workdir_of_which_each_host_has_its_own_is_refused(data, tmp_path):
    own = [[f"--workdir={tmp_path / name}"] for name in ("first", "second")]
    hosts = on_hosts(command(data, tmp_path), tmp_path, own_flags=own)
    for output in hosts.finish(2, 2, timeout=100):
        assert "expected a folder that all hosts share" in output
        assert "on process 1" in output and "Traceback" not in output
    assert not list(tmp_path.glob("*/checkpoints"))
