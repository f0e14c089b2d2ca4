"""What other programs and machines say, printed so that it cannot command the terminal."""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and the end of a line; what turns the direction of text counts, too."""


class _HarmlessStream:
    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(_CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text))

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def harmless_output() -> Iterator[None]:
    """Context in which control characters are printed as \\x1b and the like."""
    with (
        contextlib.redirect_stdout(_HarmlessStream(sys.stdout)),
        contextlib.redirect_stderr(_HarmlessStream(sys.stderr)),
    ):
        yield
