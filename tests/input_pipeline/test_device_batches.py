import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.device_batches import GlobalBatches


def _host_batches(count=5, seconds=0.0):
    for step in range(count):
        time.sleep(seconds)
        yield {"image": np.full((8, 3), step, np.uint8)}


def _sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.P("data"))


@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
def test_global_batches_hold_the_host_batches_in_order(prefetch):
    on_device = list(GlobalBatches(_host_batches(), _sharding(), prefetch))
    assert len(on_device) == 5
    for expected, batch in zip(_host_batches(), on_device, strict=True):
        assert batch["image"].sharding == _sharding()
        np.testing.assert_array_equal(batch["image"], expected["image"])


def test_no_batches_are_no_batches():
    batches = GlobalBatches(iter(()), _sharding())
    assert list(batches) == [] and list(batches) == []


def test_error_of_the_host_batches_reaches_the_reader():
    def torn():
        yield from _host_batches(1)
        raise ValueError("scene 2: the file is torn")

    batches = GlobalBatches(torn(), _sharding())
    next(batches)
    with pytest.raises(ValueError, match=r"^scene 2: the file is torn$"):
        next(batches)


def test_time_without_data_is_counted():
    batches = GlobalBatches(_host_batches(4, seconds=0.1), _sharding())
    list(batches)
    assert 0.3 < batches.seconds_waited < 2


def test_batches_that_are_there_cost_no_waiting():
    batches = GlobalBatches(_host_batches(), _sharding())
    for _ in range(5):
        time.sleep(0.2)
        batch = next(batches)
    assert batches.seconds_waited < 0.1
    assert batch["image"][0, 0] == 4


class _Running:
    """What a step returns before it is computed."""

    def __init__(self, seconds):
        self._ready_at = time.monotonic() + seconds

    def is_ready(self):
        return time.monotonic() >= self._ready_at


def test_waiting_while_the_devices_compute_is_not_counted():
    batches = GlobalBatches(_host_batches(3, seconds=0.3), _sharding())
    batches.next_during(_Running(60))
    assert batches.seconds_waited < 0.1
    batches.next_during(_Running(0.1))
    assert 0.1 < batches.seconds_waited < 0.28
    assert jnp.ones(3).is_ready() in (True, False)  # What _Running stands for.


def test_closing_ends_the_thread():
    before = threading.active_count()
    batches = GlobalBatches(_host_batches(100, seconds=0.01), _sharding())
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_forgetting_the_batches_ends_the_thread():
    before = threading.active_count()
    next(GlobalBatches(_host_batches(100, seconds=0.01), _sharding()))
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
