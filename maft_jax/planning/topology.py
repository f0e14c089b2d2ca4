"""Machines by name, such as v5e:4x4, 2xv5e:16x16 or 2xh100:8, as devices that need not exist.

JAX must start as `prepare_environment` says, before anything imports it.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence

from maft_jax.planning import chips, gpu_cards
from maft_jax.planning.chips import CHIPS, Chip
from maft_jax.planning.gpu_card import GpuCard
from maft_jax.planning.gpu_cards import CARDS
from maft_jax.planning.gpu_topology import gpu_devices

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # without a TPU its entries cannot be read again
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # or libtpu looks for one; the topology's name counts
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def prepare_environment() -> None:
    """Makes JAX run on the CPU and libtpu do without a TPU; call it before JAX is imported."""
    if "jax" in sys.modules:
        raise RuntimeError("the environment must be prepared before JAX is imported")
    os.environ.update(_ENVIRONMENT)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one shape, or hosts with as many cards, which a network joins."""

    chip: Chip
    shape: tuple[int, ...]
    """Chips along each axis of a slice, or the cards of a host."""
    num_slices: int = 1
    """Slices or hosts."""

    @property
    def name(self) -> str:
        slices = f"{self.num_slices}x" if self.num_slices > 1 else ""
        return f"{slices}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        return self.num_slices * math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices_per_chip

    def devices(self) -> Sequence:
        """Of the compiler, in its order.

        Raises:
            ValueError: the compiler is not installed, or knows no such topology.
        """
        if isinstance(self.chip, GpuCard):
            return gpu_devices(self.chip, math.prod(self.shape), self.num_slices)
        return _devices(self.chip.name, self.shape, self.num_slices)


def parse_topology(name: str) -> Topology:
    """From [SLICESx]CHIP:AxB or CHIP:AxBxC, or [HOSTSx]CARD:CARDS.

    Raises:
        ValueError: no such chip, or its slices or hosts do not come in this shape.
    """
    parts = re.fullmatch(r"(?:(\d+)x)?([a-z0-9][a-z0-9-]*):(\d+(?:x\d+)*)", name.lower())
    chip = _CHIPS.get(_ALIASES.get(parts[2], parts[2])) if parts else None
    if chip is None:
        raise ValueError(
            f"--topology={name}: expected CHIP:SHAPE such as v5e:4x4, v5p:4x4x4 or, for two "
            f"slices, 2xv5e:16x16, with a chip of {[*CHIPS, *chips.ALIASES]}; or CARD:NUMBER such "
            "as h100:8 or, for two hosts of eight, 2xh100:8, with a card of "
            f"{[*CARDS, *gpu_cards.ALIASES]}"
        )
    shape = tuple(int(size) for size in parts[3].split("x"))
    num_slices = int(parts[1] or 1)
    fits = all(
        small <= large for small, large in zip(sorted(shape), sorted(chip.largest), strict=False)
    )
    if len(shape) != len(chip.largest) or not fits or 0 in (*shape, num_slices):
        largest = "x".join(map(str, chip.largest))
        dimensions = "1 dimension" if len(chip.largest) == 1 else f"{len(chip.largest)} dimensions"
        raise ValueError(
            f"--topology={name}: {chip.part}s of {chip.title} have {dimensions} "
            f"and at most {largest} {chip.noun}s; more {chip.noun}s are several {chip.part}s, "
            f"such as 2x{chip.name}:{largest}"
        )
    return Topology(chip.in_machine(shape), shape, num_slices)


_CHIPS: dict[str, Chip] = {**CHIPS, **CARDS}
_ALIASES = {**chips.ALIASES, **gpu_cards.ALIASES}


@functools.cache
def _devices(chip_name: str, shape: tuple[int, ...], num_slices: int) -> tuple:
    from jax.experimental import topologies  # not before the environment is prepared

    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu, the TPU compiler, is not installed; it needs no TPU: "
            "pip install 'maft_jax[plan]'"
        )
    topology = Topology(CHIPS[chip_name], shape, num_slices)
    options = dict(topology.chip.topology_options)
    if math.prod(shape) == 1:  # part of a host
        options = {"chip_config_name": "default"} | options
        options["chips_per_host_bounds"] = (1,) * 3
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        with _quiet_stderr():
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=dataclasses.replace(topology, num_slices=1).name,
                **options,
            )
    except Exception as error:  # libtpu's errors have no class of their own
        raise ValueError(f"--topology={topology.name}: libtpu refuses it: {error}") from error
    return tuple(found.devices)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """libtpu writes about the TPU that it misses to the file descriptor itself."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
