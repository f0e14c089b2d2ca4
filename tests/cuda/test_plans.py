"""Plans for cards that are not there, compiled for them."""

import dataclasses
import re

import pytest

from maft_jax.config import from_config_dict
from maft_jax.configs import coco
from maft_jax.planning.chips import GIB
from maft_jax.planning.clip_step import lower_step
from maft_jax.planning.compiled_step import compile_step
from maft_jax.planning.gpu_card import GpuCard
from maft_jax.planning.gpu_cards import CARDS
from maft_jax.planning.plan import make_plan
from maft_jax.planning.topology import parse_topology
from tests.cuda.gpu_programs import gpu_mesh, lower_training
from tests.cuda.small_towers import small_step

pytestmark = pytest.mark.cuda


def test_the_recipe_fits_a_card_of_24_gb():
    """As docs/scaling.md has it; memory moves with versions of jaxlib, the rest may not."""
    config = coco.get_config()
    config.data.root = "not-given"
    plan = make_plan(from_config_dict(config), parse_topology("3090:1"))
    assert plan.batch_size == plan.batch_per_device == 16
    assert plan.costs.fits and not plan.costs.traffic
    assert plan.costs.hbm_needed == pytest.approx(4.924 * GIB, rel=0.02)
    assert plan.costs.trainable_parameters == 28_386_816
    assert plan.costs.flops is None
    assert plan.formula_flops == pytest.approx(16 * 0.684e12, rel=0.001)
    assert plan.bounds.compute == plan.formula_flops / 71e12
    assert plan.costs.hbm_bytes / 16 == pytest.approx(7.0e9, rel=0.1)


def compile_small(topology: str, batch_size: int, **changes):
    machine = parse_topology(topology)
    config, clip = small_step("ViT-B-32", batch_size)
    mesh = gpu_mesh(machine.chip.name, machine.shape[0], machine.num_slices)
    chip = dataclasses.replace(machine.chip, **changes)
    lowered = lower_step(config, clip, mesh, num_classes=156, classes_per_image=24)
    return compile_step(lowered, mesh, chip)


def test_the_compiler_refuses_nothing_and_the_plan_does():
    costs = compile_small("3090:1", 4, hbm_bytes=10**8)
    assert not costs.fits and not costs.error
    assert costs.hbm["temporaries"] > 0 and costs.hbm_bytes > 0


def test_gradients_are_summed_in_a_host_and_between_hosts():
    costs = compile_small("2xh100:4", 8)
    reduced = [one for one in costs.traffic if one.kind == "all-reduce"]
    assert {(one.chips, one.slices, one.links, one.group_size) for one in reduced} == {(4, 2, 1, 8)}
    assert sum(one.elements for one in reduced) == pytest.approx(costs.trainable_parameters, abs=9)


def test_cards_without_bfloat16_multiply_in_float32():
    config, clip = small_step("ViT-B-32", 4)
    lowered = lower_training(config, clip, gpu_mesh("v100-16"))
    text = lowered.compile(compiler_options=dict(GpuCard.compiler_options)).as_text()
    products = re.findall(r"= \(?(\w+)\[.*custom_call_target=\"__cublas", text)
    assert products and set(products) == {"f32"}
    assert not CARDS["v100-16"].has_bfloat16
