"""What a result was computed with."""

import importlib.metadata
import pathlib
import platform
import subprocess

import jax

_PACKAGES = (
    "maft_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow",
    "tensorflow-cpu",
    "numpy",
)


def versions() -> dict[str, str | None]:
    """Packages, Python, devices and the git revision of this code, for provenance."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    found["git_revision"] = _git_revision()
    return found


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
