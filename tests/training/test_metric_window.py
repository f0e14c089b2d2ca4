"""What a window of steps reports: means, speed, and how long the devices waited for data."""

import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.training.metric_window import MetricWindow, NonFiniteLoss


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def take_two_steps(window, losses=(1.0, 3.0), grad_norm=1.0) -> dict[str, float]:
    for step, loss in enumerate(losses, start=1):
        finite = np.ones(4, bool)
        metrics = {"loss": jnp.float32(loss), "grad_norm": jnp.float32(grad_norm)}
        window.add(step, metrics | {"example_finite": finite})
    window.fetch()
    return window.take_means(batch_size=4)


def test_means_are_over_the_steps_of_the_window(clock):
    window = MetricWindow(clock)
    clock.now += 1
    assert take_two_steps(window)["loss"] == 2.0
    clock.now += 1
    assert take_two_steps(window, (5.0, 6.0))["loss"] == 5.5
    assert window.is_empty and window.take_loss() == pytest.approx((1 + 3 + 5 + 6) / 4)


def test_speed_is_that_of_the_steps_since_the_last_window(clock):
    window = MetricWindow(clock)
    clock.now += 0.5
    means = take_two_steps(window)
    assert (means["seconds_per_step"], means["images_per_second"]) == (0.25, 16.0)
    clock.now += 4.0
    assert take_two_steps(window)["seconds_per_step"] == 2.0


def test_excluded_time_is_no_time_of_steps(clock):
    window = MetricWindow(clock)
    clock.now += 10.0
    window.exclude_seconds(8.0)
    assert take_two_steps(window)["seconds_per_step"] == 1.0


def test_waiting_is_a_share_of_its_own_window(clock):
    window = MetricWindow(clock)
    clock.now += 2.0
    window.seconds_waited = 0.5
    assert take_two_steps(window)["data_wait_fraction"] == 0.25
    clock.now += 2.0
    assert take_two_steps(window)["data_wait_fraction"] == 0.0


def test_first_step_that_is_not_finite_is_named(clock):
    with pytest.raises(NonFiniteLoss, match="step 2") as found:
        take_two_steps(MetricWindow(clock), (1.0, np.nan))
    assert found.value.step == 2
    with pytest.raises(NonFiniteLoss, match="step 1"):
        take_two_steps(MetricWindow(clock), grad_norm=np.inf)
