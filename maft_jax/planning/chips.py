"""What plans need to know of a chip, and published peaks of the TPU generations with their sources.

Graphics cards, the other machines, are in `maft_jax.planning.gpu_cards`.

HBM that programs can use is what the compiler itself allows (libtpu 0.0.42). Interconnect figures
are those of https://jax-ml.github.io/scaling-book/tpus, ten percent below the data sheets of
https://cloud.google.com/tpu/docs, so that bounds made of them are not too hopeful.
"""

import abc
import dataclasses
from collections.abc import Mapping, Set
from typing import Any, ClassVar

GIB = 2**30


Coordinates = tuple[int, ...]
Place = tuple[int, Coordinates]
"""Part of the machine, a slice or a host, and where in it a chip is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip(abc.ABC):
    """A TPU chip or a graphics card; rates are of a whole one and in units of 1 per second."""

    name: str
    title: str
    flops: float
    """Peak of matrix products in half precision."""
    hbm_bandwidth: float
    hbm_bytes: int
    """Memory that programs can use on a device, of which a chip may have two."""
    link_bandwidth: float
    """Bytes over one link to the other chips of a slice or host, in one direction."""
    link_name: str = "interconnect"
    dcn_bandwidth: float
    """Bytes that a chip sends to other slices or hosts over the network."""
    dcn_source: str
    largest: tuple[int, ...]
    """The largest slice, of 2 or 3 dimensions, or the most cards in a host."""
    devices_per_chip: int = 1
    source: str = ""

    noun: ClassVar[str]
    part: ClassVar[str]
    """What a network joins: slices or hosts."""
    memory_name: ClassVar[str]
    compiler_options: ClassVar[Mapping[str, Any]]

    @property
    def dcn_name(self) -> str:
        return f"network between {self.part}s"

    @property
    def product_flops(self) -> float:
        """Peak of the products of a step as it is compiled for this chip, in bfloat16."""
        return self.flops

    @property
    def limits(self) -> tuple[str, ...]:
        """What a plan for this chip does not know."""
        return ()

    def notes_on_memory(self, num_bytes: float) -> tuple[str, ...]:
        """What to know of the memory of a program that needs so much of a device."""
        del num_bytes
        return ()

    @property
    def device_flops(self) -> float:
        return self.product_flops / self.devices_per_chip

    @property
    def device_hbm_bandwidth(self) -> float:
        return self.hbm_bandwidth / self.devices_per_chip

    @abc.abstractmethod
    def place(self, device) -> Place:
        """Of the chip of one of the compiler's devices."""

    @abc.abstractmethod
    def usable_links(self, group: Set[Coordinates], whole: Set[Coordinates]) -> int:
        """Links of each chip of a group that can carry its traffic.

        Both are chips of one slice or host, of which `whole` are all.
        """

    def in_machine(self, shape: tuple[int, ...]) -> "Chip":
        """This chip where its slices or hosts have this shape."""
        del shape
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuChip(Chip):
    """One generation."""

    topology_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What libtpu needs to be told beside the name of the topology."""

    noun = "chip"
    part = "slice"
    memory_name = "HBM"
    compiler_options: ClassVar[Mapping[str, Any]] = {}

    def place(self, device) -> Place:
        """Devices that have no coordinates are chips in a row."""
        coordinates = getattr(device, "coords", None) or (device.id,)
        return getattr(device, "slice_index", None) or 0, tuple(coordinates)

    def usable_links(self, group: Set[Coordinates], whole: Set[Coordinates]) -> int:
        """Two along an axis whose whole ring the group spans, one along others that it spans."""
        lengths = [len(set(along)) for along in zip(*group, strict=True)]
        shape = [len(set(along)) for along in zip(*whole, strict=True)][: len(self.largest)]
        return sum(
            2 if length == size and self.closes(tuple(shape), axis) else 1
            for axis, (length, size) in enumerate(zip(lengths, shape, strict=False))
            if length > 1
        )

    def closes(self, shape: tuple[int, ...], axis: int) -> bool:
        """Whether a slice of this shape joins the ends of an axis to a ring.

        In two dimensions an axis of 16 chips is closed, in three all are if the slice is made of
        whole cubes of 4 x 4 x 4.
        """
        if len(self.largest) == 2:
            return shape[axis] == self.largest[axis]
        return all(size % 4 == 0 for size in shape)


def gigabit(rate: int) -> float:
    """Bytes per second."""
    return rate * 1e9 / 8


_DOCS = "https://cloud.google.com/tpu/docs"

_ALL = (
    TpuChip(
        name="v4",
        title="TPU v4",
        flops=275e12,
        hbm_bandwidth=1200e9,
        hbm_bytes=int(30.75 * GIB),
        link_bandwidth=45e9,
        dcn_bandwidth=gigabit(25),
        dcn_source="assumed: 100 Gbit/s for a host of 4 chips; not published per chip",
        largest=(16, 16, 16),
        topology_options={"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)},
        source=f"{_DOCS}/v4",
    ),
    TpuChip(
        name="v5e",
        title="TPU v5e",
        flops=197e12,
        hbm_bandwidth=819e9,
        hbm_bytes=int(15.75 * GIB),
        link_bandwidth=45e9,
        dcn_bandwidth=gigabit(25),
        dcn_source="6.4 Tbit/s for a pod of 256 chips",
        largest=(16, 16),
        source=f"{_DOCS}/v5e",
    ),
    TpuChip(
        name="v5p",
        title="TPU v5p",
        flops=459e12,
        hbm_bandwidth=2765e9,
        hbm_bytes=int(95.74 * GIB),
        link_bandwidth=90e9,
        dcn_bandwidth=gigabit(50),
        dcn_source="50 Gbit/s per chip",
        largest=(16, 16, 24),
        source=f"{_DOCS}/v5p",
    ),
    TpuChip(
        name="v6e",
        title="TPU v6e (Trillium)",
        flops=918e12,
        hbm_bandwidth=1640e9,
        hbm_bytes=int(31.25 * GIB),
        link_bandwidth=90e9,
        dcn_bandwidth=gigabit(100),
        dcn_source="25.6 Tbit/s for a pod of 256 chips",
        largest=(16, 16),
        source=f"{_DOCS}/v6e",
    ),
    TpuChip(
        name="tpu7x",
        title="TPU7x (Ironwood)",
        flops=2307e12,
        hbm_bandwidth=7380e9,
        hbm_bytes=int(94.75 * GIB),
        link_bandwidth=90e9,
        dcn_bandwidth=gigabit(100),
        dcn_source="100 Gbit/s per chip",
        largest=(16, 24, 24),
        devices_per_chip=2,
        source=f"{_DOCS}/tpu7x",
    ),
)

CHIPS: dict[str, TpuChip] = {chip.name: chip for chip in _ALL}

ALIASES = {"ironwood": "tpu7x", "trillium": "v6e"}
