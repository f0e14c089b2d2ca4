"""Files that appear whole or not at all."""

import contextlib
import fcntl
import io
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from input_pipeline.write_errors import naming


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[epath.Path]:
    """Yields a neighbour of `path` to write to, which takes its name at the end.

    If writing fails, nothing is left and an older file of that name stays as it was.

    Raises:
        OSError: the disk is full; names `path`, whatever else failed after that.
    """
    path = epath.Path(path)
    aside = path.parent / _aside_name(path.name)
    try:
        with naming(path), _marked_as_alive(aside):
            yield aside
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder beside `path`, which is none or empty, and takes its name at the end."""
    aside = path.parent / _aside_name(path.name)
    try:
        with naming(path), _marked_as_alive(aside, is_folder=True):
            yield aside
            os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(folder: str | os.PathLike, *names: str) -> None:
    """Removes what killed writers left in a folder, but not below it; what is being written stays.

    Args:
        names: only what was to have one of these names.
    """
    if "://" in str(folder):
        return  # a bucket has whole objects alone
    for path in pathlib.Path(folder).glob(".*"):
        aside = _ASIDE.fullmatch(path.name)
        if aside and (not names or aside[1] in names):
            _remove_unless_alive(path)


_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{8}", re.DOTALL)


def _aside_name(name: str) -> str:
    """Other hosts may write the same file, too."""
    return f".{name}.{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def _marked_as_alive(path: os.PathLike, is_folder: bool = False) -> Iterator[None]:
    """Creates it; the kernel takes the lock from a killed process.

    Without locks nobody is ever sure of it.
    """
    if "://" in str(path):
        yield
        return
    while True:
        descriptor = _created(path, is_folder)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # who clears leftovers was faster
    try:
        yield
    finally:
        os.close(descriptor)


def _created(path: os.PathLike, is_folder: bool) -> int:
    """A descriptor of a file or folder, which is made if it is not there."""
    if not is_folder:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    while True:
        pathlib.Path(path).mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # removed in between
            return os.open(path, os.O_RDONLY)


def _remove_unless_alive(path: pathlib.Path) -> None:
    """Holds the lock while it removes, so that no writer takes the name in between."""
    with contextlib.suppress(OSError):  # its writer lives, has just finished, or is another user
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def save_picture(path: epath.Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "png")
    atomic_write_bytes(path, content.getvalue())


def atomic_write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file so that it appears whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_bytes(content)
