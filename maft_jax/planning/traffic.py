"""What collectives send over the links of a slice or host, and between slices or hosts."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from maft_jax.planning.chips import Chip
from maft_jax.planning.collectives import BETWEEN_SLICES, Collective

_PASSES = {"all-reduce": 2, BETWEEN_SLICES: 2}
"""A ring passes (n - 1) / n of an array so many times through every chip; other kinds once."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind in a step between groups of one form."""

    kind: str
    payload_bytes: float
    """Of a step: what is reduced, or what gathers make."""
    elements: int
    """Numbers in it, of whatever type."""
    operations: int
    """Executed in a step."""
    group_size: int
    """Devices that take part together."""
    chips: int
    """Of a group, in each of its slices or hosts."""
    slices: int
    """Slices or hosts that a group spans, or that the send goes between."""
    groups_per_chip: int
    """Groups that share the links of a chip."""
    links: int
    """Of a chip that a group can use."""

    def link_bytes(self) -> float:
        """Leave every chip over the links of its slice or host."""
        if self.kind == BETWEEN_SLICES:
            return 0.0
        return self.groups_per_chip * self.payload_bytes * self._passed(self.chips)

    def dcn_bytes(self) -> float:
        """Leave every chip for other slices: what its own has reduced, spread over its chips."""
        chips = 1 if self.kind == BETWEEN_SLICES else self.chips
        return self.groups_per_chip * self.payload_bytes / chips * self._passed(self.slices)

    def _passed(self, members: int) -> float:
        if self.kind == "collective-permute":
            return float(members > 1)
        return float(_PASSES.get(self.kind, 1) * (members - 1) / members)

    def link_seconds(self, chip: Chip) -> float:
        """At the peak of the links that the groups can use."""
        return self.link_bytes() / (self.links * chip.link_bandwidth) if self.links else 0.0

    def dcn_seconds(self, chip: Chip) -> float:
        return self.dcn_bytes() / chip.dcn_bandwidth


def sum_traffic(found: Sequence[Collective], mesh: Mesh, chip: Chip) -> tuple[Traffic, ...]:
    """The collectives of a program for this mesh, largest first."""
    sums: dict[Traffic, tuple[float, int, int]] = {}
    for collective in found:
        form = _form(collective, mesh, chip)
        payload, elements, operations = sums.get(form, (0.0, 0, 0))
        sums[form] = (
            payload + collective.times * collective.payload_bytes,
            elements + collective.times * collective.elements,
            operations + collective.times,
        )
    traffic = [
        dataclasses.replace(form, payload_bytes=payload, elements=elements, operations=operations)
        for form, (payload, elements, operations) in sums.items()
    ]
    return tuple(sorted(traffic, key=lambda one: -one.payload_bytes))


def _form(collective: Collective, mesh: Mesh, chip: Chip) -> Traffic:
    devices = mesh.devices.reshape(-1)  # partitions are numbered in this order, from one slice on
    chips = {chip.place(device) for device in devices}
    slices = {place[0] for place in chips}
    per_chip = len(devices) // len(chips)
    if collective.kind == BETWEEN_SLICES:
        return Traffic(collective.kind, 0.0, 0, 0, len(slices), 1, len(slices), per_chip, 0)
    members = [chip.place(devices[index]) for index in collective.groups[0]]
    member_chips, member_slices = set(members), {place[0] for place in members}
    here = {place[1] for place in member_chips if place[0] == members[0][0]}
    whole = {place[1] for place in chips if place[0] == members[0][0]}
    return Traffic(
        kind=collective.kind,
        payload_bytes=0.0,
        elements=0,
        operations=0,
        group_size=len(members),
        chips=len(here),
        slices=len(member_slices),
        groups_per_chip=per_chip * len(member_chips) // len(members),
        links=chip.usable_links(here, whole),
    )
