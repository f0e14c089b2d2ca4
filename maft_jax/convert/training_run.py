"""The tuned CLIP of a training run's workdir: the pretrained one with a checkpoint's leaves."""

import json
import os

import jax
import numpy as np
from etils import epath

from maft_jax import optimizer
from maft_jax.checkpointing import read_checkpoint
from maft_jax.config import Config, from_config_dict, preset
from maft_jax.convert.formats import ClipWeights
from maft_jax.convert.pretrained import fingerprint, load_pretrained
from maft_jax.train_state import init_train_state, overlay

_CONFIG_FILE = "config.json"


def is_training_run(path: str | os.PathLike) -> bool:
    """Whether this is the workdir of a run with checkpoints."""
    path = epath.Path(path)
    return (path / _CONFIG_FILE).is_file() and (path / "checkpoints").is_dir()


def read_training_run(
    workdir: str | os.PathLike, *, step: int | None = None, pretrained: str | None = None
) -> ClipWeights:
    """The student of a checkpoint, with the text tower that it was tuned against; float32.

    Args:
        step: of the checkpoint; by default the newest.
        pretrained: where the weights that the run began with are now, if not where config.json
            says.

    Raises:
        ValueError: this is no workdir, there is no such checkpoint, it is broken, or it was made
            with other weights.
    """
    text = os.fspath(workdir)
    workdir = epath.Path(text if "://" in text else os.path.abspath(text))
    config = _read_config(workdir)
    source = pretrained or config.model.pretrained
    try:
        clip, parameters = load_pretrained(source)
    except ValueError as error:
        raise ValueError(
            f"{workdir}: its run began with the weights {config.model.pretrained}: {error}. If "
            "they are elsewhere now, say where (--pretrained=...)"
        ) from error
    visual = parameters["visual"]
    tx = optimizer.make_optimizer(config.optimizer, config.num_steps)
    abstract = jax.eval_shape(lambda: init_train_state(visual, config.optimizer.trainable, tx))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract
    )
    state = read_checkpoint(workdir, abstract, fingerprint(visual), step)
    tuned = jax.tree.map(np.asarray, state.trainable)
    return ClipWeights.of(clip, parameters | {"visual": overlay(visual, tuned)})


def _read_config(workdir: epath.Path) -> Config:
    """Settings that the run's version did not know yet have their defaults."""
    path = workdir / _CONFIG_FILE
    try:
        config = preset("official")
        config.update(json.loads(path.read_text()))
        return from_config_dict(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{workdir}: expected the workdir of a run, with its {_CONFIG_FILE}: {error}"
        ) from error
