"""What a command's exit code and last message say about how it ended; see docs/many_hosts.md."""

import errno
import os

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))
_FREE_SPACE = "free some space; what was finished is kept, the same command goes on"


def exit_code_of(error: BaseException) -> int | None:
    """The code of an error that its message alone explains; None if it needs its traceback.

    Exceptions of ours other than ValueError and OSError say their code in `exit_code`.
    """
    if full_disk_behind(error) is not None:
        return FAILED
    if isinstance(error, ValueError):
        return WRONG_INPUT
    if isinstance(error, OSError):
        return FAILED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return getattr(error, "exit_code", None)


def message_of(error: BaseException) -> str:
    """What to print of an error that has an exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by SIGINT; what was finished is kept, the same command goes on"
    first = full_disk_behind(error)
    if first is None:
        return str(error)
    told = str(error) if str(first) in str(error) else f"{first}\n{error}"
    return told if "free some" in told else f"{told}\n{_FREE_SPACE}"


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
