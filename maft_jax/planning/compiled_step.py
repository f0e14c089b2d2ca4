"""Compiles the train step of a configuration for a topology and measures the program."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maft_jax.config import Config
from maft_jax.models.array_types import Batch
from maft_jax.models.clip import ClipConfig, random_parameters
from maft_jax.planning.chips import Chip
from maft_jax.planning.collectives import find_collectives
from maft_jax.planning.hlo_text import Module, parse_module
from maft_jax.planning.loop_costs import cost_of_program, cost_of_repetitions
from maft_jax.planning.traffic import Traffic, sum_traffic
from maft_jax.runtime.mesh_axes import ShardingRule
from maft_jax.runtime.sharding import batch_sharding, replicated, tree_shardings
from maft_jax.training.step_setup import make_step_setup, tuned_tree
from maft_jax.training.training_data import batch_shapes

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """What the compiler says of the step's program, per device; numbers alone, fit for JSON."""

    fits: bool
    hbm: Mapping[str, float]
    """Bytes by part. The parts add up to what is allocated; of a program that does not fit, those
    that the compiler did not tell are missing."""
    trainable_parameters: int
    """Of the whole model."""
    trainable_bytes: float
    """Of a device, as float32."""
    donated_bytes: float = 0.0
    """Of the train state, which the new one takes the place of."""
    flops: float | None = 0.0
    """By the compiler's count, loops with all their iterations; None where it has none, as on
    GPUs, whose libraries do not say what they do."""
    hbm_bytes: float = 0.0
    """Read and written, likewise, or by the operands and results of what runs."""
    traffic: tuple[Traffic, ...] = ()
    compile_seconds: float = 0.0
    error: str = ""
    """The compiler's, of a program that it refuses because it does not fit."""

    @property
    def hbm_needed(self) -> float:
        return float(sum(self.hbm.values()))


def compile_step(
    config: Config,
    clip: ClipConfig,
    mesh: Mesh,
    chip: Chip,
    *,
    num_classes: int,
    classes_per_image: int,
    names_per_class: int = 1,
) -> StepCosts:
    """The very step that training runs: function, shardings and donation of `make_step_setup`.

    Args:
        config: with start layer and image size resolved, and a batch that suits the mesh.

    Raises:
        ValueError: the configuration does not suit the architecture.
    """
    start = time.monotonic()
    lowered, shapes = lower_step(
        config,
        clip,
        mesh,
        num_classes=num_classes,
        classes_per_image=classes_per_image,
        names_per_class=names_per_class,
    )
    parts = _argument_bytes(mesh, clip.vision.sharding_rules, *shapes)
    trainable = {
        "trainable_parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes[0].trainable)),
        "trainable_bytes": parts["trainable parameters"],
    }
    try:
        compiled = lowered.compile(compiler_options=dict(chip.compiler_options) or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        parts |= needed_by_message(str(error), parts)
        return StepCosts(
            False,
            parts,
            **trainable,
            compile_seconds=time.monotonic() - start,
            error=str(error).partition("\n")[0],
        )
    seconds = time.monotonic() - start
    return _measured(compiled, parts, mesh, chip, trainable | {"compile_seconds": seconds})


def lower_step(
    config: Config,
    clip: ClipConfig,
    mesh: Mesh,
    *,
    num_classes: int,
    classes_per_image: int,
    names_per_class: int = 1,
) -> tuple[jax.stages.Lowered, tuple]:
    """The step for the devices of `mesh`, not yet compiled, and the shapes of its arguments.

    Raises:
        ValueError: see compile_step.
    """
    visual = jax.eval_shape(lambda: random_parameters(clip)["visual"])
    setup = make_step_setup(config, clip.vision, mesh)
    begun = jax.eval_shape(lambda: tuned_tree(config).begin(clip.vision, visual))
    state = jax.eval_shape(setup.init_state, begun)
    frozen = jax.eval_shape(setup.frozen, begun)
    batch = batch_shapes(config, classes_per_image, num_classes)
    rows = (num_classes,) if names_per_class == 1 else (num_classes, names_per_class)
    text = jax.ShapeDtypeStruct((*rows, clip.vision.embed_dim), np.float32)
    shapes = (state, frozen, text, batch)
    return setup.jitted(state, frozen).lower(*shapes), shapes


def _measured(
    compiled, parts: dict[str, float], mesh: Mesh, chip: Chip, known: Mapping[str, Any]
) -> StepCosts:
    module = parse_module(compiled.as_text())
    parts |= _memory_parts(compiled.memory_analysis(), sum(parts.values()))
    flops, num_bytes = _work(compiled.cost_analysis(), module)
    return StepCosts(
        fits=sum(parts.values()) <= chip.hbm_bytes,
        hbm=parts,
        donated_bytes=float(compiled.memory_analysis().alias_size_in_bytes),
        flops=flops,
        hbm_bytes=num_bytes,
        traffic=sum_traffic(find_collectives(module), mesh, chip),
        **known,
    )


def _work(counted: Mapping[str, float] | None, module: Module) -> tuple[float | None, float]:
    """FLOPs, and bytes that are read and written."""
    if counted is None:
        return None, cost_of_program(module).num_bytes
    repeated = cost_of_repetitions(module)
    return counted["flops"] + repeated.flops, counted["bytes accessed"] + repeated.num_bytes


def _memory_parts(memory, argument_bytes: float) -> dict[str, float]:
    """What the compiler adds to the arguments.

    Its temporaries are 0 in some programs whose peak is not; the larger of the two counts.
    """
    arguments = memory.argument_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.peak_memory_in_bytes - arguments - outputs
    return {
        "padding of arguments": max(0.0, float(arguments - argument_bytes)),
        "outputs that are not donated": float(outputs),
        "temporaries": float(max(memory.temp_size_in_bytes, peak)),
        "generated code": float(memory.generated_code_size_in_bytes),
    }


def _argument_bytes(
    mesh: Mesh, rules: Sequence[ShardingRule], state, frozen, text, batch: Batch
) -> dict[str, float]:
    """Bytes of a device, by the step's own shardings."""

    def of(tree, shardings) -> float:
        return float(
            sum(
                math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
                for leaf, sharding in zip(
                    jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True
                )
            )
        )

    state_shardings = tree_shardings(state, mesh, rules)
    over_batch = jax.tree.map(lambda _: batch_sharding(mesh), batch)
    return {
        "pretrained tower (frozen, the teacher)": of(frozen, tree_shardings(frozen, mesh, rules)),
        "trainable parameters": of(state.trainable, state_shardings.trainable),
        "optimizer moments": of(state.opt_state, state_shardings.opt_state),
        "class embeddings": of(text, replicated(mesh)),
        "batch": of(batch, over_batch),
    }


def needed_by_message(message: str, parts: Mapping[str, float]) -> dict[str, float]:
    """{"temporaries": bytes} as a RESOURCE_EXHAUSTED message tells them, or nothing."""
    if found := re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", message):
        return {"temporaries": float(found[1]) * _UNITS[found[2]]}
    if found := re.search(r"Used ([\d.]+)([KMGT]?) of", message):
        used = float(found[1]) * _UNITS[found[2]]
        return {"temporaries": max(0.0, used - sum(parts.values()))}
    return {}
