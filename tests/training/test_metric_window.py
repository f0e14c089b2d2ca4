"""What a window of steps reports: means, speed, and how long the devices waited for data."""

import time

import pytest

from maft_jax.training.metric_window import MetricWindow


def take(window, loss=1.0):
    window._fetched = [{"loss": loss}, {"loss": loss + 2}]
    return window.take_means(batch_size=4)


def test_means_are_over_the_steps_of_the_window():
    assert take(MetricWindow())["loss"] == 2.0


def test_speed_is_that_of_the_steps_since_the_last_window():
    window = MetricWindow()
    time.sleep(0.05)
    means = take(window)
    assert 0.025 <= means["seconds_per_step"] < 1
    assert means["images_per_second"] == pytest.approx(4 / means["seconds_per_step"])


def test_time_that_is_left_out_is_no_time_of_steps():
    window = MetricWindow()
    time.sleep(0.2)
    window.exclude_seconds(0.19)
    assert 0.005 <= take(window)["seconds_per_step"] < 0.1


def test_waiting_is_a_share_of_its_own_window():
    window = MetricWindow()
    time.sleep(0.05)
    window.seconds_waited = 0.02
    first = take(window)
    assert 0 < first["data_wait_fraction"] <= 0.4
    waited = first["data_wait_fraction"] * 2 * first["seconds_per_step"]
    assert waited == pytest.approx(0.02)
    time.sleep(0.01)
    assert take(window)["data_wait_fraction"] == 0.0
