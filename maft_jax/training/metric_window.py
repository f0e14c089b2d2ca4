"""Metrics of the steps since the last progress line, fetched from the device in one go."""

import time
from collections.abc import Callable

import jax
import numpy as np

from maft_jax.runtime.consensus import RUN_AHEAD


class NonFiniteLoss(Exception):
    """The loss or its gradient is infinite or NaN; carries the first such step."""

    def __init__(self, step: int, example_finite: np.ndarray):
        super().__init__(f"loss or gradient of step {step} is not finite")
        self.step = step
        self.example_finite = example_finite


class MetricWindow:
    """Collects device metrics without waiting for them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """`clock` tells seconds; the window begins now."""
        self._clock = clock
        self._pending: list[tuple[int, dict]] = []
        self._fetched: list[dict] = []
        self._losses: list[float] = []
        self._started = clock()
        self.seconds_waited = 0.0
        """For which the devices had no data, since the beginning; whoever reads data sets it."""
        self._waited_before = 0.0

    def add(self, step: int, metrics: dict) -> None:
        """Notes the metrics of the update that made `step` updates.

        Waits, without fetching, until at most two steps are under way: so the host cannot pile up
        batches on the device.
        """
        self._pending.append((step, metrics))
        if len(self._pending) > RUN_AHEAD:
            jax.block_until_ready(self._pending[-1 - RUN_AHEAD][1]["loss"])

    def fetch(self) -> None:
        """Brings pending metrics to the host.

        Raises:
            NonFiniteLoss: a step's loss or gradient norm is not finite.
        """
        steps = [step for step, _ in self._pending]
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        self._pending.clear()
        for step, metrics in zip(steps, fetched, strict=True):
            example_finite = metrics.pop("example_finite")
            if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
                raise NonFiniteLoss(step, example_finite)
            self._fetched.append(metrics)
            self._losses.append(float(metrics["loss"]))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take means of."""
        return not self._fetched

    def take_means(self, batch_size: int) -> dict[str, float]:
        """Means of the fetched steps with speed and waiting; the next window begins now."""
        count, now = len(self._fetched), self._clock()
        seconds = (now - self._started) / count
        means = {
            name: float(np.mean([metrics[name] for metrics in self._fetched]))
            for name in self._fetched[0]
        }
        speed = {
            "seconds_per_step": seconds,
            "images_per_second": batch_size / seconds,
            "data_wait_fraction": (self.seconds_waited - self._waited_before) / (seconds * count),
        }
        self._fetched, self._started, self._waited_before = [], now, self.seconds_waited
        return means | speed

    def exclude_seconds(self, seconds: float) -> None:
        """Does not count time in which no step was meant to run."""
        self._started += seconds

    def take_loss(self) -> float:
        """Mean loss since the last call of this function: what ranks a checkpoint."""
        loss = float(np.mean(self._losses))
        self._losses = []
        return loss
