"""A small step over several GPUs and hosts: what they keep and what they exchange."""

import jax
import pytest

from maft_jax.models.clip import random_parameters
from maft_jax.training.step_setup import make_step_setup
from tests.cuda.gpu_programs import GpuProgram, compile_program, gpu_mesh, lower_training
from tests.cuda.small_towers import calls_of_step, small_step

pytestmark = pytest.mark.cuda

BATCH_SIZE = 32
MEGABYTES = {1: 443.3, 2: 240.1}
"""Peak memory of a device, by the number of hosts of eight GPUs that split a batch."""


def compile_on(hosts: int = 1, **axes: int) -> tuple[GpuProgram, int, int]:
    """The program, and bytes of the gradients and of the tower as products read them."""
    config, clip = small_step("ViT-B-16", BATCH_SIZE)
    mesh = gpu_mesh("h100", 8, hosts, **axes)
    setup = make_step_setup(config, clip.vision, mesh)
    visual = jax.eval_shape(lambda: random_parameters(clip)["visual"])
    trainable = jax.eval_shape(setup.init_state, visual).trainable
    gradients, tower = (jax.eval_shape(setup.frozen, tree) for tree in (trainable, visual))
    program = compile_program(lower_training(config, clip, mesh))
    assert program.cudnn_calls == calls_of_step()
    return program, num_bytes(gradients), num_bytes(tower)


def num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("hosts", [1, 2])
def test_data_exchanges_gradients_alone(hosts):
    """Once, in the dtype of the products, and five sums; gathered is which examples are finite."""
    program, gradients, _ = compile_on(hosts)
    assert program.collective_bytes == {"all-reduce": gradients + 20, "all-gather": BATCH_SIZE}
    assert program.peak_bytes == pytest.approx(MEGABYTES[hosts] * 1e6, rel=0.02)


def test_fsdp_gathers_weights_and_never_tokens():
    """Weights for the student, for its way back and for the teacher; a layer's at once."""
    program, gradients, tower = compile_on(fsdp=8)
    exchanged = program.collective_bytes
    assert set(exchanged) == {"all-gather", "all-reduce", "reduce-scatter"}
    assert tower < exchanged["all-gather"] < 3 * tower
    assert program.largest_gather < tower / 2
    reduced = exchanged["all-reduce"] + exchanged["reduce-scatter"]
    assert gradients < reduced < 1.02 * gradients
    assert program.peak_bytes == pytest.approx(283.5e6, rel=0.02)


def test_model_sums_tokens_and_gathers_nothing():
    program, _, _ = compile_on(data=2, model=4)
    assert set(program.collective_bytes) == {"all-reduce", "all-gather"}
    assert program.collective_bytes["all-gather"] == BATCH_SIZE
    assert program.collective_bytes["all-reduce"] == pytest.approx(262.26e6, rel=0.001)
    assert program.peak_bytes == pytest.approx(1304.6e6, rel=0.02)
