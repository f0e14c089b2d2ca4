import gc
import threading
import time

import numpy as np
import pytest

from input_pipeline.worker_threads import BatchWork, WorkerThreads, computed_ahead


def _work(num_batches, rows=3, fill=None, started=None):
    for batch in range(num_batches):
        if started is not None:
            started.append(batch)
        values = np.zeros(rows, np.int64)

        def fill_row(row, batch=batch, values=values):
            if fill:
                fill(batch, row)
            values[row] = 10 * batch + row

        yield BatchWork({"value": values}, rows, fill_row)


@pytest.mark.parametrize("num_workers", [1, 2, 7, 40])
def test_batches_come_in_order_and_complete(num_workers):
    """Rows are finished in an order of their own."""
    rng = np.random.default_rng(0)
    delays = rng.uniform(0, 0.005, (20, 3))
    batches = list(
        computed_ahead(_work(20, fill=lambda b, r: time.sleep(delays[b, r])), num_workers)
    )
    assert [batch["value"].tolist() for batch in batches] == [
        [10 * i, 10 * i + 1, 10 * i + 2] for i in range(20)
    ]


def test_no_work_gives_no_batches():
    assert list(computed_ahead(_work(0), 2)) == []


def test_work_is_not_begun_far_ahead_of_the_reader():
    started = []
    batches = computed_ahead(_work(100, started=started), num_workers=2)
    for _ in range(3):
        next(batches)
    assert 3 < len(started) <= 7
    batches.close()


def test_every_worker_is_busy_with_batches_of_one_row():
    barrier = threading.Barrier(6)
    batches = computed_ahead(
        _work(6, rows=1, fill=lambda batch, row: barrier.wait(timeout=20)), num_workers=6
    )
    assert len(list(batches)) == 6


def test_error_of_the_first_row_comes_when_its_batch_is_due():
    def fill(batch, row):
        if batch == 2 and row > 0:
            time.sleep(0.1 if row == 1 else 0)
            raise ValueError(f"row {row} of batch {batch}")

    batches = computed_ahead(_work(9, fill=fill), num_workers=3)
    assert [next(batches)["value"][0] for _ in range(2)] == [0, 10]
    with pytest.raises(ValueError, match=r"^row 1 of batch 2$"):
        next(batches)


def test_threads_end_with_their_reader():
    before = set(threading.enumerate())
    batches = computed_ahead(_work(10**9), num_workers=3)
    next(batches)
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    del batches
    gc.collect()
    assert not any(thread.is_alive() for thread in started)


def test_closing_drops_what_has_not_begun():
    begun = []
    workers = WorkerThreads(1)
    futures = [workers.submit(lambda i=i: (begun.append(i), time.sleep(0.05))) for i in range(50)]
    while not begun:
        time.sleep(0.001)
    workers.close()
    assert len(begun) < 5
    assert futures[-1].cancelled()
