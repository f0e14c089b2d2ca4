"""Labelling as it is measured: the same labels as PyTorch's, and numbers that fit together."""

import numpy as np
import pytest

from maft_jax.benchmarks.evaluation import (
    draw_example_batch,
    measure_evaluation,
    peaks_of_processes,
)
from maft_jax.benchmarks.models import load_model
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.resolved_config import resolve
from maft_jax.runtime.sharding import one_device_mesh
from tests.runs import make_data, small_config

NO_DATA = {"data.root": "unused", "evaluation.short_side": 64}


def two_batches(**fields) -> BenchmarkOptions:
    return BenchmarkOptions(what=("evaluation",), steps=2, warmup=1, **fields)


@pytest.fixture(scope="module")
def compared():
    model = load_model(small_config(NO_DATA))
    return measure_evaluation(model, two_batches(compare_torch=True))


@pytest.mark.slow
def test_both_give_the_same_labels(compared):
    assert compared["torch"]["labels_that_differ"] < 1e-4


@pytest.mark.slow
def test_numbers_follow_from_each_other(compared):
    assert compared["batch_size"] == 8  # an image for each device
    for times in (compared["blocked"], compared["torch"]["blocked"]):
        assert 0 < times["p50_seconds"] <= times["p95_seconds"]
        assert times["images_per_second"] == 8 / times["p50_seconds"]
    pipelined = compared["pipelined"]
    assert pipelined["images_per_second"] == 8 / pipelined["seconds_per_batch"]
    assert compared["first_run_seconds"] > 0


def test_the_drawn_photograph_has_the_configured_size():
    config = small_config(NO_DATA, evaluation__max_long_side=80)
    batch = draw_example_batch(resolve(config, CLIP_SIZES["tiny"], None, one_device_mesh()))
    np.testing.assert_array_equal(batch["image_size"], [[60, 80]])
    np.testing.assert_array_equal(batch["label_size"], [[480, 640]])
    assert batch["proposals"][0, :, :15, :20].any(axis=(1, 2)).all()
    assert batch["proposal_valid"].shape == (1, 8)


def test_what_the_rendition_does_not_compute_is_not_compared():
    model = load_model(small_config(NO_DATA, evaluation__flip=True))
    with pytest.raises(ValueError, match=r"config\.evaluation\.flip=True, but the rendition"):
        measure_evaluation(model, two_batches(compare_torch=True))


def test_configured_data_must_be_configured():
    model = load_model(small_config(NO_DATA))
    with pytest.raises(ValueError, match=r"--config\.evaluation\.roots\.voc2012=VOC2012"):
        measure_evaluation(model, two_batches(configured_data=True))


@pytest.mark.slow
def test_configured_data_sets_are_evaluated_whole(tmp_path):
    data = make_data(tmp_path)
    roots = {"evaluation.roots.folder": data["data.root"], "evaluation.short_side": 64}
    model = load_model(small_config(data | roots, evaluation__max_images=3))
    measured = measure_evaluation(model, two_batches(configured_data=True))
    whole = measured["whole"]
    assert (measured["data"], whole["images"]) == ("folder", 3)
    assert whole["images_per_second"] == 3 / whole["seconds"]
    assert whole["seconds"] < measured["first_run_seconds"], "compiled before"


@pytest.mark.slow
def test_memory_of_processes_of_their_own():
    """PyTorch's holds the scores of all classes at all pixels."""
    peaks = peaks_of_processes(load_model(small_config(NO_DATA, data__dataset="ade20k_full")))
    assert peaks["torch"] > 847 * 480 * 640 * 4
    assert peaks["this"] > 2**26
