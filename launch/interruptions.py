"""SIGINT and SIGTERM: noted when they come, raised where the launcher waits.

Raised anywhere else they might be lost in a callback, or leave unsaid what goes on costing.
"""

import signal
import types


class Interrupted(BaseException):
    """SIGINT or SIGTERM came."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


_noted: list[int] = []


def note_signals() -> None:
    """From here to the end of the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _note)


def check() -> None:
    """Raises Interrupted if a signal came since the last time that it was raised."""
    if _noted:
        number = _noted[0]
        _noted.clear()
        raise Interrupted(number)


def _note(number: int, frame: types.FrameType | None) -> None:
    _noted.append(number)
