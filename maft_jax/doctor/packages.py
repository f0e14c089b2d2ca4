"""Installed packages beside what this one asks for, by its own metadata."""

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any

OWN = "maft_jax"


def required_packages() -> list[dict[str, Any]]:
    """Name, wanted versions, the installed one or None, and whether that fits, of each.

    Raises:
        ImportError: maft_jax or packaging is not installed.
    """
    return [
        {
            "name": wanted.name,
            "wanted": str(wanted.specifier),
            "installed": _installed(wanted.name),
            "fits": not _missing(wanted),
        }
        for wanted in _requirements(OWN)
    ]


def extras() -> dict[str, list[str]]:
    """What each extra still lacks, by its name.

    Raises:
        ImportError: maft_jax or packaging is not installed.
    """
    names = importlib.metadata.metadata(OWN).get_all("Provides-Extra") or []
    return {
        extra: [lacking for wanted in found for lacking in _missing(wanted)]
        for extra in names
        if (found := list(_requirements(OWN, extra)))
    }


def _requirements(package: str, extra: str = "") -> Iterator:
    """Of the package itself, or of its extra alone, on this machine."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires(package) or []:
        wanted = Requirement(text)
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if always != bool(extra) and (always or wanted.marker.evaluate({"extra": extra})):
            yield wanted


def _missing(wanted) -> list[str]:
    """The requirement if it is not met, and what its own extras lack."""
    version = _installed(wanted.name)
    if version is None or not wanted.specifier.contains(version, prereleases=True):
        return [f"{wanted.name}{wanted.specifier}"]
    return [
        lacking
        for extra in wanted.extras
        for further in _requirements(wanted.name, extra)
        for lacking in _missing(further)
    ]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(re.sub(r"[-_.]+", "-", name))
    except importlib.metadata.PackageNotFoundError:
        return None
