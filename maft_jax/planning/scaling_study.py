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
    batch_per_device: int | None
    """Images, or None for the configuration's batch over all devices."""
    topologies: tuple[str, ...]
    variant: str = ""
    """Tells experiments of one configuration apart."""

    @property
    def key(self) -> str:
        """Its name in plans.json."""
        return " ".join(filter(None, (self.name, self.variant)))

    @property
    def config(self) -> Config:
        config = self.get_config()
        config.update_from_flattened_dict({"data.root": "not-given", **self.settings})
        return from_config_dict(config)


NVIDIA_CARDS = (
    *("h100:1", "h100:8", "2xh100:8", "a100-80:8", "a100-40:8"),
    *("3090:1", "4090:1", "a6000:1", "l4:1", "v100-16:1"),
)
LARGE = ("v5e:16x16", "2xv5e:16x16", "v6e:16x16", "v5p:8x8x8", "v4:8x8x8", "tpu7x:8x8x8")
EIGHT_CHIPS = ("v5e:2x4", "v6e:2x4", "v5p:2x2x2", "v4:2x2x2", "tpu7x:2x2x2")

LARGEST_ON_24_GB = 56
"""Images: the largest multiple of 8 that fits an L4, of which 59 do (`cli.plan --sweep`)."""

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
    Experiment(
        "coco",
        "ViT-B/16 on COCO-Stuff, the recipe's batch of 16 in all",
        coco.get_config,
        {},
        batch_per_device=None,
        topologies=NVIDIA_CARDS,
        variant="on cards",
    ),
    Experiment(
        "coco",
        "ViT-B/16 on COCO-Stuff, as many images as cards with 24 GB hold",
        coco.get_config,
        {},
        batch_per_device=LARGEST_ON_24_GB,
        topologies=("3090:1", "l4:1"),
        variant="on 24 GB",
    ),
    Experiment(
        "coco:l14",
        "ViT-L/14 on COCO-Stuff, the recipe's batch of 16 in all",
        lambda: coco.get_config("l14"),
        {},
        batch_per_device=None,
        topologies=("h100:1", "3090:1"),
        variant="on cards",
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
    plans: dict[str, dict[str, Any]] = {one.key: {} for one in experiments}
    started, num_new = time.monotonic(), 0
    for number, (experiment, topology) in enumerate(wanted, start=1):
        path = _path(workdir, experiment, topology)
        kept = read_sealed_json(path)
        if kept is None:
            logger.info("%d of %d: %s on %s", number, len(wanted), experiment.key, topology)
            plan = make_plan(
                experiment.config, parse_topology(topology), experiment.batch_per_device
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = write_sealed_json(path, plan.to_json())
            num_new += 1
            each = (time.monotonic() - started) / num_new
            left = sum(not _path(workdir, *one).exists() for one in wanted)
            logger.info("%.0f s a plan; about %.0f min left", each, each * left / 60)
        plans[experiment.key][topology] = kept
    return {"plans": plans, "versions": _versions(), "machine": _machine()}


def _path(workdir: pathlib.Path, experiment: Experiment, topology: str) -> pathlib.Path:
    return workdir / f"{experiment.key}_{topology}.json".replace(":", "_").replace(" ", "_")


def _versions() -> dict[str, str | None]:
    found = versions()
    kept = {name: found[name] for name in ("python", "jax", "flax", "git_revision")}
    return kept | {name: _version(name) for name in ("libtpu", "jax-cuda12-plugin")}


def _version(package: str) -> str | None:
    """None of what is not installed, and was not needed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"
