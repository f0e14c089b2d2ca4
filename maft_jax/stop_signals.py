"""Ctrl-C and SIGTERM as requests: the loop finishes its step, saves, and leaves."""

import logging
import signal
import threading
import types

logger = logging.getLogger(__name__)


class TrainingInterrupted(Exception):
    """Raised once everything is saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, signal_number: int, step: int):
        saved = f"at step {step}, which is saved" if step else "before the first step"
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} {saved}; the same command goes on"
        )
        self.exit_code = 128 + signal_number


class EvaluationInterrupted(Exception):
    """Raised once what was counted is saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, signal_number: int, dataset: str, num_done: int, num_images: int):
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after {num_done} of {num_images} "
            f"images of {dataset}, which are saved; the same command goes on there"
        )
        self.exit_code = 128 + signal_number


class StopSignals:
    """Context in which SIGINT and SIGTERM set `received`; a second Ctrl-C stops at once."""

    def __init__(self):
        self.received: int | None = None
        self._before: dict = {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread alone
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: types.FrameType | None):
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        logger.warning(
            "%s: saving, then leaving (Ctrl-C again leaves at once)", signal.Signals(number).name
        )
