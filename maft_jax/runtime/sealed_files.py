"""Caches with a SHA-256 behind their content, so that no damage passes for a value."""

import hashlib
import logging
import os

from etils import epath

from maft_jax.runtime.atomic_files import atomic_write_bytes

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


def _digest(content: bytes, key: bytes) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(content)
    return digest.digest()
