"""The plans of docs/scaling.md: which there are, and making those that a folder does not hold."""

import dataclasses
import importlib.metadata
import logging
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maft_jax.config import Config, from_config_dict
from maft_jax.configs import coco, folder, shapes_world
from maft_jax.planning.plan import make_plan
from maft_jax.planning.topology import parse_topology
from maft_jax.runtime.sealed_files import read_sealed_json, write_sealed_json
from maft_jax.runtime.versions import versions

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration that is planned, with what the command line gives it."""

    name: str
    """What --config is given, without the folder and .py."""
    title: str
    get_config: Callable[[], Any]
    settings: Mapping[str, Any]
    batch_per_device: int
    topologies: tuple[str, ...]

    @property
    def config(self) -> Config:
        config = self.get_config()
        config.update_from_flattened_dict({"data.root": "not-given", **self.settings})
        return from_config_dict(config)


LARGE = ("v5e:16x16", "2xv5e:16x16", "v6e:16x16", "v5p:8x8x8", "v4:8x8x8", "tpu7x:8x8x8")
EIGHT_CHIPS = ("v5e:2x4", "v6e:2x4", "v5p:2x2x2", "v4:2x2x2", "tpu7x:2x2x2")

EXPERIMENTS = (
    Experiment(
        "coco",
        "ViT-B/16 on COCO-Stuff",
        coco.get_config,
        {},
        batch_per_device=32,
        topologies=(*EIGHT_CHIPS, *LARGE),
    ),
    Experiment(
        "coco:l14",
        "ViT-L/14 on COCO-Stuff",
        lambda: coco.get_config("l14"),
        {},
        batch_per_device=8,
        topologies=LARGE,
    ),
    Experiment(
        "shapes_world",
        "the tiny CLIP of shapes world",
        shapes_world.get_config,
        {},
        batch_per_device=16,
        topologies=LARGE,
    ),
    Experiment(
        "folder",
        "ViT-B/16 on a folder of photos",
        folder.get_config,
        {"model.pretrained": "ViT-B-16.pt"},
        batch_per_device=32,
        topologies=LARGE,
    ),
)
"""eval_only.py, the remaining configuration, has no train step."""


def run_study(
    workdir: pathlib.Path, experiments: Sequence[Experiment] = EXPERIMENTS
) -> dict[str, Any]:
    """Compiles what `workdir` does not hold yet; returns what `write_page` reads.

    Every plan is kept as soon as it is made, so that an interrupted study goes on where it was.
    """
    wanted = [(one, topology) for one in experiments for topology in one.topologies]
    plans: dict[str, dict[str, Any]] = {one.name: {} for one in experiments}
    started, num_new = time.monotonic(), 0
    for number, (experiment, topology) in enumerate(wanted, start=1):
        path = _path(workdir, experiment, topology)
        kept = read_sealed_json(path)
        if kept is None:
            logger.info("%d of %d: %s on %s", number, len(wanted), experiment.name, topology)
            plan = make_plan(
                experiment.config, parse_topology(topology), experiment.batch_per_device
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = write_sealed_json(path, plan.to_json())
            num_new += 1
            each = (time.monotonic() - started) / num_new
            left = sum(not _path(workdir, *one).exists() for one in wanted)
            logger.info("%.0f s a plan; about %.0f min left", each, each * left / 60)
        plans[experiment.name][topology] = kept
    return {"plans": plans, "versions": _versions(), "machine": _machine()}


def _path(workdir: pathlib.Path, experiment: Experiment, topology: str) -> pathlib.Path:
    return workdir / f"{experiment.name}_{topology}.json".replace(":", "_")


def _versions() -> dict[str, str | None]:
    found = versions()
    kept = {name: found[name] for name in ("python", "jax", "flax", "git_revision")}
    return kept | {"libtpu": importlib.metadata.version("libtpu")}


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"
