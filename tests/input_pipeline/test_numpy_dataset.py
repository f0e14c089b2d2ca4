import gc
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.numpy_dataset import NumpyBatches, batched_dataset
from tests.runs import REPOSITORY

SIGNATURE = {"value": (np.int64, ()), "pair": (np.float32, (2,))}


def _dataset(count=60, batch_size=3, num_workers=2, before=lambda number: None):
    def example(number):
        before(number)
        return {"value": np.int64(10 * number), "pair": np.full(2, number, np.float32)}

    return batched_dataset(range(count), example, SIGNATURE, batch_size, num_workers)


def _batches(**options):
    return NumpyBatches(_dataset(**options))


@pytest.mark.parametrize("num_workers", [1, 2, 7, 40])
def test_batches_come_in_order_and_complete(num_workers):
    """Examples are finished in an order of their own."""
    delays = np.random.default_rng(0).uniform(0, 0.005, 60)
    batches = list(_batches(num_workers=num_workers, before=lambda i: time.sleep(delays[i])))
    assert [batch["value"].tolist() for batch in batches] == [
        [30 * i, 30 * i + 10, 30 * i + 20] for i in range(20)
    ]
    np.testing.assert_array_equal(batches[1]["pair"], [[3, 3], [4, 4], [5, 5]])


def test_no_numbers_give_no_batches():
    assert list(_batches(count=0)) == []


def test_data_set_tells_what_it_holds_and_serves_other_readers():
    dataset = _dataset()
    assert dataset.element_spec == {
        "value": tf.TensorSpec([3], tf.int64),
        "pair": tf.TensorSpec([3, 2], tf.float32),
    }
    (first,) = dataset.unbatch().skip(4).batch(2).take(1)
    assert first["value"].numpy().tolist() == [40, 50]


def test_work_is_not_begun_far_ahead_of_the_reader():
    begun = []
    batches = _batches(count=3000, before=begun.append)
    for _ in range(3):
        next(batches)
    time.sleep(0.5)
    assert 9 < len(begun) <= 9 + 3 * 4 + 2
    batches.close()


def test_every_worker_is_busy_with_batches_of_one_example():
    barrier = threading.Barrier(6)
    batches = _batches(
        count=6, batch_size=1, num_workers=6, before=lambda number: barrier.wait(timeout=20)
    )
    assert len(list(batches)) == 6


@pytest.mark.parametrize("num_workers", [1, 3])
def test_no_more_examples_are_computed_at_once_than_there_are_workers(num_workers):
    computed, most, lock = 0, 0, threading.Lock()

    def before(number):
        nonlocal computed, most
        with lock:
            computed += 1
            most = max(most, computed)
        time.sleep(0.01)
        with lock:
            computed -= 1

    assert len(list(_batches(num_workers=num_workers, before=before))) == 20
    assert most == num_workers


def _failing(error):
    def fail(number):
        if number in (7, 8):
            time.sleep(0.1 if number == 7 else 0)
            raise error(f"example {number}")

    return fail


@pytest.mark.parametrize("error", [ValueError, KeyError, StopIteration, OSError])
def test_first_error_comes_unchanged_when_its_batch_is_due(error):
    batches = _batches(num_workers=3, before=_failing(error))
    assert [next(batches)["value"][0] for _ in range(2)] == [0, 30]
    with pytest.raises(error, match=r"^'?example 7'?$"):
        next(batches)


def test_other_readers_are_told_the_error_in_words():
    with pytest.raises(tf.errors.OpError, match="KeyError: 'example 7'"):
        list(_dataset(before=_failing(KeyError)).as_numpy_iterator())


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads of Linux")
@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_threads_end_with_their_reader(end):
    """Whatever its workers are doing."""
    list(_batches())  # what TensorFlow starts once
    before = _num_threads()
    batches = _batches(count=10**9, num_workers=5, before=lambda number: time.sleep(0.01))
    next(batches)
    assert _num_threads() >= before + 5
    if end == "closed":
        batches.close()
    del batches
    gc.collect()
    deadline = time.monotonic() + 10
    while _num_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _num_threads() <= before


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "raise SystemExit(3)"])
def test_program_ends_while_workers_compute(end):
    program = (
        "from tests.input_pipeline.test_numpy_dataset import *\n"
        "from tests.input_pipeline.test_numpy_dataset import _batches\n"
        "batches = _batches(count=10**9, num_workers=5, before=lambda number: time.sleep(0.01))\n"
        f"next(batches)\n{end}\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, timeout=60, capture_output=True, text=True
    )
    assert result.returncode == (3 if end else 0), result.stderr
    assert "Exception ignored" not in result.stderr and "Fatal" not in result.stderr


@pytest.mark.slow
def test_tensorflow_is_loaded_by_data_sets_alone():
    """Not by reading the pipelines' modules, nor by labelling a photo."""
    program = (
        "import sys, numpy as np, maft_jax\n"
        "import input_pipeline.train_pipeline, maft_jax.cli.predict, maft_jax.web_page.page\n"
        "clip = maft_jax.load('random:tiny')\n"
        "maft_jax.segment(clip, np.zeros((64, 96, 3), np.uint8), ['cat', 'dog'])\n"
        "print([name for name in sys.modules if name.startswith('tensorflow')])\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert finished.stdout == "[]\n", finished.stderr
