"""Old checkpoints go in one moment: killed at any point, nothing half-deleted counts as a step."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from maft_jax.config.sections import CheckpointingConfig
from maft_jax.state.checkpointing import Checkpoints
from maft_jax.state.train_state import TrainState

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
        checkpoints.save(state_of(step), {}, loss=0.5)
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
