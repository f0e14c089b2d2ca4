"""Batches of numpy arrays that several processes compute: Python's lock lets one do so much only.

Each process is a new interpreter, which gets the function that makes examples, and then for every
batch a piece of anonymous memory, whose rows it fills together with the others. What is in a row
depends on its number alone, so that bytes are the same for any number of processes. The memory has
no name and belongs to no folder: it goes with the last array or process that holds it, and a small
/dev/shm, as containers have, does not limit it.
"""

import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle

from input_pipeline.numpy_dataset import BATCHES_AHEAD, Arrays, Signature
from input_pipeline.reading_process import BatchLayout, ReadingTask

_CORES_OF_A_PROCESS = 4
"""An image takes 17.8 ms of a core, and Python's lock for 4 to 5 of them."""
_MOST_PROCESSES = 8
_SECONDS_TO_END = 10.0
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Children = dict[Connection, subprocess.Popen]


def choose_num_processes(asked: int) -> int:
    """How many processes read: `asked`, or for 0 one up to eight cores, then one for every four.

    Raises:
        ValueError: several are asked for where memory cannot be shared without a name.
    """
    shares_memory = hasattr(os, "memfd_create")
    if asked > 1 and not shares_memory:
        raise ValueError(
            f"config.data.reading_processes: expected 1, since this system ({sys.platform}) has no "
            f"anonymous memory that processes share, got {asked}"
        )
    if asked or not shares_memory:
        return asked or 1
    num_cores = len(os.sched_getaffinity(0))
    return 1 if num_cores <= 8 else min(num_cores // _CORES_OF_A_PROCESS, _MOST_PROCESSES)


class ProcessBatches(Iterator[Arrays]):
    """The batches of `numpy_dataset.batched_dataset`, computed by processes; not to be written to.

    `num_workers` threads of all processes together compute examples, as many as there are CPUs
    unless given; they stay about two batches ahead of the reader. `example` is pickled. What it
    raises is raised here with its type and words when its batch's turn comes, the first one's if
    several failed. Processes end when this is closed or forgotten, and with the program.

    Raises:
        ChildProcessError: by `next`, a process was killed.
    """

    def __init__(
        self,
        numbers: range,
        example: Callable[[int], Arrays],
        signature: Signature,
        batch_size: int,
        num_processes: int,
        num_workers: int | None = None,
    ):
        num_workers = num_workers or os.cpu_count() or 1
        self._layout = BatchLayout(signature, batch_size)
        self._num_batches = len(numbers) // batch_size
        self._num_asked = 0
        self._num_ahead = BATCHES_AHEAD - (-num_workers // batch_size)
        self._ahead: deque[_Batch] = deque()
        self._children: Children = {}
        self.close = weakref.finalize(self, _end, self._children)
        num_threads = -(-num_workers // num_processes)
        task = ReadingTask(example, numbers, self._layout, num_processes, num_threads)
        pickled = pickle.dumps(task)
        try:
            for share in range(num_processes):
                _start_child(self._children, share)
            for connection in self._children:
                _send(connection.send_bytes, pickled)
        except BaseException:
            self.close()
            raise
        self._ask()

    def __next__(self) -> Arrays:
        if not self._children or not self._ahead:
            raise StopIteration
        batch = self._ahead[0]
        while batch.missing:
            for connection in wait(list(self._children)):
                self._receive(connection)
        self._ahead.popleft()
        self._ask()
        if batch.errors:
            raise batch.errors[min(batch.errors)]
        return batch.arrays

    @property
    def process_ids(self) -> list[int]:
        """Of the processes that compute."""
        return [child.pid for child in self._children.values()]

    def _ask(self) -> None:
        """For the next batches, so that as many as are allowed are on their way."""
        while len(self._ahead) < self._num_ahead and self._num_asked < self._num_batches:
            descriptor = os.memfd_create("batch")
            try:
                os.ftruncate(descriptor, self._layout.num_bytes)
                for connection, child in self._children.items():
                    _send(connection.send, self._num_asked)
                    _send(send_handle, connection, descriptor, child.pid)
                memory = mmap.mmap(descriptor, self._layout.num_bytes, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
            first = self._num_asked * self._layout.batch_size
            self._ahead.append(_Batch(first, self._layout, memory))
            self._num_asked += 1

    def _receive(self, connection: Connection) -> None:
        try:
            row, error = connection.recv()
        except (EOFError, OSError):  # in the middle of an answer, too
            raise _explain_end(self._children[connection]) from None
        if row is None:
            raise error
        first = self._ahead[0].first
        batch = self._ahead[(row - first) // self._layout.batch_size]
        batch.missing.remove(row)
        if error is not None:
            batch.errors[row] = error


class _Batch:
    """A batch on its way."""

    def __init__(self, first: int, layout: BatchLayout, memory: mmap.mmap):
        self.first = first
        self.arrays = layout.arrays(memory)
        self.missing = set(range(first, first + layout.batch_size))
        self.errors: dict[int, BaseException] = {}


def _start_child(children: Children, share: int) -> None:
    ours, its = Pipe()
    command = [sys.executable, "-P", "-m", "input_pipeline.reading_process"]
    environment = os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(sys.path)}
    # A child inherits that signals are blocked: Ctrl-C and schedulers reach all processes, and
    # batches are needed until this one has saved.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        children[ours] = subprocess.Popen(
            [*command, str(its.fileno()), str(share)],
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=[its.fileno()],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        its.close()


def _send(send: Callable[..., None], *what: object) -> None:
    """Where the other end is gone, `_receive` finds out why, for it may have told before."""
    with contextlib.suppress(ConnectionError):
        send(*what)


def _explain_end(child: subprocess.Popen) -> ChildProcessError:
    code = child.wait(_SECONDS_TO_END)
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return ChildProcessError(
        f"reading process {child.pid} was {how}; if the machine ran out of memory, use fewer "
        "(config.data.reading_processes, 1 = none). The same command goes on"
    )


def _end(children: Children) -> None:
    """Processes end by themselves when their connection does."""
    for connection in children:
        connection.close()
    for child in children.values():
        try:
            child.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    children.clear()
