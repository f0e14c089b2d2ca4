"""Python, the operating system, cores, memory and disks, with what a container leaves of them."""

import os
import pathlib
import platform
import re
import shutil
import tempfile
from typing import Any

from maft_jax.doctor.bounded import answer_of, within

_SECONDS = 5.0
"""For a disk or a driver to answer."""


def system(root: str = "/") -> dict[str, Any]:
    """Versions, usable cores, and bytes of memory; what cannot be told is None."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": usable,
        "cores_of_machine": os.cpu_count(),
        "cores_of_container": _core_limit(root),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "memory_of_container": _memory_limit(root),
        "shared_memory": _size(f"{root}/dev/shm"),
    }


def _control_files(root: str, name: str) -> list[str]:
    """Contents of a file of this process's control group and of those above it (version 2)."""
    try:
        groups = pathlib.Path(root, "proc/self/cgroup").read_text()
    except OSError:
        return []
    base, found = pathlib.Path(root, "sys/fs/cgroup"), []
    (own,) = re.findall(r"^0::/(.*)$", groups, re.MULTILINE) or [""]
    for folder in (base / own, *(base / own).parents):
        if folder.is_relative_to(base) and (folder / name).is_file():
            found.append((folder / name).read_text().strip())
    return found


def _memory_limit(root: str) -> int | None:
    limits = [int(text) for text in _control_files(root, "memory.max") if text.isdecimal()]
    return min(limits, default=None)


def _core_limit(root: str) -> float | None:
    shares = [text.split() for text in _control_files(root, "cpu.max")]
    return min(
        (int(quota) / int(period) for quota, period in shares if quota.isdecimal()), default=None
    )


def _size(folder: str) -> int | None:
    return shutil.disk_usage(folder).total if os.path.isdir(folder) else None


def nvidia_cards(root: str = "/") -> list[str]:
    """Names of NVIDIA cards, of the driver and of their memory, whether or not jax uses them."""
    try:
        query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        answer = answer_of(["nvidia-smi", *query], _SECONDS)
        if answer.code == 0:
            return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    except OSError:
        pass
    files = pathlib.Path(root, "proc/driver/nvidia/gpus").glob("*/information")
    models = [re.findall(r"^Model:\s*(.*)$", file.read_text(), re.MULTILINE) for file in files]
    return [", ".join(model) for model in models]


def folder(path: str) -> dict[str, Any]:
    """Free bytes where a folder is or would be made, and whether it can be written."""
    late = {"free": None, "writable": False, "problem": f"no answer in {_SECONDS:.0f} s"}
    return {"path": path} | within(_SECONDS, lambda: _look_at(path), late)


def _look_at(path: str) -> dict[str, Any]:
    try:
        there = pathlib.Path(path).absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return {"free": None, "writable": False, "problem": error.strerror or str(error)}
    return {"free": free, "writable": True, "problem": None}
