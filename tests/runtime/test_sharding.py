"""Meshes change where numbers are computed, not the numbers: eight fake devices, golden values."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maft_jax.config.sections import MeshConfig, OptimizerConfig
from maft_jax.models.attention import CudnnAttention
from maft_jax.models.block_stack import BlockLoop
from maft_jax.models.flash_attention import FlashAttention
from maft_jax.models.layers import SHARDING_RULES as RULES
from maft_jax.runtime import sharding
from maft_jax.state import optimizer
from maft_jax.state.train_state import TrainState, init_train_state
from maft_jax.training import train_step
from tests.golden_files import golden, maft_small
from tests.runs import finish, start
from tests.tiny_models import CLIP_TRAINABLE, tiny_visual
from tests.training.test_golden_step import (
    OPTIMIZER,
    as_openai,
    golden_batch,
    golden_spec,
    golden_trainable,
)

STEPS = range(3)


def run_golden_steps(mesh, accumulation_steps=1, **encoder):
    """The golden batch four times over, whose means are those of the golden batch."""
    spec = dataclasses.replace(golden_spec(**encoder), accumulation_steps=accumulation_steps)
    visual, batch = maft_small()[1]["visual"], golden_batch()
    batch = jax.tree.map(lambda x: jnp.tile(x, (4,) + (1,) * (x.ndim - 1)), batch)
    tx = optimizer.make_optimizer(OPTIMIZER, num_steps=10)
    trainable = golden_trainable()
    state = TrainState(np.int32(0), trainable, tx.init(trainable))
    step = train_step.make_train_step(spec, tx, mesh, state, visual)
    state = jax.device_put(state, sharding.tree_shardings(state, mesh, RULES))
    visual = jax.device_put(visual, sharding.tree_shardings(visual, mesh, RULES))
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    text = jax.device_put(golden("maft_small")["text_features"][:7], sharding.replicated(mesh))
    history = []
    for _ in STEPS:
        state, metrics = step(state, visual, text, batch)
        history.append(jax.device_get((metrics, state.opt_state[1].mu)))
    return history, jax.device_get(state.trainable)


def mesh_of(sizes, devices=None):
    return sharding.make_mesh(MeshConfig(*sizes), devices)


def assert_golden(run):
    """Losses, gradients and parameters are the official code's, within the golden tolerances."""
    (history, trainable), arrays = run, golden("maft_small")
    for step, (metrics, _) in zip(STEPS, history, strict=True):
        weighted = arrays[f"step{step}/distillation_loss_weighted"]
        np.testing.assert_allclose(metrics["distillation_loss"], weighted, atol=1e-6, rtol=0)
        mask_aware = arrays[f"step{step}/mask_aware_loss"]
        np.testing.assert_allclose(metrics["mask_aware_loss"], mask_aware, atol=1e-6, rtol=0)
    # after one step the first moment is a tenth of the clipped gradient
    scale = 0.1 * 0.01 / (arrays["step0/grad_norm"] + 1e-6)
    for name, moment in as_openai(history[0][1]).items():
        expected = scale * arrays[f"grad/{name}"]
        tolerance = 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(moment, expected, atol=tolerance, rtol=0, err_msg=name)
    tuned = as_openai(trainable)
    for name in [name for name in arrays if name.startswith("after_steps/")]:
        ours = tuned[name.removeprefix("after_steps/")]
        np.testing.assert_allclose(ours, arrays[name], atol=2e-6, rtol=0, err_msg=name)


@pytest.mark.slow
def test_all_three_axes_together_give_the_golden_numbers():
    assert_golden(run_golden_steps(mesh_of((2, 2, 2))))


def as_on_tpus(mesh):
    """The encoder that make_encoder chooses there, its kernels run as plain operations."""
    attention = FlashAttention(mesh, maft_small()[0].vision.head_width, interpret=True)
    return {"attention": attention, "loop": BlockLoop.SCANNED}


@pytest.mark.slow
def test_fused_attention_in_scanned_blocks_gives_the_golden_numbers():
    mesh = mesh_of((2, 1, 1), jax.devices()[:2])
    assert_golden(run_golden_steps(mesh, **as_on_tpus(mesh)))


@pytest.mark.slow
def test_what_cudnn_is_given_on_gpus_gives_the_golden_numbers():
    """On all three axes, computed by XLA: there is no GPU."""
    mesh = mesh_of((2, 2, 2))
    attention = CudnnAttention(mesh, implementation="xla")
    assert_golden(run_golden_steps(mesh, attention=attention, loop=BlockLoop.SCANNED))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"remat": True}, {"accumulation_steps": 2}])
def test_so_it_does_recomputed_and_accumulated(changes):
    mesh = mesh_of((2, 1, 1), jax.devices()[:2])
    assert_golden(run_golden_steps(mesh, **as_on_tpus(mesh), **changes))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (4, 2, 1), (1, 8, 1)])
def test_other_meshes_give_the_golden_numbers(sizes):
    assert_golden(run_golden_steps(mesh_of(sizes)))


@pytest.mark.slow
def test_accumulation_gives_the_golden_numbers():
    assert_golden(run_golden_steps(mesh_of((2, 1, 1), jax.devices()[:2]), accumulation_steps=4))


@pytest.mark.slow
def test_remat_gives_the_golden_numbers():
    assert_golden(run_golden_steps(mesh_of((1, 1, 1), jax.devices()[:1]), remat=True))


def test_parameters_and_moments_are_split_by_the_rules():
    mesh = mesh_of((2, 2, 2))
    tx = optimizer.make_optimizer(OptimizerConfig(), num_steps=10)
    state = init_train_state(tiny_visual(), CLIP_TRAINABLE, tx)
    shardings = sharding.tree_shardings(state, mesh, RULES)
    attention = shardings.trainable["blocks_0"]["attn"]
    assert attention["in_proj"]["kernel"].spec == PartitionSpec("fsdp", None, "model", None)
    assert attention["in_proj"]["bias"].spec == PartitionSpec(None, "model", None)
    assert attention["out_proj"]["kernel"].spec == PartitionSpec("model", None, "fsdp")
    assert shardings.trainable["ln_post"]["scale"].spec == PartitionSpec(None)
    assert shardings.opt_state[1].mu["blocks_0"]["attn"]["in_proj"]["kernel"].spec == (
        attention["in_proj"]["kernel"].spec
    )
    mlp = sharding.tree_shardings(tiny_visual(), mesh, RULES)["blocks_0"]["mlp"]
    assert mlp["c_fc"]["kernel"].spec == PartitionSpec("fsdp", "model")
    assert mlp["c_proj"]["kernel"].spec == PartitionSpec("model", "fsdp")


def test_fsdp_takes_the_largest_dimension_it_divides():
    mesh = mesh_of((1, 8, 1))
    assert sharding.leaf_partition("x", (32, 48, 31), mesh, RULES) == PartitionSpec(
        None, "fsdp", None
    )
    assert sharding.leaf_partition("x", (333, 555), mesh, RULES) == PartitionSpec(None, None)
    assert sharding.leaf_partition("x", (8, 8), mesh, RULES) == PartitionSpec(None, None)


def test_impossible_meshes_are_refused():
    with pytest.raises(ValueError, match="does not make 8"):
        mesh_of((3, 1, 1))
    with pytest.raises(ValueError, match=r"does not divide dimension 2 of in_proj/kernel"):
        sharding.leaf_partition("in_proj/kernel", (128, 3, 2, 64), mesh_of((2, 1, 4)), RULES)
    with pytest.raises(ValueError, match="expected a multiple of 16"):
        sharding.check_batch_size(24, 2, mesh_of((8, 1, 1)))


TPU_MESHES = """
import json, sys
from jax.experimental import topologies
from maft_jax.runtime import sharding
from maft_jax.config.sections import MeshConfig

def described(mesh, batch_size):
    devices = mesh.devices.reshape(len(mesh.devices), -1)
    num_processes = 1 + max(device.process_index for device in mesh.devices.flat)
    rows = [sharding.rows_of_process(mesh, i, batch_size) for i in range(num_processes)]
    return {
        "slices": [sorted({getattr(one, "slice_index", 0) for one in row}) for row in devices],
        "rows": rows,
        "shares": [sharding.share_of_process(mesh, i, batch_size) for i in range(num_processes)],
        "positions": sharding.positions_of_rows(mesh, batch_size).tolist(),
    }

def topology(name, **options):
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices

two_slices = topology("v5e:4x4", num_slices=2)
try:
    sharding.make_mesh(MeshConfig(data=1, fsdp=32), two_slices)
except ValueError as error:
    refused = str(error)
print(json.dumps({
    "one slice": described(sharding.make_mesh(MeshConfig(), topology("v5e:4x4")), 16),
    "two slices": described(sharding.make_mesh(MeshConfig(fsdp=4, model=2), two_slices), 64),
    "one model": described(sharding.make_mesh(MeshConfig(model=16), topology("v5e:4x4")), 2),
    "split torus": described(sharding.make_mesh(MeshConfig(fsdp=8), topology("v5p:2x2x2")), 8),
    "refused": refused,
}))
"""


@pytest.fixture(scope="module")
def tpu_meshes():
    """Of real topologies, described by the TPU compiler in a process of its own."""
    environment = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    output = finish(start([sys.executable, "-c", TPU_MESHES], environment=environment))
    return json.loads(output.splitlines()[-1])


def test_slices_are_the_outermost_part_of_the_data_axis(tpu_meshes):
    assert tpu_meshes["two slices"]["slices"] == [[0], [0], [1], [1]]
    assert "data=1 must be a multiple of the 2 slices" in tpu_meshes["refused"]


def test_hosts_of_a_torus_read_woven_rows(tpu_meshes):
    found = tpu_meshes["one slice"]
    assert sorted(row for rows in found["rows"] for row in rows) == list(range(16))
    assert any(rows != list(range(rows[0], rows[0] + 4)) for rows in found["rows"])
    assert sorted(found["shares"]) == [[i, 4] for i in range(4)]
    for rows, (share, _) in zip(found["rows"], found["shares"], strict=True):
        assert [found["positions"][row] for row in rows] == list(range(4 * share, 4 * share + 4))


def test_hosts_that_hold_one_model_together_read_the_same_rows(tpu_meshes):
    assert tpu_meshes["one model"]["rows"] == [[0, 1]] * 4
    assert tpu_meshes["one model"]["shares"] == [[0, 1]] * 4
    assert tpu_meshes["one model"]["positions"] == [0, 1]


def test_axis_may_be_a_part_of_a_torus_axis(tpu_meshes):
    found = tpu_meshes["split torus"]
    assert sorted(row for rows in found["rows"] for row in rows) == list(range(8))


def test_placed_arrays_are_whole_or_split_as_the_rules_say():
    mesh, visual = mesh_of((2, 2, 2)), tiny_visual()
    placed = sharding.place(visual, mesh, RULES)
    jax.tree.map(np.testing.assert_array_equal, placed, visual)
    expected = sharding.tree_shardings(visual, mesh, RULES)
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == expected
    text = np.arange(6.0).reshape(2, 3)
    whole = sharding.place_whole(text, mesh)
    assert whole.sharding.is_fully_replicated
    np.testing.assert_array_equal(whole, text)
