"""What a benchmark measures, and how often."""

import dataclasses
from collections.abc import Sequence

PARTS = ("step", "input", "evaluation", "precompute", "encoders")
COMPARABLE = ("step", "evaluation")


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Beside the configuration.

    Raises:
        ValueError: options that do not go together.
    """

    what: Sequence[str] = ("step",)
    """Of PARTS."""
    steps: int = 20
    """Runs that are timed: steps, batches of evaluation or of the pipeline, turns of encoders; for
    precompute images by the batch."""
    warmup: int = 3
    """Runs before, besides the very first one."""
    configured_data: bool = False
    """The configuration's data; else what is drawn on the spot."""
    compare_torch: bool = False
    peak_flops: float | None = None
    """Operations per second of a device, where the table of peaks is not to be asked."""

    def __post_init__(self):
        if not self.what or (unknown := [part for part in self.what if part not in PARTS]):
            raise ValueError(
                f"--what={','.join(self.what)}: expected at least one of {', '.join(PARTS)}"
                + (f"; unknown {unknown}" if self.what else "")
            )
        if self.steps < 1 or self.warmup < 0:
            raise ValueError(
                f"--steps={self.steps} --warmup={self.warmup}: expected at least 1 step, and no "
                "negative number"
            )
        if self.peak_flops is not None and self.peak_flops <= 0:
            raise ValueError(f"--peak_tflops={self.peak_flops / 1e12}: expected a positive number")
        if self.compare_torch and not set(self.what) & set(COMPARABLE):
            raise ValueError(
                f"--compare=torch with --what={','.join(self.what)}: there is a rendition in "
                f"PyTorch of {' and '.join(COMPARABLE)} alone"
            )
        if self.compare_torch and self.configured_data:
            raise ValueError(
                "--compare=torch with --data=configured: the rendition knows no padding of "
                "proposals; compare with --data=random"
            )
