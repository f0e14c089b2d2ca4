"""Lower bounds of a step's time: what its arithmetic and its bytes take at published peaks."""

import dataclasses
from collections.abc import Sequence

from maft_jax.planning.chips import Chip
from maft_jax.planning.traffic import Traffic


@dataclasses.dataclass(frozen=True)
class StepBounds:
    """Seconds that a step takes at least, by what limits it, and what follows."""

    compute: float
    memory: float
    links: float
    """Within a slice or host."""
    dcn: float
    """Network between slices or hosts."""
    model_flops: float
    """Of a device and step, by formula; the numerator of MFU."""
    peak_flops: float
    """Of a device."""

    @property
    def overlapped(self) -> float:
        """Everything at the same time: no step of this program can be shorter."""
        return max(self.compute, self.memory, self.links, self.dcn)

    @property
    def not_overlapped(self) -> float:
        """Collectives wait for everything else."""
        return max(self.compute, self.memory) + self.links + self.dcn

    @property
    def limit(self) -> str:
        """What the overlapped bound is: compute, memory, links or dcn."""
        return max(("compute", "memory", "links", "dcn"), key=lambda name: getattr(self, name))

    @property
    def mfu(self) -> float:
        """Model FLOP utilisation, at most."""
        return self.model_flops / (self.overlapped * self.peak_flops)


def step_bounds(
    chip: Chip,
    *,
    flops: float | None,
    hbm_bytes: float,
    traffic: Sequence[Traffic],
    model_flops: float,
) -> StepBounds:
    """Of a program with these costs per device, on a device of this chip.

    Compute takes the larger of the compiler's count, where it has one, and the formula's: kernels
    that do not say what they cost are missing from the former.
    """
    return StepBounds(
        compute=max(flops or 0.0, model_flops) / chip.device_flops,
        memory=hbm_bytes / chip.device_hbm_bandwidth,
        links=float(sum(one.link_seconds(chip) for one in traffic)),
        dcn=float(sum(one.dcn_seconds(chip) for one in traffic)),
        model_flops=model_flops,
        peak_flops=chip.device_flops,
    )


def scaling_efficiency(small: StepBounds, large: StepBounds) -> float:
    """Images per second and chip on the larger machine, of those on the smaller.

    At the same batch per chip, with collectives that overlap with nothing, the worst case.
    """
    return small.not_overlapped / large.not_overlapped
