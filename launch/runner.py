"""Running other programs, telling the time, and saying what happens: all that tests replace."""

import contextlib
import dataclasses
import datetime
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Protocol

from launch import interruptions

_POLL_SECONDS = 0.1


class LaunchError(RuntimeError):
    """Launching failed; the message says what to do."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Completed:
    """What a program left behind."""

    exit_code: int
    stdout: str = ""
    stderr: str = ""


class Runner(Protocol):
    """Runs programs of which each argument list may be seen by anyone: secrets go into `stdin`."""

    def run(self, argv: Sequence[str], *, stdin: str = "", timeout: float = 600) -> Completed:
        """Runs a program to its end; exit code 124 when it took longer than `timeout` seconds."""

    def run_all(self, argvs: Sequence[Sequence[str]], *, timeout: float = 600) -> list[Completed]:
        """Runs programs at the same time."""

    def show(self, argv: Sequence[str]) -> int:
        """Runs a program on the user's terminal and returns its exit code."""

    def write(self, path: pathlib.Path, content: bytes) -> None:
        """Writes a local file, and its folder."""


class SubprocessRunner:
    """Runs programs for real."""

    def run(self, argv: Sequence[str], *, stdin: str = "", timeout: float = 600) -> Completed:
        return self._run_all([argv], stdin, timeout)[0]

    def run_all(self, argvs: Sequence[Sequence[str]], *, timeout: float = 600) -> list[Completed]:
        return self._run_all(argvs, "", timeout)

    def _run_all(
        self, argvs: Sequence[Sequence[str]], stdin: str, timeout: float
    ) -> list[Completed]:
        deadline = time.monotonic() + timeout
        with contextlib.ExitStack() as stack:
            started = [_start(argv, stdin, stack) for argv in argvs]
            return [_finish(process, *files, deadline, timeout) for process, *files in started]

    def show(self, argv: Sequence[str]) -> int:
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise _missing(argv) from error
        try:
            return _wait(process, float("inf"))
        finally:
            process.kill()
            process.wait()

    def write(self, path: pathlib.Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _start(
    argv: Sequence[str], stdin: str, stack: contextlib.ExitStack
) -> tuple[subprocess.Popen, IO[bytes], IO[bytes]]:
    """Output goes to files: nobody reads several pipes at once."""
    given, out, err = (stack.enter_context(_temporary_file()) for _ in range(3))
    given.write(stdin.encode())
    given.seek(0)
    try:
        process = subprocess.Popen(argv, stdin=given, stdout=out, stderr=err)
    except FileNotFoundError as error:
        raise _missing(argv) from error
    stack.callback(process.wait)
    stack.callback(process.kill)  # comes first, and does nothing to one that has ended
    return process, out, err


@contextlib.contextmanager
def _temporary_file() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file


def _finish(
    process: subprocess.Popen, out: IO[bytes], err: IO[bytes], deadline: float, timeout: float
) -> Completed:
    try:
        exit_code = _wait(process, deadline)
        exit_code = 128 - exit_code if exit_code < 0 else exit_code  # as a shell has it
        note = ""
    except subprocess.TimeoutExpired:
        exit_code, note = 124, f"no answer within {timeout:.0f} s"
    texts = []
    for file in (out, err):
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
    return Completed(exit_code, texts[0], texts[1] + note)


def _wait(process: subprocess.Popen, deadline: float) -> int:
    """The exit code, as subprocess has it.

    Raises:
        Interrupted: a signal came, which may also be why the program ended.
        subprocess.TimeoutExpired: the deadline passed.
    """
    while True:
        interruptions.check()
        left = max(0.0, deadline - time.monotonic())
        with contextlib.suppress(*[subprocess.TimeoutExpired] if left > _POLL_SECONDS else []):
            exit_code = process.wait(min(left, _POLL_SECONDS))
            interruptions.check()
            return exit_code


_INSTALL = {
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "kubectl": "https://kubernetes.io/docs/tasks/tools/",
    "xpk": "pip install xpk",
    "git": "https://git-scm.com",
}


def _missing(argv: Sequence[str]) -> LaunchError:
    hint = f": {_INSTALL[argv[0]]}" if argv[0] in _INSTALL else ""
    return LaunchError(f"{argv[0]} is not installed, or not on PATH{hint}")


def shell_line(argv: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(argv)


class Clock:
    """The time of this machine."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits.

        Raises:
            Interrupted: a signal came.
        """
        end = time.monotonic() + seconds
        interruptions.check()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
            interruptions.check()


class Progress:
    """Lines on stderr with the time of day and the time since the start."""

    def __init__(self, clock: Clock, repeat_seconds: float = 600):
        self._clock = clock
        self._started = clock.now()
        self._repeat_seconds = repeat_seconds
        self._last, self._last_at = "", 0.0

    def say(self, message: str) -> None:
        """Prints a line."""
        elapsed = datetime.timedelta(seconds=int(self._clock.now() - self._started))
        now = datetime.datetime.now().strftime("%H:%M:%S")
        print(f"{now} [{elapsed}] {message}", file=sys.stderr, flush=True)

    def say_if_new(self, message: str) -> None:
        """Prints a line unless the last one of these was the same; then only now and again."""
        now = self._clock.now()
        if message != self._last or now - self._last_at >= self._repeat_seconds:
            self.say(message)
            self._last, self._last_at = message, now
