"""All that is found out about a machine, and what follows from it."""

import os
import sys
import tempfile
from typing import Any

from maft_jax.doctor import devices, machine, packages
from maft_jax.doctor.hub import hub_is_forbidden, hub_state
from maft_jax.runtime.absent_tpu import tpu_may_be_attached

GB = 1e9
_OLDEST_PYTHON = (3, 11)
_DECIDING = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS")
"""Of the environment, what decides which devices there are."""


def examine(folders: list[str], offline: bool) -> dict[str, Any]:
    """Facts by section, and two lists of sentences: what cannot work, and what is worth knowing.

    Args:
        folders: where data lies, besides what is looked at anyway.
        offline: nothing is asked over the network.
    """
    found: dict[str, Any] = {
        "system": machine.system(),
        "environment": {name: os.environ[name] for name in _DECIDING if name in os.environ},
        "cards": machine.nvidia_cards(),
        "tpu_attached": tpu_may_be_attached(),
        "jax": devices.jax_devices(),
        "folders": {name: machine.folder(path) for name, path in _folders(folders).items()},
        "hub": "not asked" if offline or hub_is_forbidden() else hub_state(),
    }
    try:
        found["packages"], found["extras"] = packages.required_packages(), packages.extras()
        found["metadata"] = None
    except ImportError as error:
        found["packages"], found["extras"] = [], {}
        found["metadata"] = f"what is required is not known: {error}"
    found["cannot_work"] = _cannot_work(found)
    found["worth_knowing"] = [*_about_devices(found), *_about_the_rest(found)]
    return found


def _folders(given: list[str]) -> dict[str, str]:
    home = os.path.expanduser("~")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    named = {
        "working folder": ".",
        "records, texts": os.path.join(cache, "maft_jax"),
        "weights of hubs": os.environ.get("HF_HOME") or os.path.join(cache, "huggingface"),
        "temporary files": tempfile.gettempdir(),
    }
    if compiled := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        named["compiled programs"] = compiled
    return named | {f"data {i}": path for i, path in enumerate(given, start=1)}


def _cannot_work(found: dict[str, Any]) -> list[str]:
    said = []
    if sys.version_info < _OLDEST_PYTHON:
        said.append(f"Python {found['system']['python']}: expected 3.11 or newer")
    for package in found["packages"]:
        if package["installed"] is None:
            said.append(f"{package['name']} is not installed; pip install 'maft_jax[cpu]' again")
    if (problem := found["jax"]["problem"]) is not None:
        said.append(f"jax finds no device: {problem}")
    return said


def _about_devices(found: dict[str, Any]) -> list[str]:
    seen, said = found["jax"]["devices"], []
    platforms = {device["platform"] for device in seen}
    complaint = "".join(f"; it says: {line}" for line in found["jax"]["said"])
    deciding = "".join(f"; {name}={value}" for name, value in found["environment"].items())
    for attached, platform, extra in (
        (bool(found["cards"]), "gpu", "cuda"),
        (found["tpu_attached"], "tpu", "tpu"),
    ):
        if attached and platform not in platforms:
            lacking = found["extras"].get(extra, [])
            what = f"pip install 'maft_jax[{extra}]'" if lacking else f"see its driver{complaint}"
            said.append(f"a {platform.upper()} is here and jax does not use it: {what}{deciding}")
    if platforms == {"cpu"}:
        said.append(
            "jax runs on the CPU: enough for the demonstration, prediction and tiny models; a "
            "training step of ViT-B/16 takes seconds an image there (docs/benchmark.md)"
        )
    for device in seen:
        capability = device["compute_capability"]
        if device["platform"] == "gpu" and capability and float(capability) < 8:
            said.append(
                f"{device['kind']}: older than Ampere, attention is XLA's, slower and with more "
                "memory than cuDNN's, and bfloat16 is not its own; try compute_dtype=float32"
            )
    return list(dict.fromkeys(said))


def _about_the_rest(found: dict[str, Any]) -> list[str]:
    system, said = found["system"], []
    cores = min(system["cores"], system["cores_of_container"] or system["cores"])
    if cores < system["cores"]:
        said.append(f"the container has {cores:g} cores' time for {system['cores']} cores")
    if cores < 4 and {device["platform"] for device in found["jax"]["devices"]} - {"cpu"}:
        said.append(
            "few cores: each makes some 40 training images a second, which may be the limit"
        )
    if min(system["memory"], system["memory_of_container"] or system["memory"]) < 4 * GB:
        said.append("less than 4 GB of memory: ViT-B/16 takes 1.5 to evaluate, and more to train")
    if "compiled programs" not in found["folders"]:
        said.append(
            "JAX_COMPILATION_CACHE_DIR is not set: every start compiles its programs again, "
            "a minute or so for a training step"
        )
    for package in found["packages"]:
        if package["installed"] is not None and not package["fits"]:
            said.append(
                f"{package['name']} {package['installed']}: known to work is {package['wanted']}"
            )
    if found["metadata"]:
        said.append(found["metadata"])
    for name, folder in found["folders"].items():
        if folder["problem"]:
            said.append(f"{name}, {folder['path']}: not writable ({folder['problem']})")
        elif folder["free"] < 5 * GB:
            said.append(f"{name}, {folder['path']}: {folder['free'] / GB:.1f} GB free")
    return said
