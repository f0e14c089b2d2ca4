"""Errors of writing: whether a disk is full, and which file could not be written."""

import contextlib
import errno
import os
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Context of writing or reading a file, so that what the system says is told with its name.

    The system names the file where it cannot be opened, but not where it fails later. Of contexts
    inside each other the inner one, which knows better, gives its name.
    """
    try:
        yield
    except Exception as error:
        first = full_disk_behind(error) or error
        if not isinstance(first, OSError) or first.errno is None or first.filename is not None:
            raise
        raise OSError(first.errno, first.strerror, str(path)) from error


def full_disk_behind(error: BaseException | None) -> BaseException | None:
    """The first of the errors that led to this one, if it is that a disk or quota is full.

    What is closed afterwards fails as well, and in other ways. Libraries in C++ say it in words.
    """
    coded = worded = None
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            coded = error
        elif any(words in str(error) for words in _WORDS):
            worded = error
        error = error.__cause__ or error.__context__
    return coded or worded
