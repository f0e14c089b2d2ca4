"""The file with the tuned CLIP that training leaves behind."""

import logging
import pathlib

import jax

from maft_jax.convert.formats import ClipWeights, default_format, why_not, write_weights
from maft_jax.convert.safetensors_file import find_damage
from maft_jax.runtime import consensus
from maft_jax.state.restored_run import TUNED_WEIGHTS
from maft_jax.state.train_state import TrainState, overlay
from maft_jax.training.run_setup import Run

logger = logging.getLogger(__name__)


def are_written(run: Run) -> bool:
    """Whether the file is there and whole, as the first process sees it; all must call this."""
    path = run.workdir / TUNED_WEIGHTS
    whole = jax.process_index() == 0 and path.exists()
    if whole and (damage := find_damage(pathlib.Path(path))):
        logger.warning("%s; writing it again from the checkpoint", damage)
        whole = False
    return bool(consensus.broadcast_from_first(whole))


def export(run: Run, state: TrainState) -> None:
    """Writes the tuned CLIP for PyTorch and for maft_jax.load: in OpenAI's layout if it fits.

    Every process must call this; the first one writes.
    """
    if "://" in str(run.workdir):
        logger.info("%s is not local: the tuned weights are in its checkpoints", run.workdir)
        return
    trainable = consensus.to_host(state.trainable)
    if jax.process_index() != 0:
        return
    tuned = run.parameters | {"visual": overlay(run.parameters["visual"], trainable)}
    path = run.workdir / TUNED_WEIGHTS
    name = default_format(path, run.clip)
    if reason := why_not(name, run.clip):
        logger.info("tuned weights are in the checkpoints alone: the format %s %s", name, reason)
        return
    weights = ClipWeights.of(run.clip, tuned, run.config.masking)
    write_weights(weights, path, name)
    logger.info("tuned weights, for PyTorch too: %s", path)
