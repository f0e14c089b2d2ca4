"""What a step of EVA-02 and TIPS costs, and that a mesh changes nothing of it."""

import dataclasses

import jax
import numpy as np
import pytest

from maft_jax.config.sections import MeshConfig, OptimizerConfig
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.models.flops import EncoderSize, step_flops
from maft_jax.runtime import sharding
from tests.tower_steps import lowered_step, step_on

SIZES = ["eva02_tiny-random", "tips_tiny-random"]


def test_formula_of_shared_patches_by_literal_numbers():
    size = EncoderSize(
        width=1,
        layers=3,
        mask_start_layer=1,
        num_patches=3,
        num_proposals=2,
        class_tokens=2,
        mlp_flops=10,
        mask_rule="shared_patches",
    )
    token = 8 + 10
    layer = 5 * token + 4 * 25  # two class tokens and three patches
    shared = 7 * token + 4 * (25 + 2 * 6)  # and two proposals, which also read themselves
    read_one, read_three = (q * token + 4 * 3 + 4 * q * 4 for q in (1, 3))
    weights = 8 * (5 + 5 + 2) + (8 + 4 * 3) + 8 * 2
    student = layer + shared + read_three
    assert step_flops(size, teacher=False) == 2 * student + weights
    assert step_flops(size) == 2 * student + 2 * layer + read_one + weights


@pytest.mark.slow
@pytest.mark.parametrize(("size", "layers"), [("EVA02-B-16", 4), ("tipsv2_b14", 4)])
def test_compiler_counts_within_15_percent_of_the_formula(size, layers):
    vision = dataclasses.replace(CLIP_SIZES[size].vision, layers=layers)
    pixels = vision.patch_size * 16
    counted = lowered_step(vision, pixels, teacher=True).cost_analysis()["flops"]
    masking = dataclasses.replace(vision.default_masking, image_size=pixels)
    assert abs(counted / vision.step_flops(masking, 100) - 1) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_mesh_of_eight_devices_is_one_device(size):
    vision = CLIP_SIZES[size].vision
    if vision.mlp_width % 2:
        vision = dataclasses.replace(vision, mlp_width=vision.mlp_width + 1)  # to be split in two
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    eight = sharding.make_mesh(MeshConfig(data=2, fsdp=2, model=2), jax.devices())
    (metrics, parameters), (expected_metrics, expected) = (
        step_on(vision, mesh, OptimizerConfig()) for mesh in (eight, one)
    )
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6)
    for ours, other in zip(*map(jax.tree.leaves, (parameters, expected)), strict=True):
        np.testing.assert_allclose(ours, other, atol=2e-6)
