"""Statistics of times by literal numbers, and which program runs when."""

import subprocess
import sys

import pytest

from maft_jax.benchmarks.timing import (
    Timings,
    ratio_of_neighbours,
    time_in_turns,
    time_runs,
)
from tests.runs import REPOSITORY


def test_summary_by_literal_numbers():
    timings = Timings((0.2, 0.1, 0.4, 0.3, 0.5))
    assert timings.summary(num_images=6) == pytest.approx(
        {"p50_seconds": 0.3, "p95_seconds": 0.48, "images_per_second": 20, "runs": 5}
    )


def test_ratio_is_of_neighbours_and_not_of_medians():
    """The machine was three times as slow for a while: no pair saw anything but a factor of 2."""
    ours, theirs = Timings((1.0, 3.0, 3.0, 1.0)), Timings((2.0, 6.0, 6.0, 2.0))
    assert ratio_of_neighbours(ours, theirs) == 2
    assert ratio_of_neighbours(Timings((1.0, 1.0, 10.0)), Timings((3.0, 5.0, 10.0))) == 3


def test_programs_take_turns():
    order = []
    ours, theirs = time_in_turns(lambda: order.append("a"), lambda: order.append("b"), 3)
    assert order == ["a", "b"] * 3
    assert len(ours.seconds) == len(theirs.seconds) == 3


def test_a_run_is_timed_from_start_to_end(monkeypatch):
    clock = iter((10.0, 10.5, 20.0, 21.0))
    monkeypatch.setattr("maft_jax.benchmarks.timing.time.perf_counter", lambda: next(clock))
    assert time_runs(lambda: None, 2) == Timings((0.5, 1.0))


def test_peak_of_a_process_stays_when_memory_is_given_back():
    """In a small process of its own, where 256 MB are much."""
    source = """
from maft_jax.benchmarks.timing import process_peak_bytes
before = process_peak_bytes()
block = b"x" * 2**28
held = process_peak_bytes()
del block
print(before, held, process_peak_bytes())
"""
    command = [sys.executable, "-c", source]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    before, held, after = map(int, printed.stdout.split())
    assert held - before == pytest.approx(2**28, rel=0.05)
    assert after - before == pytest.approx(2**28, rel=0.05)
