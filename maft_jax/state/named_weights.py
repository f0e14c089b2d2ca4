"""Names of the hub in a run's settings: each keeps standing for what the run began with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from maft_jax.config import Config
from maft_jax.hub.local_files import digests, pinned
from maft_jax.hub.names import is_hub_name
from maft_jax.runtime.json_files import read_json
from maft_jax.runtime.workdir import WEIGHTS_FILE

_SETTINGS = (
    "checkpoint",
    "model.pretrained",
    "model.modules",
    "generator.weights",
    "generator.backbone_weights",
)
"""Those of proposals are known by the content of the records that they made."""
_KNOWN = {"name", "pinned", "sha256"}


def read_named_weights(workdir: epath.Path) -> dict[str, Any]:
    """What `pin_weights` said when the run began; nothing where no name was given.

    Raises:
        ValueError: the file is damaged.
    """
    path = workdir / WEIGHTS_FILE
    named = read_json(path) if path.exists() else {}
    for setting, known in named.items():
        if not isinstance(known, dict) or not known.keys() >= _KNOWN:
            raise ValueError(
                f"{path}: {setting}: expected {', '.join(sorted(_KNOWN))}, got {known!r:.80}; "
                "delete the file, and give the name with the commit that config.json has"
            )
    return named


def pin_weights(config: Config, before: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The settings with commits for branches, and by setting what each name stands for.

    Of each name its "name" as it was given, the "pinned" one with a commit and "sha256" by file.

    Args:
        before: what this returned when the run began: the same name keeps its commit.

    Raises:
        ValueError: a name leads nowhere, or to files with other content than when the run began.
        OSError: it cannot be downloaded now.
    """
    named = {}
    for setting in _SETTINGS:
        section, _, field = setting.rpartition(".")
        owner = getattr(config, section) if section else config
        name = getattr(owner, field)
        if not is_hub_name(name):
            continue
        begun = before.get(setting, {})
        same = name in (begun.get("name"), begun.get("pinned"))
        fixed = begun["pinned"] if same else pinned(name)
        named[setting] = {"name": name, "pinned": fixed, "sha256": digests(fixed)}
        if same:
            _check_same_files(f"config.{setting}={name}", begun["sha256"], named[setting]["sha256"])
            named[setting]["name"] = begun["name"]
        owner = dataclasses.replace(owner, **{field: fixed})
        config = dataclasses.replace(config, **{section: owner}) if section else owner
    return config, named


def _check_same_files(where: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    if gone := sorted(before.keys() - now.keys()):
        raise ValueError(
            f"{where}: expected {', '.join(gone)}, too, with which this run began; connect to the "
            "network, so that it can be downloaded again"
        )
    for file in before:
        if before[file] != now[file]:
            raise ValueError(
                f"{where}: {file} has other content than when this run began: expected the SHA-256 "
                f"{before[file]}, got {now[file]}; give the weights that it began with, or a new "
                "--workdir"
            )
