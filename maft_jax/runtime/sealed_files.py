"""Caches with a SHA-256 behind their content, so that no damage passes for a value."""

import hashlib
import json
import logging
import os
from typing import Any

from etils import epath

from maft_jax.runtime.atomic_files import atomic_write_bytes
from maft_jax.runtime.json_files import read_json

SEAL = "sha256"
"""Entry of a JSON document: the digest of the others."""
_DIGEST_BYTES = hashlib.sha256().digest_size

logger = logging.getLogger(__name__)


def write_sealed(path: str | os.PathLike, content: bytes, key: bytes = b"") -> None:
    """Writes content and seal, whole or not at all; most readers of the content pass over the seal.

    Args:
        key: what the content belongs to, so that a file under another one's name does not pass.
    """
    atomic_write_bytes(epath.Path(path), content + _digest(content, key))


def read_sealed(path: str | os.PathLike, key: bytes = b"") -> bytes | None:
    """The content; None where there is no such file, or, logged, where its seal does not match.

    What versions without seals wrote counts as corrupt: to compute it again is always right.
    """
    try:
        whole = epath.Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    content, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if digest == _digest(content, key):
        return content
    logger.warning("%s is corrupt, or of a version that sealed nothing; computing it again", path)
    return None


def write_sealed_json(path: str | os.PathLike, document: dict[str, Any]) -> dict[str, Any]:
    """Writes a document that people can read, too; returns it as it will be read.

    Its seal, which is one of its entries, belongs to the file's name as well.
    """
    document = json.loads(json.dumps(document))  # tuples are lists, keys are texts
    sealed = document | {SEAL: json_digest(document, _name(path))}
    atomic_write_bytes(epath.Path(path), (json.dumps(sealed, indent=1) + "\n").encode())
    return document


def read_sealed_json(path: str | os.PathLike) -> dict[str, Any] | None:
    """The document without its seal; None as `read_sealed`."""
    if not epath.Path(path).exists():
        return None
    try:
        document = read_json(path)
        if document.pop(SEAL, None) == json_digest(document, _name(path)):
            return document
        problem = f"{path} is corrupt, was edited, or is of a version that sealed nothing"
    except ValueError as error:
        problem = str(error)
    logger.warning("%s; computing it again", problem)
    return None


def json_digest(document: dict[str, Any], key: bytes = b"") -> str:
    """Of key and document, whatever the order and the white space of its file."""
    return _digest(json.dumps(document, sort_keys=True).encode(), key).hex()


def _name(path: str | os.PathLike) -> bytes:
    return epath.Path(path).name.encode()


def _digest(content: bytes, key: bytes) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(content)
    return digest.digest()
