"""Calls and programs that may never answer: drivers, network disks, names of hosts."""

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Answer(NamedTuple):
    """What a program printed; `code` is None where it was ended for want of an end."""

    code: int | None
    stdout: str
    stderr: str


def within(seconds: float, function: Callable[[], T], late: T) -> T:
    """What the function returns, or `late`; a thread that does not come back is left behind."""
    returned: list[T] = []
    thread = threading.Thread(target=lambda: returned.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    return returned[0] if returned else late


def answer_of(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> Answer:
    """Runs a program, and ends it and what it started if that takes longer.

    Raises:
        OSError: there is no such program.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )
        code = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.returncode = -signal.SIGKILL  # nobody waits for one that a driver holds
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Answer(code, *texts)
