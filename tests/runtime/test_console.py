"""What is printed: names cannot move the cursor, and a full disk is no reason for a traceback."""

import os
import subprocess
import sys

import pytest

from maft_jax.runtime.console import printable
from tests.runs import REPOSITORY

PROGRAM = """
import logging, sys
from maft_jax.runtime.console import failed, log_to_stderr
name = "cat\\x1b[2J\\x9b1m\\u202esofa"
failed(f"refused {name}", 2)
log_to_stderr()
log_to_stderr()
print(f"table\\t{name}")
logging.getLogger("maft_jax").info("reading %s", name)
logging.getLogger("maft_jax").exception("traceback", exc_info=ValueError(name))
raise ValueError(name)
"""


def test_escape_sequences_in_names_are_shown_as_text():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True
    )
    shown = r"cat\x1b[2J\x9b1m\u202esofa"
    assert done.stdout == f"table\t{shown}\n"
    assert done.stderr.count(shown) >= 4  # refused, reading, and the end of two tracebacks
    for text in (done.stdout, done.stderr):
        assert not set(text) & {"\x1b", "\x9b", "\u202e"}


def test_a_library_that_prints_no_names_may_draw():
    program = """
import sys
from maft_jax.runtime.console import drawing, log_to_stderr
log_to_stderr()
with drawing():
    print("\x1b[A", file=sys.stderr, end="")
print("\x1b[B", file=sys.stderr, end="")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stderr == "\x1b[A\\x1b[B"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_cannot_be_printed_is_a_failure_without_a_traceback(unbuffered):
    program = """
import sys
from maft_jax.runtime import console, stop_requests
console.log_to_stderr()
sys.exit(stop_requests.leave(console.run_and_report(lambda: print("a table"))))
"""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert "[Errno 28] No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr


@pytest.mark.parametrize("text", ["Übung, 中文, חתול", "a\tb\nc\r"])
def test_other_characters_stay(text):
    assert printable(text) == text
