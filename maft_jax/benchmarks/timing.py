"""Times of runs, and of two programs that take turns."""

import dataclasses
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from maft_jax.runtime import stop_requests

Run = Callable[[], object]
"""Does the work once, and returns when it is done on the device."""


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds of equal runs, each from its start to its end on the device."""

    seconds: tuple[float, ...]

    def percentile(self, percent: int) -> float:
        """Linear between the two nearest runs."""
        return float(np.percentile(self.seconds, percent))

    def summary(self, num_images: int) -> dict:
        """p50, p95 and the images per second of a run of p50, which handles `num_images`."""
        p50 = self.percentile(50)
        return {
            "p50_seconds": p50,
            "p95_seconds": self.percentile(95),
            "images_per_second": num_images / p50,
            "runs": len(self.seconds),
        }


def seconds_of(run: Run) -> float:
    """Wall clock of one run.

    Raises:
        Stopped: a signal came before it.
    """
    stop_requests.check()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def time_runs(run: Run, count: int) -> Timings:
    """One run after the other."""
    return Timings(tuple(seconds_of(run) for _ in range(count)))


def time_in_turns(first: Run, second: Run, count: int) -> tuple[Timings, Timings]:
    """`count` runs of each, a run of one beside a run of the other."""
    pairs = [(seconds_of(first), seconds_of(second)) for _ in range(count)]
    firsts, seconds = zip(*pairs, strict=True)
    return Timings(firsts), Timings(seconds)


def ratio_of_neighbours(first: Timings, second: Timings) -> float:
    """How many times as long the second takes: median over the pairs of neighbours."""
    pairs: Sequence = list(zip(first.seconds, second.seconds, strict=True))
    return statistics.median(b / a for a, b in pairs)


def process_peak_bytes() -> int | None:
    """Most memory that this process ever had on the host; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None
