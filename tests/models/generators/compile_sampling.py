"""Compiles deformable attention for absent TPUs; test_sampling_kernels.py starts it.

    python -m tests.models.generators.compile_sampling WHAT TOPOLOGY

`attention` prints FLOPs and bytes of one at full size, forward and with all gradients, as the
compiler counts them, and `network` the kernels of a tiny Mask2Former on all devices.
"""

# ruff: noqa: E402 - the environment comes before JAX
import functools
import sys

from maft_jax.planning.topology import parse_topology, prepare_environment

prepare_environment()

import jax
import jax.numpy as jnp

from maft_jax.config.sections import MeshConfig
from maft_jax.models.generators.deformable_attention import DeformableAttention, cell_centres
from maft_jax.models.generators.image_preparation import normalised
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.runtime import sharding
from maft_jax.runtime.mesh_axes import OVER_IMAGES

LEVEL_SIZES = ((20, 20), (40, 40), (80, 80))
WIDTH = 256
GENERATOR = Mask2FormerConfig(
    ResNetConfig((1, 1, 1, 1), (32, 32, 64, 64), (8, 8, 16, 16), (8,)),
    PixelDecoderConfig(32, 32, 2, 16, heads=2),
    DecoderConfig(32, 5, 2, 16),
    num_classes=3,
)


def with_gradients(function):
    """Of all operands that are floats, with the sum of the result."""

    def total(*operands):
        return function(*operands).astype(jnp.float32).sum()

    return jax.value_and_grad(total, argnums=(0, 1, 2))


def compile_attention(device: jax.Device) -> None:
    centres = cell_centres(LEVEL_SIZES)
    placed = jax.sharding.SingleDeviceSharding(device)
    for dtype in (jnp.bfloat16, jnp.float32):
        module = DeformableAttention(8, 4, dtype)
        tokens = jax.ShapeDtypeStruct((1, len(centres), WIDTH), dtype, sharding=placed)
        shapes = jax.eval_shape(
            lambda queries, values, module=module: module.init(
                jax.random.key(0), queries, centres, values, LEVEL_SIZES
            ),
            tokens,
            tokens,
        )
        parameters = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), shapes
        )

        def attend(parameters, queries, values, module=module):
            return module.apply(parameters, queries, centres, values, LEVEL_SIZES)

        functions = {"forward": attend}
        if dtype == jnp.bfloat16:  # in float32 it takes a minute
            functions["gradients"] = with_gradients(attend)
        for name, function in functions.items():
            compiled = jax.jit(function).lower(parameters, tokens, tokens).compile()
            costs, kernels = compiled.cost_analysis(), num_kernels(compiled)
            numbers = int(costs["flops"]), int(costs["bytes accessed"]), kernels
            print(name, jnp.dtype(dtype).name, *numbers)


def compile_network(devices) -> None:
    """As precompute runs it, each device its images; and as training, split by jit."""
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, data=-1), devices)

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shapes = jax.eval_shape(GENERATOR.init, jax.random.key(0))
    parameters = jax.tree.map(lambda x: placed(x, sharding.replicated(mesh)), shapes)
    images = sharding.batch_sharding(mesh)
    pixels = jax.ShapeDtypeStruct((mesh.size, 64, 96, 3), jnp.uint8, sharding=images)
    sizes = jax.ShapeDtypeStruct((mesh.size, 2), jnp.int32, sharding=images)
    each = jax.shard_map(
        functools.partial(proposed, GENERATOR.make_module()),
        mesh=mesh,
        in_specs=(jax.P(), OVER_IMAGES, OVER_IMAGES),
        out_specs=OVER_IMAGES,
        check_vma=False,
    )
    network = GENERATOR.make_module(jnp.bfloat16, mesh)

    def loss(parameters, images):
        return network.apply({"params": parameters}, images).mask_logits.sum()

    def train(parameters, pixels, sizes):
        return jax.grad(loss)(parameters, pixels / 255)

    for name, function in (("each", each), ("train", train)):
        print(name, num_kernels(jax.jit(function).lower(parameters, pixels, sizes).compile()))


def proposed(network, parameters, pixels, sizes):
    predictions = network.apply({"params": parameters}, normalised(pixels, sizes))
    return predictions.mask_logits, predictions.class_logits


def num_kernels(compiled) -> int:
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


if __name__ == "__main__":
    what, topology = sys.argv[1:]
    devices = parse_topology(topology).devices()
    compile_attention(devices[0]) if what == "attention" else compile_network(devices)
