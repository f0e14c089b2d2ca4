"""A page of plain text to paste into a report, without names of people and their folders."""

import getpass
import os
import re
import textwrap
from collections import Counter
from typing import Any

from maft_jax.doctor.examination import GB

_WIDTH = 100


def without_names(value: Any) -> Any:
    """Strings, in lists and dictionaries too, in which a home is ~ and no user is named."""
    if isinstance(value, dict):
        return {key: without_names(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_names(part) for part in value]
    if not isinstance(value, str):
        return value
    home = os.path.expanduser("~")
    if len(home) > 1:
        value = re.sub(re.escape(home) + r"(?![\w.-])", "~", value)
    value = re.sub(r"/(home|Users)/[^/\s'\":;,]+", "~", value)
    return re.sub(rf"(?<=/){re.escape(_user())}(?![\w.-])", "USER", value)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return "USER"


def format_page(found: dict[str, Any]) -> str:
    """The page of what `examine` found."""
    system = found["system"]
    cores = f"{system['cores']} usable of {system['cores_of_machine']}"
    if system["cores_of_container"]:
        cores += f", time of {system['cores_of_container']:g} in this container"
    memory = _bytes(system["memory"])
    if system["memory_of_container"]:
        memory += f", {_bytes(system['memory_of_container'])} in this container"
    lines = [
        f"maft_jax {found['maft_jax']}, Python {system['python']}, {system['system']}",
        f"cores: {cores}; memory: {memory}; /dev/shm: {_bytes(system['shared_memory'])}",
        f"NVIDIA cards: {'; '.join(found['cards']) or 'none'}",
        f"devices of jax: {_devices(found['jax'])}",
        *(f"{name}={value}" for name, value in found["environment"].items()),
        f"hub: {found['hub']}",
        *(_folder(name, folder) for name, folder in found["folders"].items()),
        f"packages (known to work): {_packages(found['packages'])}",
        f"extras: {_extras(found['extras'])}",
        "",
        "cannot work:" if found["cannot_work"] else "nothing that cannot work",
        *(f"* {sentence}" for sentence in found["cannot_work"]),
        "worth knowing:" if found["worth_knowing"] else "nothing else to note",
        *(f"* {sentence}" for sentence in found["worth_knowing"]),
    ]
    return "\n".join(
        textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        for line in lines
    )


def _bytes(number: int | None) -> str:
    return "unknown" if number is None else f"{number / GB:.1f} GB"


def _devices(jax: dict[str, Any]) -> str:
    if jax["problem"]:
        return f"none ({jax['problem']})"
    kinds = Counter(
        device["kind"] + (f" with {_bytes(device['memory'])}" if device["memory"] else "")
        for device in jax["devices"]
    )
    return ", ".join(f"{number} x {kind}" for kind, number in kinds.items())


def _folder(name: str, folder: dict[str, Any]) -> str:
    state = folder["problem"] or f"{_bytes(folder['free'])} free, writable"
    return f"{name}: {folder['path']}: {state}"


def _packages(packages: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{package['name']} {package['installed'] or 'MISSING'}"
        + (f" ({package['wanted']})" if package["wanted"] else "")
        for package in packages
    )


def _extras(extras: dict[str, list[str]]) -> str:
    there = [name for name, lacking in extras.items() if not lacking]
    others = [
        f"{name} lacks {', '.join(lacking[:3])}{' ...' if lacking[3:] else ''}"
        for name, lacking in extras.items()
        if lacking
    ]
    return "; ".join([", ".join(there) or "none whole", *others])
