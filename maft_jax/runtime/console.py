"""What commands share: progress on stderr, and errors as short messages and exit codes."""

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging as absl_logging

from maft_jax.runtime import stop_requests
from maft_jax.runtime.command_names import as_called
from maft_jax.runtime.exit_codes import DONE, exit_code_of, message_of

_PACKAGES = ("maft_jax", "input_pipeline")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and the ends of lines; what turns the direction of text counts, too."""


class _HarmlessStream:
    """Prints control characters, which names of files and classes may hold, as their numbers.

    They would move the cursor, hide text or tell the terminal to do things.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable(text))

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def printable(text: str) -> str:
    """The text with its control characters as \\x1b and the like."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Lets a library move the cursor on stderr, to draw what it shows of its progress.

    For those that print no names of other people's.
    """
    kept = sys.stderr
    if isinstance(kept, _HarmlessStream):
        sys.stderr = kept.stream
    try:
        yield
    finally:
        sys.stderr = kept


def log_to_stderr() -> None:
    """Our own progress with the time of day; from libraries only what they warn about.

    From here on, nothing that is printed reaches the terminal with control characters in it.
    """
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), _HarmlessStream):
            setattr(sys, name, _HarmlessStream(stream))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or TensorFlow announces them
    absl_logging.set_verbosity(absl_logging.WARNING)
    _quiet_orbax()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def run_and_report(work: Callable[[], object]) -> int:
    """Calls `work`; what its caller can mend becomes a message on stderr and an exit code.

    0 done, 1 failed, 2 wrong input, 128 + signal when interrupted. Exceptions of ours other than
    ValueError and OSError say their code in `exit_code`.
    """
    try:
        stop_requests.check()
        work()
        stop_requests.check()
    except (Exception, KeyboardInterrupt, stop_requests.Stopped) as error:
        code = exit_code_of(error)
        if code is None:
            raise
        return failed(message_of(error), code)
    return DONE


def set_process_log_level(index: int) -> None:
    """Of several processes the first alone tells its progress, the others what they warn about."""
    if index == 0:
        return
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(logging.WARNING)
        for handler in logger.handlers:
            handler.setFormatter(
                logging.Formatter(f"%(asctime)s [process {index}] %(message)s", "%H:%M:%S")
            )


def failed(reason: Exception | str, code: int) -> int:
    """Prints why, where that can be printed, and returns the code."""
    with contextlib.suppress(OSError):
        print(printable(as_called(f"\n{reason}")), file=sys.stderr, flush=True)
    return code


def _quiet_orbax() -> None:
    """Its failures reach the loop, which explains them; its threads' own reports are long."""

    def report_thread_error(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("orbax"):
            threading.__excepthook__(error)

    threading.excepthook = report_thread_error
    for library in ("asyncio", "concurrent.futures"):  # its event loops end before their callbacks
        logging.getLogger(library).setLevel(logging.CRITICAL)
    absl_handler = absl_logging.get_absl_handler()
    absl_handler.addFilter(lambda record: "orbax" not in record.pathname)
