"""Old checkpoints go in one moment: killed at any point, nothing half-deleted counts as a step."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from maft_jax.config.sections import CheckpointingConfig
from maft_jax.state.checkpointing import Checkpoints, read_checkpoint
from maft_jax.state.train_state import TrainState
from tests.runs import REPOSITORY

REMOVE = """
import os, sys, time
from etils import epath
from tests.state.test_removed_checkpoints import CONFIG, Checkpoints, state_of
unlink, left = os.unlink, int(sys.argv[2])
def remove(path, **options):
    global left
    if not left:
        print("half removed", flush=True)
        time.sleep(60)
    left -= 1
    unlink(path, **options)
checkpoints = Checkpoints(epath.Path(sys.argv[1]), CONFIG)
for step in (1, 2):
    checkpoints.save(state_of(step), {"pretrained": "these"}, loss=0.5)
    checkpoints._manager.wait_until_finished()
os.unlink = remove
checkpoints.wait()
"""

CONFIG = CheckpointingConfig(keep_newest=1, keep_best=0, keep_every_steps=0)


def state_of(step: int) -> TrainState:
    return jax.device_put(
        TrainState(step=jnp.int32(step), trainable={"w": jnp.ones(3)}, opt_state={})
    )


@pytest.fixture
def workdir(tmp_path):
    """Three checkpoints were written, of which the last is to be kept."""
    checkpoints = Checkpoints(epath.Path(tmp_path), CONFIG)
    for step in (1, 2, 3):
        checkpoints.save(state_of(step), {"pretrained": "these"}, loss=0.5)
    checkpoints._manager.wait_until_finished()
    assert names(tmp_path) == [".removed", "3"]  # whole, where a kill now would leave it
    assert [path.name for path in (tmp_path / "checkpoints/.removed").iterdir()] == ["2"]
    checkpoints.wait()
    checkpoints.close()
    return tmp_path


def names(workdir) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_what_a_kill_left_is_gone_with_the_next_run(workdir):
    assert names(workdir) == ["3"]
    half = workdir / "checkpoints/.removed/2/state"
    half.mkdir(parents=True)
    (half / "_METADATA").write_text("{}")
    checkpoints = Checkpoints(epath.Path(workdir), CONFIG)
    assert names(workdir) == ["3"] and checkpoints.newest_step() == 3
    restored = checkpoints.restore_latest(state_of(0), {})
    assert int(restored.step) == 3
    checkpoints.close()


def test_what_an_earlier_version_half_removed_is_no_step(workdir, caplog):
    shutil.copytree(workdir / "checkpoints/3", workdir / "checkpoints/1")
    shutil.copytree(workdir / "checkpoints/3", workdir / "checkpoints/2")
    (workdir / "checkpoints/2/state/manifest.ocdbt").unlink()
    checkpoints = Checkpoints(epath.Path(workdir), CONFIG)
    assert names(workdir) == ["1", "3"]
    assert "checkpoints/2 is what a removal left that was killed" in caplog.text
    checkpoints.close()


@pytest.mark.parametrize(
    "num_files", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 7))]
)
def test_process_killed_in_the_middle_of_a_removal_leaves_no_step(tmp_path, num_files):
    process = subprocess.Popen(
        [sys.executable, "-c", REMOVE, tmp_path, str(num_files)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "half removed\n"
    process.kill()
    process.communicate()
    half, whole = (
        sum(path.is_file() for path in (tmp_path / "checkpoints" / name).rglob("*"))
        for name in (".removed/1", "2")
    )
    assert half == whole - num_files > 0
    assert names(tmp_path) == [".removed", "2"]
    state = read_checkpoint(epath.Path(tmp_path), state_of(0), "these")
    assert int(state.step) == 2  # as evaluation reads it, which changes nothing there
    checkpoints = Checkpoints(epath.Path(tmp_path), CONFIG)
    assert names(tmp_path) == ["2"] and checkpoints.newest_step() == 2
    checkpoints.close()
