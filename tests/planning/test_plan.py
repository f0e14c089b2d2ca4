"""What a plan says follows from its costs, and what would fit is found."""

import dataclasses
import json

import jax
import pytest

from maft_jax.config import from_config_dict, preset
from maft_jax.config.sections import MeshConfig
from maft_jax.planning import plan as planning
from maft_jax.planning.compiled_step import needed_by_message
from maft_jax.planning.plan import Plan, alternatives, fit_batch, largest_batch
from maft_jax.planning.report import describe, describe_alternatives, describe_sweep
from maft_jax.planning.topology import parse_topology
from maft_jax.runtime import sharding
from tests.planning.plans import make_costs, make_plan
from tests.runs import SETTINGS


def config_of(**changes):
    config = preset("official")
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(SETTINGS | {"data.root": "nowhere"} | changes)
    return from_config_dict(config)


def test_time_images_and_hours_follow_from_the_costs():
    plan = make_plan()
    assert (plan.bounds.compute, plan.bounds.memory) == (0.5, 1.0)
    assert plan.images_per_second == 8
    assert plan.hours == 2
    assert plan.bounds.mfu == pytest.approx(2 * 9.85 / 197)


def test_a_plan_survives_json():
    for plan in (make_plan(), make_plan(costs=make_costs(fits=False))):
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    written = make_plan("tpu7x:2x2x1").to_json()["bounds"]
    assert written["chip_hours"] == 4 * written["hours"]
    assert written["device_hours"] == 8 * written["hours"]


def mesh_of(data, fsdp=1, model=1):
    devices = jax.devices()[: data * fsdp * model]
    return sharding.make_mesh(MeshConfig(data, fsdp, model), devices)


@pytest.mark.parametrize(
    ("batch_size", "parts", "mesh", "expected"),
    [
        (16, 1, (8, 1, 1), 2),
        (16, 2, (8, 1, 1), 2),
        (16, 1, (2, 2, 2), 4),
        (2, 1, (8, 1, 1), 1),
        (10, 1, (8, 1, 1), 2),
        (10, 2, (4, 1, 1), 4),
    ],
)
def test_a_batch_that_does_not_divide_grows_and_says_so(batch_size, parts, mesh, expected):
    config = config_of(batch_size=batch_size, optimizer__accumulation_steps=parts)
    fitted, per_device, changed = fit_batch(config, mesh_of(*mesh), None)
    assert (per_device, fitted.batch_size) == (expected, expected * mesh[0] * mesh[1])
    assert bool(changed) == (fitted.batch_size != batch_size)
    assert not changed or f"config.batch_size={batch_size}" in changed


def test_a_batch_per_device_goes_before_the_configuration():
    fitted, per_device, changed = fit_batch(config_of(batch_size=10), mesh_of(8), 3)
    assert (fitted.batch_size, per_device, changed) == (24, 3, "")
    with pytest.raises(ValueError, match="expected a multiple of"):
        fit_batch(config_of(optimizer__accumulation_steps=2), mesh_of(8), 3)


def fake_plans(tried, capacity, gib_per_image=1.0):
    """Plans of a step that needs 3 GiB and so much per image, of 15.75."""

    def plan_of(images):
        tried.append(images)
        costs = make_costs(images <= capacity, gib_per_image, images)
        return make_plan(costs=costs, images=images)

    return plan_of


@pytest.mark.parametrize("start", [1, 5, 12, 40])
def test_the_largest_batch_is_found_in_few_compilations(start):
    tried = []
    found = largest_batch(fake_plans(tried, capacity=12), 1, start=start)
    assert found.batch_per_device == 12
    assert 13 in tried and len(tried) <= 6


def test_the_largest_batch_is_found_where_memory_is_no_guide():
    tried = []
    found = largest_batch(fake_plans(tried, capacity=23, gib_per_image=0.1), 1, start=1)
    assert found.batch_per_device == 23
    assert len(tried) == len(set(tried))


def test_a_sweep_keeps_to_multiples_of_the_accumulation_steps():
    tried = []
    found = largest_batch(fake_plans(tried, capacity=11), 4, start=4)
    assert found.batch_per_device == 8
    assert all(images % 4 == 0 for images in tried)


def test_nothing_fits():
    assert largest_batch(fake_plans([], capacity=0), 1, start=8) is None


@pytest.fixture
def compiled(monkeypatch):
    """Stands for compilations: 24 images of 1 GiB, less if something is done, do not fit."""
    tried = []

    def make(config, topology, images):
        tried.append(config)
        parts = config.optimizer.accumulation_steps
        gib = (0.25 if config.model.remat else 1.0 if config.model.scan_blocks else 0.5) / parts
        costs = make_costs(3 + gib * images <= 15.75, gib, images)
        return make_plan(topology.name, costs, images, accumulation_steps=parts)

    monkeypatch.setattr(planning, "make_plan", make)
    return tried


def test_what_would_fit_is_compiled(compiled):
    failed = make_plan(costs=make_costs(fits=False, images=24), images=24)
    found = dict(alternatives(config_of(), parse_topology("v5e:2x2"), failed))
    assert list(found) == [
        "--config.model.scan_blocks=False",
        "--config.model.remat=True",
        "--config.optimizer.accumulation_steps=2",
        "--batch_per_device=12",
    ]
    assert [config.mesh.fsdp for config in compiled] == [1, 1, 1, 4, 1]
    text = describe_alternatives(list(found.items()))
    assert [line.split()[0] for line in text.splitlines()[1:]] == list(found)


def test_what_is_set_already_is_not_suggested(compiled):
    config = config_of(model__remat=True, model__scan_blocks=False, mesh__fsdp=2)
    failed = make_plan(costs=make_costs(fits=False, images=1), images=1)
    assert list(alternatives(config, parse_topology("v5e:2x2"), failed)) == []
    assert compiled == []
    assert "nothing that was tried fits" in describe_alternatives([])


def test_messages_of_the_compiler_tell_what_is_needed():
    parts = {"batch": 2.0 * 2**30}
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (18.50G) exceeds available HBM (15.75G)."
    )
    assert needed_by_message(message, parts) == {"temporaries": 18.5 * 2**30}
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.05G of 15.75G hbm. Exceeded hbm capacity by 4.30G."
    )
    assert needed_by_message(message, parts)["temporaries"] == pytest.approx(18.05 * 2**30)
    assert needed_by_message("RESOURCE_EXHAUSTED: for other reasons", parts) == {}


def values_of(text: str) -> dict[str, str]:
    """{start of a line: its rest} of lines with two columns."""
    lines = [line.strip().partition("   ") for line in text.splitlines() if "   " in line.strip()]
    return {name: " ".join(value.split()) for name, _, value in lines}


def test_text_of_a_plan():
    text = describe(make_plan())
    assert "fits: 5.00 of 15.75 GiB of HBM per device (32%)" in text
    values = values_of(text)
    assert values["temporaries"] == "2.0000 GiB"
    assert values["FLOPs, by formula"] == "19.7000 T"
    assert values["HBM bytes, by the compiler's count"] == "819.0000 GB"
    assert values["all-reduce, 3 operations"] == ("900.00 MB, 225,000,000 numbers, over 4 devices")
    assert values["memory"] == "1000.000 ms"
    assert values["all overlapped (limit: memory)"] == "1000.000 ms"
    assert values["collectives not overlapped"] == "1015.000 ms"
    assert values["7200 steps, at least"] == "2.0000 h"
    assert "8.0000 chip-hours" in text and "at most 24 classes" in text


def test_text_of_slices_has_their_network_and_its_assumption():
    text = describe(make_plan("2xv5e:16x16"))
    assert "512 chips in 2 slices, 512 devices, mesh data=512 fsdp=1 model=1" in text
    assert "network between slices" in text and "6.4 Tbit/s for a pod" in text
    assert "network between slices" not in describe(make_plan("v5e:16x16"))


def test_text_of_a_plan_that_does_not_fit():
    text = describe(make_plan(costs=make_costs(fits=False, images=24), images=24))
    assert "does not fit: at least 27.00 of 15.75 GiB" in text
    assert "RESOURCE_EXHAUSTED: too much" in text and "FLOPs" not in text
    unknown = dataclasses.replace(make_costs(fits=False), hbm={"batch": 1.0})
    assert "does not fit, more of 15.75 GiB" in describe(make_plan(costs=unknown))


def test_table_of_a_sweep_is_ordered_by_batch():
    plans = [
        make_plan(images=4),
        make_plan(costs=make_costs(fits=False), images=16),
        make_plan(images=2),
    ]
    lines = [line.split() for line in describe_sweep(plans).splitlines()[1:]]
    assert lines[0] == ["2", "5.00", "1000.00", "8", "10%", "memory"]
    assert lines[1] == ["4", "7.00", "1000.00", "16", "20%", "memory"]
    assert lines[2] == ["16", "does", "not", "fit"]
