"""SIGINT and SIGTERM of a command: noted at once, looked at where it is safe to stop.

Nothing is raised where a signal happens to arrive: that may be in a callback of a library, whose
exceptions are printed and forgotten, or in the middle of an import. Python runs its own handlers
only once the main thread returns from C, where compiling keeps it for minutes; so a thread is told
of signals by the handler in C, and ends a process that reaches no safe point in time.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

SECONDS_TO_STOP = 10.0
"""From the signal, or from the end of `saving`, until the process is ended where it is."""
SECONDS_TO_SAVE = 600.0
"""The same inside of `saving`."""

_ONE_REQUEST_SECONDS = 0.3
"""Signals that come so close together are one request, such as a terminal's and a script's."""
_POLL_SECONDS = 0.1


class Stopped(BaseException):
    """A signal came and nothing was left to save; `exit_code` is 128 + its number.

    Like KeyboardInterrupt no Exception, so that nobody takes it for a failure.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; {_WHAT_IS_LEFT}")
        self.exit_code = 128 + number


_WHAT_IS_LEFT = "what was finished is kept, the same command goes on"


class _Requests:
    """What is known of signals in this process."""

    def __init__(self):
        self.to_watcher: int | None = None  # a file descriptor
        self.number: int | None = None
        self.arrived = threading.Event()
        self.num_saving = 0
        self.patience_ended = 0.0


_requests = _Requests()


def watch() -> None:
    """Notes signals from here to the end of the process: the first thing that a command does."""
    if is_watching():
        return
    reader, _requests.to_watcher = os.pipe()
    os.set_blocking(_requests.to_watcher, False)
    signal.set_wakeup_fd(_requests.to_watcher, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _tell_watcher)
    threading.Thread(target=_watch, args=(reader,), name="stop requests", daemon=True).start()


def is_watching() -> bool:
    """Whether this process is a command, whose signals are noted here."""
    return _requests.to_watcher is not None


def requested() -> int | None:
    """The number of the first signal, or None."""
    return _requests.number


def check() -> None:
    """A safe point: nothing is unfinished here but what the same command makes again.

    Raises:
        Stopped: a signal came, outside of `saving`.
    """
    if _requests.number is not None and not _requests.num_saving:
        raise Stopped(_requests.number)


def wait(seconds: float | None = None) -> None:
    """Sleeps until a signal comes.

    Raises:
        Stopped: it came.
    """
    _requests.arrived.wait(seconds)
    check()


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Context of a loop that asks for signals itself, to save what it has before it leaves.

    It has longer, and a second SIGTERM, which schedulers send, does not end it; Ctrl-C does.
    """
    _requests.num_saving += 1
    try:
        yield
    finally:
        _requests.num_saving -= 1
        _requests.patience_ended = time.monotonic()


def leave(code: int) -> NoReturn:
    """Ends a command as sys.exit does, but for the last part, in which signals are not noted.

    After a signal only what was printed is flushed: threads of libraries that were left in the
    middle of their work can hang or crash at exit. What cannot be printed, as to a full disk, is a
    failure, unless its reader has left, as `head` does.
    """
    if _requests.number is None:
        threading._shutdown()
        atexit._run_exitfuncs()
    _unlink_semaphores()
    if code == 0 and _requests.number is not None:
        code = 128 + _requests.number
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        _print(f"standard output: {error}")
        code = code or 1
    os._exit(code)


def _unlink_semaphores() -> None:
    """Those of multiprocessing have names, which outlive a process that ends without telling it.

    Its tracker, a process of its own, removes them then, and prints that they were leaked. Progress
    bars, pools of threads and pools of processes make them.
    """
    if "multiprocessing.synchronize" not in sys.modules:
        return
    from multiprocessing import synchronize, util

    for finalizer in list(util._finalizer_registry.values()):
        if finalizer._callback is synchronize.SemLock._cleanup:
            finalizer()


def _tell_watcher(number: int, frame: object) -> None:
    """In case a library had its own pipe for signals when this one came, as event loops do."""
    if _requests.number is None:
        with contextlib.suppress(OSError):
            os.write(_requests.to_watcher, bytes([number]))


def _watch(reader: int) -> None:
    while (first := _next(reader, None)) is None:
        pass
    noted = time.monotonic()
    _requests.number = first
    _requests.arrived.set()
    name = signal.Signals(first).name
    _print(f"{name}: stopping as soon as nothing is lost (Ctrl-C: at once)")
    while True:
        again = _next(reader, _POLL_SECONDS)
        now, saves = time.monotonic(), _requests.num_saving > 0
        ends = again == signal.SIGINT or (again == signal.SIGTERM and not saves)
        if ends and now > noted + _ONE_REQUEST_SECONDS:
            _end(first, f"stopped by {name} and {signal.Signals(again).name}, at once")
        patience = SECONDS_TO_SAVE if saves else SECONDS_TO_STOP
        if now > max(noted, 0 if saves else _requests.patience_ended) + patience:
            _end(first, f"stopped by {name}, after {patience:.0f} s without a place to stop at")


def _next(reader: int, seconds: float | None) -> int | None:
    """The next SIGINT or SIGTERM; None where none comes in time, or a signal of another kind."""
    if not select.select([reader], [], [], seconds)[0]:
        return None
    (number,) = os.read(reader, 1)
    return number if number in (signal.SIGINT, signal.SIGTERM) else None


def _end(number: int, why: str) -> NoReturn:
    _print(f"{why}; {_WHAT_IS_LEFT}")
    os._exit(128 + number)


def _print(text: str) -> None:
    """Past Python's buffers, whose locks the main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
