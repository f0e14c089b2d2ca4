"""Worlds on disk, and the configuration that trains on one of them."""

import glob
import logging
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.shapes_world.folder import write_shapes_world
from input_pipeline.shapes_world.splits import WORLD_VERSION
from input_pipeline.write_errors import naming
from maft_jax.config import Config, from_config_dict
from maft_jax.configs.shapes_world import get_config
from maft_jax.runtime import stop_requests
from maft_jax.runtime.json_files import read_json
from maft_jax.runtime.only_writer import only_writer

DATASET = "shapes_world"
_SECONDS_BETWEEN_REPORTS = 3.0

logger = logging.getLogger(__name__)


def draw_world(root: pathlib.Path, seed: int) -> None:
    """Draws the pictures of a seed into `root` unless they are there, with progress.

    Raises:
        ValueError: `root` holds something else, also pictures of another seed or version.
        Stopped: a signal came; nothing is left.
    """
    with only_writer(root.parent, "the folder", wait=True, part=f".{root.name}"):
        if root.exists():
            _check_is_world(root, seed)
            return
        for killed in root.parent.glob(f".{glob.escape(root.name)}-*"):
            shutil.rmtree(killed)
        _draw_world(root, seed)


def _draw_world(root: pathlib.Path, seed: int) -> None:
    started = reported = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal reported
        stop_requests.check()
        now = time.monotonic()
        if done == total or now - reported > _SECONDS_BETWEEN_REPORTS:
            left = (now - started) / done * (total - done)
            logger.info("drawn %d of %d pictures, %.0f s left", done, total, left)
            reported = now

    with naming(root):
        write_shapes_world(root, seed, progress=report)


def _check_is_world(root: pathlib.Path, seed: int) -> None:
    description = root / "world.json"
    world = read_json(description) if description.exists() else {}
    drawn = world.get("seed"), world.get("world_version")
    if drawn != (seed, WORLD_VERSION):
        raise ValueError(
            f"{root}: expected the world of seed {seed}, version {WORLD_VERSION}, there is "
            f"{f'that of seed {drawn[0]}, version {drawn[1]}' if world else 'something else'}; "
            "choose another folder, or give the seed that it was drawn with"
        )


def world_config(
    root: pathlib.Path,
    cache: pathlib.Path,
    seed: int,
    unseen_classes: Sequence[str],
    changes: Mapping[str, Any],
    variant: str = "drawn",
) -> Config:
    """configs/shapes_world.py:VARIANT for the world in `root`, with changes by dotted name."""
    config = get_config(variant)
    config.update_from_flattened_dict(
        {
            "seed": seed,
            "data.root": str(root),
            "data.unseen_classes": tuple(unseen_classes),
            "data.cache_dir": str(cache),
            "evaluation.roots.shapes_world": str(root),
            **changes,
        }
    )
    return from_config_dict(config)
