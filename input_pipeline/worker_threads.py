"""Threads that compute batches ahead of whoever reads them, and end when nobody does."""

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

_BATCHES_AHEAD = 2

_running: weakref.WeakSet["WorkerThreads"] = weakref.WeakSet()


class BatchWork(NamedTuple):
    """The arrays of a batch, and what fills row i of all of them."""

    arrays: dict[str, np.ndarray]
    num_rows: int
    fill_row: Callable[[int], None]


def computed_ahead(
    work: Iterator[BatchWork], num_workers: int
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yields the batches in order, filled by `num_workers` threads, a few batches ahead.

    An exception of `fill_row` reaches the reader unchanged, when the batch's turn comes; that of
    the first row if several rows fail.
    """
    workers = WorkerThreads(num_workers)
    pending: deque[tuple[dict[str, np.ndarray], list[Future]]] = deque()

    def submit(count: int) -> None:
        for arrays, num_rows, fill_row in islice(work, count):
            rows = [workers.submit(fill_row, row) for row in range(num_rows)]
            pending.append((arrays, rows))

    try:
        submit(1)
        # Small batches: enough of them to keep every worker busy.
        ahead = _BATCHES_AHEAD + num_workers // max(1, len(pending[0][1])) if pending else 0
        submit(ahead)
        while pending:
            arrays, rows = pending.popleft()
            for row in rows:
                row.result()
            submit(1)
            yield arrays
    finally:
        workers.close()


class WorkerThreads:
    """A pool whose tasks are dropped, not finished, when it is closed or the program ends.

    Threads of `concurrent.futures` would first work off their queue at exit.
    """

    def __init__(self, count: int):
        self._tasks: SimpleQueue[tuple | None] = SimpleQueue()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=_work, args=(self._tasks, self._closed), daemon=True)
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()
        _running.add(self)

    def submit(self, function: Callable, *args) -> Future:
        future = Future()
        self._tasks.put((future, function, args))
        return future

    def close(self) -> None:
        """Cancels what has not begun and waits for what has."""
        self._closed.set()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()


def _work(tasks: SimpleQueue, closed: threading.Event) -> None:
    while (task := tasks.get()) is not None:
        future, function, args = task
        if closed.is_set():
            future.cancel()
            continue
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)
        del task, future, function, args  # An idle thread would keep the batch alive.


@atexit.register
def _close_all() -> None:
    for workers in list(_running):
        workers.close()
