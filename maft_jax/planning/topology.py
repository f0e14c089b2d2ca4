"""TPU topologies by name, such as v5e:4x4 or 2xv5e:16x16, as devices that need not exist.

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

from maft_jax.planning.chips import ALIASES, CHIPS, Chip

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
    """Slices of one shape, whose chips are joined by the interconnect."""

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

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
        """Of libtpu's compiler, in its order.

        Raises:
            ValueError: libtpu is not installed, or knows no such topology.
        """
        return _devices(self.chip.name, self.shape, self.num_slices)


def parse_topology(name: str) -> Topology:
    """From [SLICESx]CHIP:AxB or CHIP:AxBxC.

    Raises:
        ValueError: no such chip, or its slices do not come in this shape.
    """
    parts = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9]*):(\d+(?:x\d+)*)", name.lower())
    known = [*CHIPS, *ALIASES]
    chip = CHIPS.get(ALIASES.get(parts[2], parts[2])) if parts else None
    if chip is None:
        raise ValueError(
            f"--topology={name}: expected CHIP:SHAPE such as v5e:4x4, v5p:4x4x4 or, for two "
            f"slices, 2xv5e:16x16, with a chip of {known}"
        )
    shape = tuple(int(size) for size in parts[3].split("x"))
    num_slices = int(parts[1] or 1)
    fits = all(
        small <= large for small, large in zip(sorted(shape), sorted(chip.largest), strict=False)
    )
    if len(shape) != len(chip.largest) or not fits or 0 in (*shape, num_slices):
        largest = "x".join(map(str, chip.largest))
        raise ValueError(
            f"--topology={name}: slices of {chip.title} have {len(chip.largest)} dimensions "
            f"and at most {largest} chips; more chips are several slices, such as "
            f"2x{chip.name}:{largest}"
        )
    return Topology(chip, shape, num_slices)


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
