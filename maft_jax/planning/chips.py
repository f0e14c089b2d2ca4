"""Published peaks of the TPU generations that a plan can be made for, with their sources.

HBM that programs can use is what the compiler itself allows (libtpu 0.0.42). Interconnect figures
are those of https://jax-ml.github.io/scaling-book/tpus, ten percent below the data sheets of
https://cloud.google.com/tpu/docs, so that bounds made of them are not too hopeful.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation; rates are of a whole chip and in units of 1 per second."""

    name: str
    title: str
    flops: float
    """Peak of bfloat16 matrix products."""
    hbm_bandwidth: float
    hbm_bytes: int
    """Usable HBM of a device, of which a chip may have two."""
    link_bandwidth: float
    """Bytes over one interconnect link in one direction."""
    dcn_bandwidth: float
    """Bytes a chip sends to other slices, over its host's network."""
    dcn_source: str
    largest: tuple[int, ...]
    """The largest slice, of 2 or 3 dimensions."""
    devices_per_chip: int = 1
    topology_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What libtpu needs to be told beside the name of the topology."""
    source: str = ""

    def closes(self, shape: tuple[int, ...], axis: int) -> bool:
        """Whether a slice of this shape joins the ends of an axis to a ring.

        In two dimensions an axis of 16 chips is closed, in three all are if the slice is made of
        whole cubes of 4 x 4 x 4.
        """
        if len(self.largest) == 2:
            return shape[axis] == self.largest[axis]
        return all(size % 4 == 0 for size in shape)

    @property
    def device_flops(self) -> float:
        return self.flops / self.devices_per_chip

    @property
    def device_hbm_bandwidth(self) -> float:
        return self.hbm_bandwidth / self.devices_per_chip


def _gigabit(rate: int) -> float:
    return rate * 1e9 / 8


_DOCS = "https://cloud.google.com/tpu/docs"

_ALL = (
    Chip(
        name="v4",
        title="TPU v4",
        flops=275e12,
        hbm_bandwidth=1200e9,
        hbm_bytes=int(30.75 * GIB),
        link_bandwidth=45e9,
        dcn_bandwidth=_gigabit(25),
        dcn_source="assumed: 100 Gbit/s for a host of 4 chips; not published per chip",
        largest=(16, 16, 16),
        topology_options={"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)},
        source=f"{_DOCS}/v4",
    ),
    Chip(
        name="v5e",
        title="TPU v5e",
        flops=197e12,
        hbm_bandwidth=819e9,
        hbm_bytes=int(15.75 * GIB),
        link_bandwidth=45e9,
        dcn_bandwidth=_gigabit(25),
        dcn_source="6.4 Tbit/s for a pod of 256 chips",
        largest=(16, 16),
        source=f"{_DOCS}/v5e",
    ),
    Chip(
        name="v5p",
        title="TPU v5p",
        flops=459e12,
        hbm_bandwidth=2765e9,
        hbm_bytes=int(95.74 * GIB),
        link_bandwidth=90e9,
        dcn_bandwidth=_gigabit(50),
        dcn_source="50 Gbit/s per chip",
        largest=(16, 16, 24),
        source=f"{_DOCS}/v5p",
    ),
    Chip(
        name="v6e",
        title="TPU v6e (Trillium)",
        flops=918e12,
        hbm_bandwidth=1640e9,
        hbm_bytes=int(31.25 * GIB),
        link_bandwidth=90e9,
        dcn_bandwidth=_gigabit(100),
        dcn_source="25.6 Tbit/s for a pod of 256 chips",
        largest=(16, 16),
        source=f"{_DOCS}/v6e",
    ),
    Chip(
        name="tpu7x",
        title="TPU7x (Ironwood)",
        flops=2307e12,
        hbm_bandwidth=7380e9,
        hbm_bytes=int(94.75 * GIB),
        link_bandwidth=90e9,
        dcn_bandwidth=_gigabit(100),
        dcn_source="100 Gbit/s per chip",
        largest=(16, 24, 24),
        devices_per_chip=2,
        source=f"{_DOCS}/tpu7x",
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ALL}

ALIASES = {"ironwood": "tpu7x", "trillium": "v6e"}
