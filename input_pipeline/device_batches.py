"""From the batches of each process to global arrays on the devices of all processes."""

import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import jax
import numpy as np

_POLL_SECONDS = 0.001


class GlobalBatches(Iterator[dict[str, jax.Array]]):
    """Batches as global arrays, `prefetch` of them on their way ahead of the reader.

    Each process passes its own rows; `sharding` spreads the first axis over the devices. A thread
    takes the batches and sends them off. An exception of `batches` reaches the reader unchanged.

    `seconds_waited` is the time in which the devices had nothing to do for want of data; see
    `next_during`.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, np.ndarray]],
        sharding: jax.sharding.Sharding,
        prefetch: int = 2,
    ):
        self.seconds_waited = 0.0
        self._batches = batches
        self._sharding = sharding
        self._thread = ThreadPoolExecutor(1, "global-batches")
        self._in_flight: deque[Future] = deque()
        self._close = weakref.finalize(self, self._thread.shutdown, cancel_futures=True)
        for _ in range(max(1, prefetch)):
            self._send()

    def __next__(self) -> dict[str, jax.Array]:
        """The next batch; all the time until it is there counts as waited."""
        return self.next_during(None)

    def next_during(self, running: jax.Array | None) -> dict[str, jax.Array]:
        """The next batch, while the devices compute `running`, a result of the last step.

        Steps are dispatched without waiting for them, so that the program often asks for a batch
        that it needs much later. Only time in which `running` is done and the batch is not there
        counts as waited.
        """
        if not self._in_flight:
            raise StopIteration
        future = self._in_flight.popleft()
        asked = time.monotonic()
        while running is not None and not running.is_ready() and not future.done():
            wait([future], timeout=_POLL_SECONDS)
            asked = time.monotonic()
        try:
            batch = future.result()
        finally:
            self.seconds_waited += time.monotonic() - asked
        self._send()
        return batch

    def close(self) -> None:
        """Ends the threads; the batches on their way are lost."""
        self._close()
        self._batches = iter(())

    def _send(self) -> None:
        # Not a method of this object, which the thread would then keep alive.
        self._in_flight.append(self._thread.submit(_to_global, self._batches, self._sharding))


def _to_global(
    batches: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.Sharding
) -> dict[str, jax.Array]:
    return {
        key: jax.make_array_from_process_local_data(sharding, rows)
        for key, rows in next(batches).items()
    }
