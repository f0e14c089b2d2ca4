"""Programs for GPUs that need not be there, and what their text and their compiler say of them."""

import dataclasses
from collections import Counter

import jax
from jax.sharding import Mesh

from maft_jax.config import Config, from_config_dict
from maft_jax.config.sections import MeshConfig
from maft_jax.configs import coco
from maft_jax.models.clip import ClipConfig
from maft_jax.planning.architecture import num_classes, resolve_config
from maft_jax.planning.clip_step import lower_step
from maft_jax.planning.collectives import find_collectives
from maft_jax.planning.gpu_card import GpuCard
from maft_jax.planning.gpu_cards import CARDS
from maft_jax.planning.gpu_topology import gpu_devices
from maft_jax.planning.hlo_text import Module, parse_module
from maft_jax.runtime import sharding

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


@dataclasses.dataclass(frozen=True)
class GpuProgram:
    """What was compiled."""

    peak_bytes: int
    """Of a device, without cuDNN's workspace, which the compiler does not know."""
    cudnn_calls: Counter
    """How often a run calls each of cuDNN's attention functions; loops with all iterations."""
    collective_bytes: Counter
    """By kind, of the whole arrays: see collectives.Collective."""
    largest_gather: float
    """Bytes of what a single all-gather makes."""


def gpu_mesh(card: str = "h100", devices: int = 1, hosts: int = 1, **axes: int) -> Mesh:
    """`devices` of each host; axes as of config.mesh."""
    found = gpu_devices(CARDS[card], devices, hosts)
    return sharding.make_mesh(MeshConfig(**axes), found)


def coco_config(batch_size: int, **changes) -> tuple[Config, ClipConfig]:
    """configs/coco.py; changes use "__" for the dot of a section."""
    config = coco.get_config()
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict({"batch_size": batch_size} | changes)
    resolved, clip, _ = resolve_config(from_config_dict(config), gpu_mesh())
    return resolved, clip


def lower_training(config: Config, clip: ClipConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The step that training would run on this mesh."""
    classes, _ = num_classes(config.data)
    lowered = lower_step(config, clip, mesh, num_classes=classes, classes_per_image=24)
    return lowered.program


def compile_program(lowered: jax.stages.Lowered) -> GpuProgram:
    compiled = lowered.compile(compiler_options=dict(GpuCard.compiler_options))
    module = parse_module(compiled.as_text())
    collectives = find_collectives(module)
    num_bytes: Counter = Counter()
    for one in collectives:
        num_bytes[one.kind] += one.payload_bytes * one.times
    gathers = [one.payload_bytes for one in collectives if one.kind == "all-gather"]
    return GpuProgram(
        compiled.memory_analysis().peak_memory_in_bytes,
        _cudnn_calls(module),
        num_bytes,
        max(gathers, default=0.0),
    )


def _cudnn_calls(module: Module) -> Counter:
    repetitions = module.repetitions()
    calls: Counter = Counter()
    for computation, instruction in module.instructions():
        target = (instruction.attribute("custom_call_target") or "").strip('"')
        if target.startswith("__cudnn$fmha"):
            calls[target] += repetitions[computation]
    return calls
