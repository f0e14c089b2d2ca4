"""Files that appear whole or not at all."""

import contextlib
import io
import os
import uuid
from collections.abc import Iterator

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[epath.Path]:
    """Yields a neighbour of `path` to write to, which takes its name at the end.

    If writing fails, nothing is left and an older file of that name stays as it was.
    """
    path = epath.Path(path)
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"  # other hosts may write it, too
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def save_picture(path: epath.Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "png")
    atomic_write_bytes(path, content.getvalue())


def atomic_write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file so that it appears whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_bytes(content)
