"""What Google calls its TPUs, in Cloud TPU's API, on GKE and in xpk."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Generation:
    """Names and sizes of one kind of chip."""

    name: str
    """As `maft_jax.cli.plan --topology` has it."""
    accelerator_prefix: str
    """Of the accelerator type: v5litepod in v5litepod-16."""
    units_per_chip: int
    """What the accelerator type counts per chip: 2 where it counts cores."""
    runtime_version: str | None
    """Image of the VM for JAX, or None where there are no Cloud TPU VMs."""
    gke_accelerator: str
    """Value of the node label cloud.google.com/gke-tpu-accelerator."""
    topology_rank: int


# Sources: cloud.google.com/tpu/docs/runtimes, .../kubernetes-engine/docs/concepts/plan-tpus, xpk.
GENERATIONS = [
    Generation("v4", "v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 3),
    Generation("v5e", "v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 2),
    Generation("v5p", "v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 3),
    Generation("v6e", "v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 2),
    Generation("tpu7x", "tpu7x", 2, None, "tpu7x", 3),
]
_CHIPS_PER_HOST = 4
_SINGLE_HOST_CHIPS = (1, 4, 8)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that share an interconnect."""

    generation: Generation
    num_chips: int
    topology: str | None = None

    @property
    def accelerator_type(self) -> str:
        """As Cloud TPU and xpk have it, such as v5litepod-16."""
        units = self.num_chips * self.generation.units_per_chip
        return f"{self.generation.accelerator_prefix}-{units}"

    @property
    def num_hosts(self) -> int:
        """Virtual machines."""
        if self.generation.topology_rank == 2 and self.num_chips in _SINGLE_HOST_CHIPS:
            return 1
        return max(1, self.num_chips // _CHIPS_PER_HOST)


def parse_accelerator_type(text: str) -> Slice:
    """The slice that v5litepod-16 and the like stand for.

    Raises:
        ValueError: it is no accelerator type of a Cloud TPU VM.
    """
    prefix, _, count = text.rpartition("-")
    for generation in GENERATIONS:
        if prefix == generation.name != generation.accelerator_prefix:
            raise ValueError(
                f"--accelerator_type={text}: Cloud TPU calls it "
                f"{generation.accelerator_prefix}-{count}"
            )
        if prefix != generation.accelerator_prefix:
            continue
        if generation.runtime_version is None:
            raise ValueError(
                f"--accelerator_type={text}: there are no Cloud TPU VMs with these chips, GKE has "
                f"them: python -m launch.gke --topology={generation.name}:4x4x4 ..."
            )
        if count.isdecimal() and int(count) > 0 and int(count) % generation.units_per_chip == 0:
            return Slice(generation, int(count) // generation.units_per_chip)
    kinds = [f"{g.accelerator_prefix}-N" for g in GENERATIONS if g.runtime_version]
    raise ValueError(
        f"--accelerator_type={text}: expected one of {', '.join(kinds)}, where N counts chips of "
        "v5litepod and v6e, and the two cores of each chip of v4 and v5p, such as v5litepod-16"
    )


def parse_topology(text: str) -> Slice:
    """The slice that v5e:4x4, as in `maft_jax.cli.plan --topology`, stands for.

    Raises:
        ValueError: unknown chips, or no topology of theirs.
    """
    name, _, topology = text.partition(":")
    for generation in GENERATIONS:
        if name != generation.name:
            continue
        rank = generation.topology_rank
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology) or topology.count("x") != rank - 1:
            example = "x".join(["4"] * rank)
            raise ValueError(
                f"--topology={text}: expected {rank} sizes, such as {name}:{example}, "
                f"got {topology or 'none'}"
            )
        return Slice(generation, math.prod(map(int, topology.split("x"))), topology)
    raise ValueError(
        f"--topology={text}: expected CHIP:SIZES, such as v5e:4x4, with CHIP one of "
        f"{', '.join(g.name for g in GENERATIONS)}"
    )
