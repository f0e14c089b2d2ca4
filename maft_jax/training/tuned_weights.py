"""The file with the trained weights that a run leaves behind."""

import logging
import pathlib

import jax

from maft_jax.convert.safetensors_file import find_damage
from maft_jax.runtime import consensus
from maft_jax.state.train_state import TrainState
from maft_jax.training.run_setup import Run

logger = logging.getLogger(__name__)


def are_written(run: Run) -> bool:
    """Whether the file is there and whole, as the first process sees it; all must call this."""
    path = run.workdir / run.task.weights_file
    whole = jax.process_index() == 0 and path.exists()
    if whole and (damage := find_damage(pathlib.Path(path))):
        logger.warning("%s; writing it again from the checkpoint", damage)
        whole = False
    return bool(consensus.broadcast_from_first(whole))


def export(run: Run, state: TrainState) -> None:
    """Writes the trained weights, for PyTorch and for maft_jax.load.

    Every process must call this; the first one writes.
    """
    if "://" in str(run.workdir):
        logger.info("%s is not local: the tuned weights are in its checkpoints", run.workdir)
        return
    trainable = consensus.to_host(state.trainable)
    if jax.process_index() != 0:
        return
    path = run.workdir / run.task.weights_file
    if reason := run.task.write(path, trainable):
        logger.info("tuned weights are in the checkpoints alone: %s", reason)
    else:
        logger.info("tuned weights, for PyTorch too: %s", path)
