"""Files that appear whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[epath.Path]:
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
