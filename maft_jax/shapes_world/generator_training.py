"""The generators of learned masks, one per split: none saw the labels of its unseen classes."""

import hashlib
import json
import pathlib
import shutil

import numpy as np

from input_pipeline.shapes_world.vocabulary import unseen_classes
from maft_jax.config import from_config_dict
from maft_jax.configs.generator_shapes_world import get_config
from maft_jax.convert.generator_files import WEIGHTS
from maft_jax.convert.generators import PREPARATION, SETTINGS
from maft_jax.convert.state_dict_io import write_state_dict
from maft_jax.convert.weights_source import open_tensors
from maft_jax.shapes_world.worlds import draw_world
from maft_jax.training.generator_task import FOLDER
from maft_jax.training.train_loop import train_and_evaluate

SEED = 0
"""Of the world whose pictures the generators of learned masks learn from."""
HALF_FOLDER = "generator_float16"
"""Of the trained generator, in the workdir."""


def configuration_digest() -> str:
    """What configs/generator_shapes_world.py says, as a part of names."""
    settings = json.dumps(get_config().to_dict(), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:8]


def train_generator(folder: pathlib.Path, split: int, seed: int = SEED) -> pathlib.Path:
    """Trains configs/generator_shapes_world.py for a split below `folder`, unless it is there.

    `seed` is of the pictures and of all that training draws. What another configuration trained
    stays beside it. Returns its folder, with weights in float16 as the package has them.

    Raises:
        TrainingInterrupted: SIGINT or SIGTERM came; the same call goes on.
    """
    of_seed = "" if seed == SEED else f"seed_{seed}-"
    workdir = folder / "generators" / f"{of_seed}split_{split}-{configuration_digest()}"
    half = workdir / HALF_FOLDER
    if (half / WEIGHTS).exists():
        return half
    world = folder / "worlds" / f"seed_{seed}"
    draw_world(world, seed)
    config = get_config()
    config.update_from_flattened_dict(
        {
            "seed": seed,
            "data.root": str(world),
            "data.unseen_classes": unseen_classes(split),
            "data.cache_dir": str(folder / "cache"),
        }
    )
    train_and_evaluate(from_config_dict(config), workdir)
    _write_half(workdir / FOLDER, half)
    return half


def _write_half(trained: pathlib.Path, half: pathlib.Path) -> None:
    """The weights come last: where they are, all is."""
    half.mkdir(exist_ok=True)
    for name in (SETTINGS, PREPARATION):
        shutil.copyfile(trained / name, half / name)
    tensors = open_tensors(trained / WEIGHTS).tensors
    write_state_dict(
        {name: tensor.cast(np.float16) for name, tensor in tensors.items()}, half / WEIGHTS
    )
