"""Ctrl-C and SIGTERM as requests: the loop finishes its step, saves, and leaves.

Of several processes all save the same step, whichever of them got the signal.
"""

import contextlib
import logging
import signal
import threading
import types

import jax

from maft_jax.runtime import stop_requests
from maft_jax.runtime.consensus import SharedMaximum

logger = logging.getLogger(__name__)


class TrainingInterrupted(Exception):
    """Raised once everything is saved; `exit_code` is 128 + the signal's number."""

    raised_everywhere = True

    def __init__(self, signal_number: int, step: int):
        saved = f"at step {step}, which is saved" if step else "before the first step"
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} {saved}; the same command goes on"
        )
        self.exit_code = 128 + signal_number


class EvaluationInterrupted(Exception):
    """Raised once what was counted is saved; `exit_code` is 128 + the signal's number."""

    raised_everywhere = True

    def __init__(self, signal_number: int, dataset: str, num_done: int, num_images: int):
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after {num_done} of {num_images} "
            f"images of {dataset}, which are saved; the same command goes on there"
        )
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class StopSignals:
    """Context of a loop that asks for signals after each of its steps or batches.

    In a command `stop_requests` has noted them; elsewhere this notes SIGINT and SIGTERM, and a
    second Ctrl-C stops at once. Several processes leave together, however long that takes.
    """

    def __init__(self):
        self._received: int | None = None
        self._before: dict = {}
        self._patience = contextlib.ExitStack()
        self._shared: SharedMaximum | None = None
        self._agreed: int | None = None

    def __enter__(self):
        if jax.process_count() > 1:
            self._patience.enter_context(stop_requests.saving())
        in_main_thread = threading.current_thread() is threading.main_thread()
        if stop_requests.is_watching() or not in_main_thread:
            return self  # Python delivers signals to the main thread alone
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception):
        self._patience.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> int | None:
        """The signal at which all processes stop now, or None.

        Every process must ask equally often, after each of its steps or batches. One process alone
        knows of its signal at once, several of each other's consensus.RUN_AHEAD calls later.
        """
        received = self._received or stop_requests.requested()
        if jax.process_count() == 1:
            return received
        if self._agreed is None:
            self._shared = self._shared or SharedMaximum()
            self._agreed = self._shared.put(received or 0) or None
        return self._agreed

    def _request(self, number: int, frame: types.FrameType | None):
        if self._received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        logger.warning(
            "%s: saving, then leaving (Ctrl-C again leaves at once)", signal.Signals(number).name
        )
