"""Compiles a train step for a topology and measures the program."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from maft_jax.models.array_types import Batch
from maft_jax.planning.chips import Chip
from maft_jax.planning.collectives import find_collectives
from maft_jax.planning.hlo_text import Module, parse_module
from maft_jax.planning.loop_costs import cost_of_program, cost_of_repetitions
from maft_jax.planning.traffic import Traffic, sum_traffic
from maft_jax.runtime.mesh_axes import ShardingRule
from maft_jax.runtime.sharding import batch_sharding, replicated, tree_shardings
from maft_jax.state.train_state import TrainState

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


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A step for the devices of a mesh, not yet compiled."""

    program: jax.stages.Lowered
    sharding_rules: Sequence[ShardingRule]
    state: TrainState
    """Its shapes, as of all that follows."""
    frozen: Any
    frozen_name: str
    """What the frozen parameters are, as a part of a device's memory."""
    context: Any
    batch: Batch


def compile_step(lowered: LoweredStep, mesh: Mesh, chip: Chip) -> StepCosts:
    """What the very step that training runs costs a device of this chip."""
    start = time.monotonic()
    parts = _argument_bytes(mesh, lowered)
    trained = lowered.state.trainable
    trainable = {
        "trainable_parameters": sum(leaf.size for leaf in jax.tree.leaves(trained)),
        "trainable_bytes": parts["trainable parameters"],
    }
    try:
        compiled = lowered.program.compile(compiler_options=dict(chip.compiler_options) or None)
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


def _argument_bytes(mesh: Mesh, lowered: LoweredStep) -> dict[str, float]:
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

    rules, state, frozen = lowered.sharding_rules, lowered.state, lowered.frozen
    state_shardings = tree_shardings(state, mesh, rules)
    over_batch = jax.tree.map(lambda _: batch_sharding(mesh), lowered.batch)
    whole = jax.tree.map(lambda _: replicated(mesh), lowered.context)
    return {
        lowered.frozen_name: of(frozen, tree_shardings(frozen, mesh, rules)),
        "trainable parameters": of(state.trainable, state_shardings.trainable),
        "optimizer moments": of(state.opt_state, state_shardings.opt_state),
        "class embeddings": of(lowered.context, whole),
        "batch": of(lowered.batch, over_batch),
    }


def needed_by_message(message: str, parts: Mapping[str, float]) -> dict[str, float]:
    """{"temporaries": bytes} as a RESOURCE_EXHAUSTED message tells them, or nothing."""
    if found := re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", message):
        return {"temporaries": float(found[1]) * _UNITS[found[2]]}
    if found := re.search(r"Used ([\d.]+)([KMGT]?) of", message):
        used = float(found[1]) * _UNITS[found[2]]
        return {"temporaries": max(0.0, used - sum(parts.values()))}
    return {}
