"""Tasks spread over processes that end when their parent does, whatever ends it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from maft_jax.runtime import stop_requests

Work = Callable[[int, Callable[[], None]], Any]
"""(task, tick) -> result; calls `tick` after every unit of work. Picklable."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_POLL_SECONDS = 0.2
_SECONDS_OF_A_SIGNAL = 0.5
"""In which one that ends workers also reaches this process, if all were meant."""


def run_tasks(
    work: Work, tasks: Sequence[int], num_workers: int, on_progress: Callable[[int], None]
) -> Iterator[tuple[int, Any]]:
    """Yields (task, result) as tasks end, in any order; one worker is the calling process.

    `on_progress` is told, several times a second, how many units of work are done in all. Leaving
    the iterator early ends the workers at once, in the middle of what they do, so a task must be
    able to die anywhere.

    Raises:
        ChildProcessError: a worker was killed from outside.
        Stopped: a signal came.
    """
    stop_requests.check()
    num_workers = min(num_workers, len(tasks))
    if num_workers > 1:
        yield from _run_in_processes(work, tasks, num_workers, on_progress)
        return
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        on_progress(done)
        stop_requests.check()

    for task in tasks:
        yield task, work(task, tick)


def _run_in_processes(
    work: Work, tasks: Sequence[int], num_workers: int, on_progress: Callable[[int], None]
) -> Iterator[tuple[int, Any]]:
    # Not fork: the parent may already run the threads of JAX and TensorFlow.
    context = multiprocessing.get_context("spawn")
    # One counter for each task and no lock, which a killed worker could leave locked.
    ticks = context.RawArray("q", len(tasks))
    # Nobody writes to this pipe: it ends when the parent closes it, or with the parent.
    worker_end, parent_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (work, ticks, worker_end))
    try:
        with _settings_of_children():
            task_of = {pool.submit(_run_task, i, task): task for i, task in enumerate(tasks)}
        waiting = set(task_of)
        while waiting:
            ended, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            on_progress(sum(ticks))
            stop_requests.check()
            for future in ended:
                yield task_of[future], future.result()
    except BrokenProcessPool as error:
        stop_requests.wait(_SECONDS_OF_A_SIGNAL)
        raise ChildProcessError(
            "a worker process was killed; if the machine ran out of memory, use fewer workers "
            "(--workers). What is finished is kept, and the same command goes on. (A script of "
            "your own that starts workers needs `if __name__ == '__main__':`)"
        ) from error
    finally:
        parent_end.close()
        pool.shutdown(cancel_futures=True)
        worker_end.close()


_work: Work | None = None
_ticks: Any = None


def _start_worker(work: Work, ticks: Any, lifeline: Connection) -> None:
    global _work, _ticks
    _work, _ticks = work, ticks
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()


def _end_with_parent(lifeline: Connection) -> None:
    """Without this, workers of a killed parent wait for tasks for ever."""
    lifeline.poll(None)
    os._exit(1)


def _run_task(index: int, task: int) -> Any:
    def tick() -> None:
        _ticks[index] += 1

    return _work(task, tick)


@contextmanager
def _settings_of_children() -> Iterator[None]:
    """Processes started inside compute on one thread each, and leave Ctrl-C to their parent.

    More threads would fight over the CPUs. Ctrl-C reaches the whole process group; the parent ends
    its workers in order. They inherit that it is blocked, which loses none that comes meanwhile.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
