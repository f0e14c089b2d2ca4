"""Meshes change where numbers are computed, not the numbers: eight fake devices against one."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maft_jax import optimizer, sharding, train_step, tree_rules
from maft_jax.config import MeshConfig, OptimizerConfig
from maft_jax.train_state import init_train_state
from tests.tiny_models import tiny_batch, tiny_spec, tiny_text, tiny_visual

OPTIMIZER = OptimizerConfig()
MESHES = {"8x1x1": (8, 1, 1), "4x2x1": (4, 2, 1), "2x2x2": (2, 2, 2), "1x8x1": (1, 8, 1)}


def run_three_steps(mesh, accumulation_steps=1, remat=False):
    spec = tiny_spec(accumulation_steps=accumulation_steps, remat=remat)
    visual, batch = tiny_visual(), tiny_batch(batch_size=16)
    tx = optimizer.make_optimizer(OPTIMIZER, num_steps=10)
    state = init_train_state(visual, OPTIMIZER.trainable, tx)
    step = train_step.make_train_step(spec, tx, mesh, state, visual)
    state = jax.device_put(state, sharding.tree_shardings(state, mesh))
    visual = jax.device_put(visual, sharding.tree_shardings(visual, mesh))
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    text = jax.device_put(tiny_text(), sharding.replicated(mesh))
    history = []
    for _ in range(3):
        state, metrics = step(state, visual, text, batch)
        history.append(jax.device_get(metrics))
    return state, history


def mesh_of(sizes, devices=None):
    return sharding.make_mesh(MeshConfig(*sizes), devices)


@pytest.fixture(scope="module")
def one_device():
    return run_three_steps(mesh_of((1, 1, 1), jax.devices()[:1]))


def assert_same_run(run, expected):
    (state, history), (expected_state, expected_history) = run, expected
    for ours, theirs in zip(history, expected_history, strict=True):
        for name in ("loss", "mask_aware_loss", "distillation_loss", "grad_norm"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-8, err_msg=name)
        np.testing.assert_array_equal(ours["empty_proposals"], theirs["empty_proposals"])
    # the first moment after three steps is a sum of the three gradients
    ours = tree_rules.flatten(jax.device_get(state.opt_state[1].mu))
    theirs = tree_rules.flatten(jax.device_get(expected_state.opt_state[1].mu))
    largest = max(np.abs(leaf).max() for leaf in theirs.values())
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, atol=2e-5 * largest, rtol=0, err_msg=path)
    ours = tree_rules.flatten(jax.device_get(state.trainable))
    theirs = tree_rules.flatten(jax.device_get(expected_state.trainable))
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, atol=2e-6, rtol=0, err_msg=path)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES.keys())
def test_meshes_give_the_numbers_of_one_device(sizes, one_device):
    assert_same_run(run_three_steps(mesh_of(sizes)), one_device)


def test_accumulation_gives_the_numbers_of_one_batch(one_device):
    assert_same_run(run_three_steps(mesh_of((2, 1, 1), jax.devices()[:2]), 4), one_device)


def test_remat_gives_the_same_numbers(one_device):
    mesh = mesh_of((1, 1, 1), jax.devices()[:1])
    assert_same_run(run_three_steps(mesh, remat=True), one_device)


def test_parameters_and_moments_are_split_by_the_rules():
    mesh = mesh_of((2, 2, 2))
    tx = optimizer.make_optimizer(OPTIMIZER, num_steps=10)
    state = init_train_state(tiny_visual(), OPTIMIZER.trainable, tx)
    shardings = sharding.tree_shardings(state, mesh)
    attention = shardings.trainable["blocks_0"]["attn"]
    assert attention["in_proj"]["kernel"].spec == PartitionSpec("fsdp", None, "model", None)
    assert attention["in_proj"]["bias"].spec == PartitionSpec(None, "model", None)
    assert attention["out_proj"]["kernel"].spec == PartitionSpec("model", None, "fsdp")
    assert shardings.trainable["ln_post"]["scale"].spec == PartitionSpec(None)
    assert shardings.opt_state[1].mu["blocks_0"]["attn"]["in_proj"]["kernel"].spec == (
        attention["in_proj"]["kernel"].spec
    )
    mlp = sharding.tree_shardings(tiny_visual(), mesh)["blocks_0"]["mlp"]
    assert mlp["c_fc"]["kernel"].spec == PartitionSpec("fsdp", "model")
    assert mlp["c_proj"]["kernel"].spec == PartitionSpec("model", "fsdp")


def test_fsdp_takes_the_largest_dimension_it_divides():
    mesh = mesh_of((1, 8, 1))
    assert sharding.leaf_partition("x", (32, 48, 31), mesh) == PartitionSpec(None, "fsdp", None)
    assert sharding.leaf_partition("x", (333, 555), mesh) == PartitionSpec(None, None)
    assert sharding.leaf_partition("x", (8, 8), mesh) == PartitionSpec(None, None)


def test_impossible_meshes_are_refused():
    with pytest.raises(ValueError, match="does not make 8"):
        mesh_of((3, 1, 1))
    with pytest.raises(ValueError, match=r"does not divide dimension 2 of in_proj/kernel"):
        sharding.leaf_partition("in_proj/kernel", (128, 3, 2, 64), mesh_of((2, 1, 4)))
    with pytest.raises(ValueError, match="expected a multiple of 16"):
        sharding.check_batch_size(24, 2, mesh_of((8, 1, 1)))
