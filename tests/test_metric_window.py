"""Waiting for data counts only when the devices had nothing left to do."""

import time

import pytest

from maft_jax.metric_window import MetricWindow

SLOW = 0.05


class Loss:
    """Stands for a loss that a device computes, or has computed."""

    def __init__(self, ready):
        self.is_ready = lambda: ready

    def block_until_ready(self):
        return self


def slow_batches():
    while True:
        time.sleep(SLOW)
        yield "batch"


def waited_share(ready):
    window, batches = MetricWindow(), slow_batches()
    if ready is not None:
        window.add(1, {"loss": Loss(ready)})
    for _ in range(3):
        assert window.next_batch(batches) == "batch"
    window._pending.clear()
    window._fetched = [{"loss": 1.0}]
    return window.take_means(batch_size=4)["data_wait_fraction"]


@pytest.mark.parametrize("ready", [True, None], ids=["finished", "nothing under way"])
def test_wait_with_idle_devices_counts(ready):
    assert 0.8 < waited_share(ready) <= 1.0


def test_wait_while_a_step_is_under_way_does_not_count():
    assert waited_share(ready=False) == 0.0


def test_every_window_counts_its_own_wait():
    window = MetricWindow()
    window.next_batch(slow_batches())
    window._fetched = [{"loss": 1.0}]
    assert window.take_means(4)["data_wait_fraction"] > 0
    window._fetched = [{"loss": 1.0}]
    assert window.take_means(4)["data_wait_fraction"] == 0.0
