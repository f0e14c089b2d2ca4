"""A process that computes rows of batches for another one, in memory that both share.

`process_batches` starts it. It reads with neither JAX nor TensorFlow, and ends when the connection
to the other process does, whatever ended that one. Signals are the other one's to answer: here they
are blocked from the start.
"""

import contextlib
import mmap
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

import numpy as np

from input_pipeline.numpy_dataset import Arrays, Signature

_ALIGNMENT = 64  # bytes, of which JAX takes arrays on a CPU without a copy


@dataclass(frozen=True)
class BatchLayout:
    """Where the arrays of a batch lie in its memory: one after the other."""

    signature: Signature
    batch_size: int

    @property
    def num_bytes(self) -> int:
        """Of a batch."""
        return sum(self._num_bytes(name) for name in self.signature)

    def arrays(self, memory: mmap.mmap) -> Arrays:
        """The arrays of the batch in some memory, which they keep alive."""
        arrays, offset = {}, 0
        for name, (dtype, shape) in self.signature.items():
            arrays[name] = np.ndarray((self.batch_size, *shape), dtype, memory, offset)
            offset += self._num_bytes(name)
        return arrays

    def _num_bytes(self, name: str) -> int:
        dtype, shape = self.signature[name]
        size = self.batch_size * prod(shape) * np.dtype(dtype).itemsize
        return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class ReadingTask:
    """What the processes of a reader know; each makes one row of every `num_shares`."""

    example: Callable[[int], Arrays]
    numbers: range
    layout: BatchLayout
    num_shares: int
    num_threads: int


def main() -> None:
    """python -m input_pipeline.reading_process DESCRIPTOR SHARE"""
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(connection, share=int(sys.argv[2]))
    os._exit(0)  # threads may be in the middle of rows that nobody will read


def _serve(connection: Connection, share: int) -> None:
    """Gets a task, then batches as (number of the batch, its memory); answers (row, its error)."""
    pickled = connection.recv_bytes()
    try:
        task = pickle.loads(pickled)
    except Exception as error:
        connection.send((None, _portable(error)))
        return
    answering = threading.Lock()

    def fill(row: int, arrays: Arrays) -> None:
        error = None
        try:
            made = task.example(task.numbers[row])
            for name, array in arrays.items():
                array[row % task.layout.batch_size] = made[name]
        except BaseException as caught:
            error = _portable(caught)
        with answering, contextlib.suppress(ConnectionError):
            connection.send((row, error))

    pool = ThreadPoolExecutor(task.num_threads)
    while True:
        batch = connection.recv()
        descriptor = recv_handle(connection)
        arrays = task.layout.arrays(mmap.mmap(descriptor, task.layout.num_bytes))
        os.close(descriptor)
        first = batch * task.layout.batch_size
        for row in range(first, first + task.layout.batch_size):
            if row % task.num_shares == share:
                pool.submit(fill, row, arrays)


def _portable(error: BaseException) -> BaseException:
    """The error with a note of where it was raised, or, where it cannot be pickled, its words."""
    error.add_note(f"In reading process {os.getpid()}:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
