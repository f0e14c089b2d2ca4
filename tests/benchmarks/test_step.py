"""The measured step: whose it is, what is counted, and that the rendition computes the same."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from maft_jax.benchmarks.drawn_data import draw_batch, num_classes
from maft_jax.benchmarks.models import load_model
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.step import measure_step
from maft_jax.benchmarks.torch_step import check_comparable
from maft_jax.config.sections import LossConfig
from maft_jax.training.train_loop import train_and_evaluate
from maft_jax.training.training_data import batch_shapes
from tests.runs import make_data, read_metrics, small_config

NO_DATA = {"data.root": "unused"}
PEAK = 3e9


def two_steps(**fields) -> BenchmarkOptions:
    return BenchmarkOptions(steps=2, warmup=1, **fields)


@pytest.fixture(scope="module")
def compared():
    """More steps than the schedule has, on eight devices."""
    config = small_config(NO_DATA, num_steps=2)
    return measure_step(load_model(config), two_steps(compare_torch=True, peak_flops=PEAK))


@pytest.mark.slow
def test_both_compute_the_same_loss(compared):
    torch = compared["torch"]
    assert compared["first_loss"] > 0.01
    assert torch["loss_difference"] == abs(compared["first_loss"] - torch["first_loss"])
    assert torch["loss_difference"] < 1e-6


@pytest.mark.slow
def test_numbers_follow_from_each_other(compared):
    for times in (compared["blocked"], compared["torch"]["blocked"]):
        assert 0 < times["p50_seconds"] <= times["p95_seconds"]
        assert times["images_per_second"] == 8 / times["p50_seconds"]
        assert times["runs"] == 2
    pipelined = compared["pipelined"]
    assert pipelined["images_per_second"] == 8 / pipelined["seconds_per_step"]
    assert compared["compile_seconds"] > 0
    assert compared["torch"]["ratio"] > 0


@pytest.mark.slow
def test_arithmetic_by_literal_formula(compared):
    width, patches, proposals = 128, 4 * 4, 8
    tokens = 1 + patches
    layer = 24 * tokens * width**2 + 4 * tokens**2 * width
    masked = 24 * (patches + proposals) * width**2
    masked += 4 * (patches**2 + proposals * tokens) * width
    read_one = (24 + 4 * patches) * width**2 + 4 * tokens * width
    read_all = (24 * proposals + 4 * patches) * width**2 + 4 * proposals * tokens * width
    student = 2 * layer + layer + read_one + masked + read_all
    weights = 8 * tokens * 3 + 8 * (patches + proposals)  # of two shared layers, and one each
    weights += 8 + 4 * patches + 8 * proposals + 4 * patches
    expected = 2 * student + 3 * layer + read_one + weights * width**2
    found = compared["arithmetic"]
    assert found["flops_per_image"] == expected
    of_all = 8 * expected / (PEAK * 8)  # images; devices
    assert found["mfu_blocked"] == pytest.approx(of_all / compared["blocked"]["p50_seconds"])
    assert found["mfu_pipelined"] == pytest.approx(
        of_all / compared["pipelined"]["seconds_per_step"]
    )


@pytest.mark.slow
def test_memory_is_what_the_compiler_says(compared):
    memory = compared["memory"]
    compiled = memory["compiled_bytes_per_device"]
    parts = compiled["argument"] + compiled["output"] - compiled["alias"] + compiled["temp"]
    assert compiled["total"] == parts
    assert compiled["alias"] > 4 * 3 * 4 * 128 * 3 * 128, "the state is donated"
    assert memory["device_peak_bytes"] is None  # of CPUs
    assert memory["process_peak_bytes"] > compiled["total"]


@pytest.mark.slow
def test_what_was_measured_is_said(compared):
    assert compared["weights"] == "random:tiny"
    assert compared["data"] == "random, 171 classes"
    assert compared["mesh"] == {"data": 8, "fsdp": 1, "model": 1}
    assert compared["compute_dtype"] == "float32"
    assert compared["torch"]["precision"] == "float32, TF32 off"


def test_drawn_batches_have_the_shapes_of_training():
    config = small_config(NO_DATA, data__dataset="voc2012")
    shapes = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), draw_batch(config)
    )
    assert shapes == batch_shapes(config, 24, 20)
    assert num_classes(config) == 20
    batch = draw_batch(config)
    for label_map, present in zip(batch.label_map, batch.present_classes, strict=True):
        np.testing.assert_array_equal(np.unique(label_map), present[present >= 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__mask_aware": "l1"}, "config.loss.mask_aware='l1', but the official step has"),
        ({"optimizer__clip_norm": 1.0}, "config.optimizer.clip_norm=1.0, but"),
        ({"loss__distillation_weight": 0.0}, "config.loss.distillation_weight=0"),
    ],
)
def test_what_the_rendition_does_not_compute_is_not_compared(changes, message):
    config = small_config(NO_DATA, **changes)
    with pytest.raises(ValueError, match="--compare=torch") as error:
        measure_step(load_model(config), two_steps(compare_torch=True))
    assert message in str(error.value)


def test_whatever_the_loss_has_besides_is_not_compared():
    model = load_model(small_config(NO_DATA))
    for field in dataclasses.fields(LossConfig):
        if field.name in ("distillation_weight", "cached_teacher"):
            continue
        others = [choice for choice in field.metadata["choices"] if choice != field.default]
        changed = {field.name: others[0] if others else field.default + 7}
        loss = dataclasses.replace(model.config.loss, **changed)
        config = dataclasses.replace(model.config, loss=loss)
        with pytest.raises(ValueError, match=rf"config\.loss\.{field.name}=.* official step has"):
            check_comparable(dataclasses.replace(model, config=config))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"config\.batch_size=12"):
        measure_step(load_model(small_config(NO_DATA, batch_size=12)), two_steps())


@pytest.mark.slow
def test_the_configured_data_gives_the_loss_of_the_first_step_of_training(tmp_path):
    """Without distillation, for whose step there is no formula of the arithmetic either."""
    data = make_data(tmp_path)
    changes = {"num_steps": 1, "log_every_steps": 1, "loss__distillation_weight": 0.0}
    config = small_config(data, **changes)
    measured = measure_step(load_model(config), two_steps(configured_data=True, peak_flops=PEAK))
    train_and_evaluate(config, tmp_path / "run")
    [metrics] = read_metrics(tmp_path / "run")
    assert math.isclose(measured["first_loss"], metrics["loss"], rel_tol=1e-6)
    assert measured["data"] == "folder train, 8 classes"
    assert measured["arithmetic"]["flops_per_image"] is None
    assert measured["arithmetic"]["mfu_blocked"] is None
