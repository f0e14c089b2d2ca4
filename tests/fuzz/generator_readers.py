"""Readers of proposal generators."""

import pathlib
import shutil
from typing import Any

from safetensors.numpy import save_file

from maft_jax.convert.fcclip import read_modules
from maft_jax.convert.formats import read_weights
from maft_jax.convert.generators import open_generator
from maft_jax.runtime import tree_rules
from tests.fcclip_files import maft_plus_tensors
from tests.fuzz.mutations import damage_json, inside_header
from tests.fuzz.reader import Reader
from tests.golden_files import GOLDEN


def mask2former(folder: pathlib.Path) -> pathlib.Path:
    name = "generators/mask2former_tiny_resnet"
    shutil.copy(GOLDEN / f"{name}.safetensors", folder / "model.safetensors")
    return pathlib.Path(shutil.copy(GOLDEN / f"{name}.config.json", folder / "config.json"))


def maft_plus(folder: pathlib.Path) -> pathlib.Path:
    save_file(maft_plus_tensors(), folder / "maft_plus.safetensors")
    return folder / "maft_plus.safetensors"


def whole_system(path: pathlib.Path) -> Any:
    """Of CLIP, generator and content-dependent transfer."""
    parts = read_weights(path).parameters(), open_generator(path).parameters(), read_modules(path)
    return [tree_rules.flatten(part) for part in parts]


GENERATOR_READERS = [
    Reader(
        "generator settings",
        mask2former,
        lambda path: list(open_generator(path.parent).leaves),
        damage_json,
        cost=20,
    ),
    Reader("fcclip", maft_plus, whole_system, inside_header, cost=4),
]
