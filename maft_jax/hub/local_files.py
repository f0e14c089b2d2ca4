"""The one place where a name of weights becomes a path on this machine."""

import os
import pathlib

from maft_jax.hub.hugging_face import Fetched, fetch
from maft_jax.hub.names import HF, is_hub_name, parse_hub_name
from maft_jax.hub.openai_files import fetch_openai, sha256_of


def local_path(source: str) -> str:
    """The path of hf:OWNER/NAME or openai:MODEL, downloaded once; any other source as it is.

    Raises:
        ValueError: such a name leads nowhere.
        OSError: it cannot be downloaded now.
    """
    if not is_hub_name(source):
        return source
    return os.fspath(_fetch(source).path if source.startswith(HF) else fetch_openai(source))


def pinned(source: str) -> str:
    """The name with the commit that it stands for here, which always means the same weights.

    Raises:
        ValueError, OSError: as `local_path`.
    """
    return str(_fetch(source).name) if source.startswith(HF) else source


def digests(source: str) -> dict[str, str]:
    """SHA-256 by file of what a name stands for; none of anything that is no such name.

    Raises:
        ValueError, OSError: as `local_path`, and where the client's cache is damaged.
    """
    if not is_hub_name(source):
        return {}
    if source.startswith(HF):
        return {name: _digest(path) for name, path in _fetch(source).files.items()}
    path = fetch_openai(source)
    return {path.name: _digest(path)}


def _fetch(source: str) -> Fetched:
    return fetch(parse_hub_name(source))


def _digest(path: pathlib.Path) -> str:
    """Compared with the name of a large file in the client's cache, which is its SHA-256."""
    digest, blob = sha256_of(path), path.resolve().name
    if len(blob) == len(digest) and blob != digest:
        raise OSError(
            f"{path}: damaged: its SHA-256 is {digest}, and that of the hub's file {blob}; delete "
            f"{path.resolve()}, it will be downloaded again"
        )
    return digest
