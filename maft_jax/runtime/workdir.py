"""The folder of a run: checked before anything is computed, and told what the run is."""

import dataclasses
import json
import logging
import pathlib
import secrets
import shutil
import time
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from maft_jax.config import Config, config_of_run
from maft_jax.config.fields import with_absolute_paths
from maft_jax.runtime import consensus
from maft_jax.runtime.atomic_files import atomic_write_bytes
from maft_jax.runtime.json_files import read_json
from maft_jax.runtime.versions import versions

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
VERSIONS_FILE = "versions.json"
WEIGHTS_FILE = "weights.json"
_SECONDS_UNTIL_SEEN = 10.0


def make_writable(folder: epath.Path, setting: str) -> None:
    """Creates a folder if need be.

    Raises:
        ValueError: it cannot be created or written; `setting` is named.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        raise ValueError(
            f"{setting}={folder}: cannot write there ({error}); choose another folder"
        ) from error


def check_shared(workdir: epath.Path) -> None:
    """Refuses a folder of which the hosts have one each: checkpoints need a common one.

    Every process must call this.

    Raises:
        ValueError: a process does not see what the first one wrote.
    """
    if jax.process_count() == 1:
        return
    nonce = int(consensus.broadcast_from_first(np.int64(secrets.randbits(62))))
    probe = workdir / f".shared.{nonce:x}"
    first = jax.process_index() == 0
    with consensus.fail_together():
        if first:
            probe.write_text("")
    problem = None if first or _appears(probe) else "the first process's file is not there"
    problem = consensus.any_problem(problem)
    if first:
        probe.unlink(missing_ok=True)
    with consensus.fail_together():
        if problem is not None:
            raise ValueError(
                f"--workdir={workdir}: expected a folder that all hosts share, such as gs://... or "
                f"one on NFS ({problem}); checkpoints of several hosts need one"
            )


def _appears(path: epath.Path) -> bool:
    """Network file systems may show a new file seconds later."""
    give_up = time.monotonic() + _SECONDS_UNTIL_SEEN
    while not path.exists():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.2)
    return True


def describe_run(workdir: epath.Path, config: Config, named_weights: Mapping | None = None) -> None:
    """Writes config.json and versions.json; reports what differs from an earlier start.

    Paths are written as absolute ones: a run is also used from other working directories. What
    names of the hub stand for goes into weights.json, if there are any.
    """
    resolved = with_absolute_paths(Config, dataclasses.asdict(config))
    if (workdir / CONFIG_FILE).exists():
        try:
            before = dataclasses.asdict(config_of_run(read_json(workdir / CONFIG_FILE)))
            _report_changes(with_absolute_paths(Config, before), resolved)
        except ValueError as error:
            logger.warning(
                "%s: %s; what changed is not known, and the file is written again", workdir, error
            )
    _write_json(workdir / CONFIG_FILE, resolved)
    _write_json(workdir / VERSIONS_FILE, versions())
    if named_weights:
        _write_json(workdir / WEIGHTS_FILE, named_weights)


def check_free_space(workdir: epath.Path, num_bytes: int) -> None:
    """Refuses a local disk that cannot hold what the run is going to write.

    Raises:
        OSError: says how much is needed and how much there is.
    """
    if "://" in str(workdir):
        return
    written = pathlib.Path(workdir, "checkpoints").rglob("*")
    num_bytes -= sum(path.stat().st_size for path in written)  # these will be replaced
    free = shutil.disk_usage(workdir).free
    if free < num_bytes:
        raise OSError(
            f"--workdir={workdir}: {free / 2**20:,.0f} MiB free, but checkpoints and tuned weights "
            f"need {num_bytes / 2**20:,.0f} MiB; free some space, choose another folder or keep "
            "fewer (config.checkpointing)"
        )


_LEFT_OPEN = {"config.model.compute_dtype": "auto", "config.mesh.data": -1}
"""What earlier versions wrote of settings that the devices decide: nobody has changed these."""


def _report_changes(before: dict, now: dict, where: str = "config") -> None:
    for key, new in now.items():
        old, name = before[key], f"{where}.{key}"
        if isinstance(new, dict):
            _report_changes(old, new, name)
        elif old != new and old != _LEFT_OPEN.get(name):
            logger.warning("%s was %r when this run began, now %r", name, old, new)


def _write_json(path: epath.Path, value) -> None:
    atomic_write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())
