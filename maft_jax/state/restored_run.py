"""The tuned CLIP of a training run's workdir: the pretrained one with a checkpoint's leaves."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from maft_jax.config import Config, config_of_run
from maft_jax.convert.formats import ClipWeights
from maft_jax.models.encoder import resolve_masking
from maft_jax.models.text_classifier import text_tower_identity
from maft_jax.resolved_config import trainable_rules
from maft_jax.runtime.json_files import read_json
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.state import optimizer
from maft_jax.state.checkpointing import read_checkpoint
from maft_jax.state.train_state import init_train_state, overlay
from maft_jax.state.tuned_tree import TunedTree

_CONFIG_FILE = "config.json"
TUNED_WEIGHTS = "tuned.safetensors"
"""The file beside a run's checkpoints with the CLIP as it was tuned."""
MODULES = "modules.safetensors"
"""Beside it: what the method trained besides, under the names of the authors' checkpoints."""

logger = logging.getLogger(__name__)

Opener = Callable[..., ClipWeights]


def is_training_run(path: str | os.PathLike) -> bool:
    """Whether this is the workdir of a run with checkpoints."""
    path = epath.Path(path)
    return (path / _CONFIG_FILE).is_file() and (path / "checkpoints").is_dir()


def read_training_run(
    workdir: str | os.PathLike,
    open_pretrained: Opener,
    *,
    step: int | None = None,
    pretrained: str | None = None,
) -> ClipWeights:
    """The student of a checkpoint, with the text tower that it was tuned against; float32.

    Args:
        open_pretrained: weights.open_weights, which itself reads runs.
        step: of the checkpoint; by default the newest.
        pretrained: where the weights that the run began with are now, if not where config.json
            says.

    Raises:
        ValueError: this is no workdir, there is no such checkpoint, it is broken, or it was made
            with other weights.
        OSError: these have a name of the hub, and cannot be downloaded now.
    """
    return read_student(workdir, open_pretrained, step=step, pretrained=pretrained)[0]


def read_student(
    workdir: str | os.PathLike,
    open_pretrained: Opener,
    *,
    step: int | None = None,
    pretrained: str | None = None,
) -> tuple[ClipWeights, int]:
    """What read_training_run says, and the step of the checkpoint."""
    workdir = _absolute(workdir)
    config = read_run_config(workdir)
    weights = read_first_weights(workdir, open_pretrained, pretrained=pretrained)
    parameters = weights.parameters()
    visual = parameters["visual"]
    trainable = trainable_rules(config, weights.config.vision)
    tree = TunedTree.of(config, trainable)
    tx = optimizer.make_optimizer(config.optimizer, config.num_steps, tree.tower_path)
    begun = tree.begin(weights.config.vision, visual)
    rules = tree.rules(trainable)
    abstract = jax.eval_shape(lambda: init_train_state(begun, rules, tx))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract
    )
    text_tower = text_tower_identity(weights.config.text, parameters["text"])
    state = read_checkpoint(workdir, abstract, fingerprint(visual), step, text_tower)
    trained = overlay(begun, jax.tree.map(np.asarray, state.trainable))
    student = parameters | {"visual": jax.tree.map(np.asarray, tree.visual(trained))}
    tuned = ClipWeights.of(weights.config, student, weights.masking)
    modules = tree.read_with(tree.modules(trained))
    return dataclasses.replace(tuned, modules=modules), int(state.step)


def read_first_weights(
    workdir: str | os.PathLike, open_pretrained: Opener, *, pretrained: str | None = None
) -> ClipWeights:
    """The CLIP that a run began with, untuned, and how the run has it read proposals.

    Raises:
        ValueError: as read_training_run does.
        OSError: its weights have a name of the hub, and cannot be downloaded now.
    """
    workdir = _absolute(workdir)
    config = read_run_config(workdir)
    if config.task == "train_generator":
        raise ValueError(
            f"{workdir}: a run that trained a generator of proposals, no CLIP; what it trained is "
            f"--config.proposals.generator=... with --config.proposals.path={workdir}/generator"
        )
    model = config.model
    source = pretrained or _where_now(model.pretrained, workdir)
    try:
        weights = open_pretrained(source, **model.stated, needs_text=True)
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        tuned = workdir / TUNED_WEIGHTS
        instead = f"; or give {tuned}, the CLIP as it was tuned" if tuned.exists() else ""
        raise kind(
            f"{workdir}: its run began with the weights {model.pretrained}: {error}. If they are "
            "elsewhere now, say where (--pretrained=...); in Python (pretrained=...); for an "
            f"evaluation (--config.model.pretrained=...){instead}"
        ) from error
    masking = resolve_masking(weights.config.vision, weights.masking, *model.given_masking)
    return dataclasses.replace(weights, masking=masking)


def _where_now(recorded: str, workdir: epath.Path) -> str:
    """Where the recorded file or folder is: as it says, else below the run or a folder above it.

    Earlier versions recorded relative paths, and folders are copied as a whole to other machines.
    A checkpoint refuses any other image tower that has that name; the run is not its own start.
    """
    if ":" in recorded.split("/")[0] or os.path.exists(recorded) or "://" in str(workdir):
        return recorded
    parts = pathlib.PurePath(os.path.relpath(recorded, "/") if recorded[:1] == "/" else recorded)
    run = pathlib.Path(workdir)
    for start in range(len(parts.parts)):
        for folder in (run, *run.parents):
            path = folder.joinpath(*parts.parts[start:])
            if path.exists() and path not in (run / TUNED_WEIGHTS, run, *run.parents):
                logger.warning("%s: taking %s for %s, which is not there", workdir, path, recorded)
                return str(path)
    return recorded


def _absolute(workdir: str | os.PathLike) -> epath.Path:
    """Orbax refuses relative paths."""
    text = os.fspath(workdir)
    return epath.Path(text if "://" in text else os.path.abspath(text))


def read_run_config(workdir: str | os.PathLike) -> Config:
    """A run's settings; those that its version did not know yet have their defaults.

    Raises:
        ValueError: there is no config.json, or it is not ours.
    """
    path = epath.Path(workdir) / _CONFIG_FILE
    try:
        return config_of_run(read_json(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{workdir}: expected the workdir of a run, with its {_CONFIG_FILE}: {error}"
        ) from error
