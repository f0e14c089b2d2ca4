"""One writer for a folder: who comes second is told who is there, or waits."""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import shlex
import socket
import sys
from collections.abc import Iterator

from input_pipeline.write_errors import naming
from maft_jax.runtime import stop_requests
from maft_jax.runtime.atomic_files import clear_leftovers

LOCK_FILE = ".writer"

_POLL_SECONDS = 0.5
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

logger = logging.getLogger(__name__)


class FolderInUse(OSError):
    """Another process writes to the folder; says which one and since when."""


@contextlib.contextmanager
def only_writer(
    folder: str | os.PathLike, setting: str, *, wait: bool = False, part: str = ""
) -> Iterator[None]:
    """Context that one process at a time is in, of all hosts that share the disk.

    What killed writers left in the folder is removed at its beginning.

    The kernel holds the lock for the process, so that nothing remains of a killed one; for network
    disks their server does. Buckets have no locks: there nothing is refused. Who must not write
    to the folder needs none.

    Args:
        setting: names the folder in messages, such as --workdir.
        wait: for the end of another process, instead of refusing.
        part: of the folder's content, where others may write the rest.

    Raises:
        FolderInUse: another process is in it.
        Stopped: a signal came while waiting.
    """
    if "://" in str(folder) or (os.path.isdir(folder) and not os.access(folder, os.W_OK)):
        yield
        return
    path = pathlib.Path(folder, LOCK_FILE + part)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while (descriptor := _lock(path)) is None:
        in_use = f"{setting}={folder}: {_describe_holder(path)} writes there"
        if not wait:
            raise FolderInUse(
                f"{in_use}; wait for its end (maft_jax.main does with --wait), stop it, or choose "
                f"another folder. If that host is gone and its lock is not, delete {path}"
            )
        if not told:
            logger.warning("%s; waiting for its end", in_use)
            told = True
        stop_requests.wait(_POLL_SECONDS)
    try:
        with naming(path):
            path.write_text(json.dumps(_holder()))
        clear_leftovers(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: pathlib.Path) -> int | None:
    """A descriptor of the file, locked while it is open; None where another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning(
                "%s: this disk has no locks (%s); see to it that one run writes there", path, error
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # of a file that its former holder has removed meanwhile


def _holder() -> dict:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
        "command": shlex.join(sys.orig_argv),
    }


def _describe_holder(path: pathlib.Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return (
            f"process {holder['process']} on {holder['host']} ({holder['command']}), since "
            f"{holder['since']},"
        )
    except (OSError, ValueError, KeyError, TypeError):  # it has come or gone this moment
        return "another process"
