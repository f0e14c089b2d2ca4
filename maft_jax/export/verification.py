"""Whether a written program computes what ours does, in its own runtime, and how fast."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from maft_jax.benchmarks.timing import time_in_turns
from maft_jax.export.formats import Run
from maft_jax.export.programs import Program, draw_inputs

TOLERANCE = 1e-5
"""Of the largest value of an output, where that is above 1."""
_SIZES = {"batch": 2, "proposals": 3, "classes": 5, "height": 48, "width": 64}
_SEED = 0


class DifferentProgram(Exception):
    """An export that computes something else."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Check:
    """Of one program, on random inputs."""

    difference: float
    """The largest, of the largest value of its output where that is above 1."""
    milliseconds: tuple[float, float] | None
    """Medians of ours and of the runtime, which took turns."""


def verify(program: Program, run: Run, num_timed: int = 0) -> Check:
    """Runs both on the same random inputs; free sizes are small.

    Raises:
        DifferentProgram: a difference above TOLERANCE, or other outputs.
    """
    inputs = draw_inputs(program, _SIZES, np.random.default_rng(_SEED))
    compiled = jax.jit(program.function)
    parameters = jax.device_put(program.parameters)

    def ours():
        return jax.tree.map(np.asarray, compiled(parameters, *inputs.values()))

    theirs = run(inputs)
    difference = _largest_difference(program.name, _expected(ours(), theirs), theirs)
    if not num_timed:
        return Check(difference, None)
    timings = time_in_turns(ours, lambda: run(inputs), num_timed)
    return Check(difference, tuple(1000 * each.percentile(50) for each in timings))


def _expected(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Ours, but probabilities are what theirs should be of their own logits.

    Logits are compared themselves; their last bits, of numbers up to 100, are more than TOLERANCE
    in a probability.
    """
    if not {"logits", "probabilities"} <= theirs.keys():
        return dict(ours)
    exponents = theirs["logits"].astype(np.float64)
    powers = np.exp(exponents - exponents.max(-1, keepdims=True))
    return {**ours, "probabilities": powers / powers.sum(-1, keepdims=True)}


def _largest_difference(
    name: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> float:
    shapes, found = ({key: of[key].shape for key in sorted(of)} for of in (ours, theirs))
    if shapes != found:
        raise DifferentProgram(f"{name}: expected outputs {shapes}, the exported one has {found}")
    largest = 0.0
    for key, value in ours.items():
        exact = value.astype(np.float64)
        # of what is no number nothing is known
        difference = np.nan_to_num(np.abs(theirs[key] - exact), nan=np.inf)
        largest = max(largest, float(difference.max()) / max(1.0, np.abs(exact).max()))
    if largest > TOLERANCE:
        raise DifferentProgram(
            f"{name}: differs by {largest:.1e} from what it was made of; expected at most "
            f"{TOLERANCE:.0e}, so nothing was written; please report it with the architecture and "
            "the versions of jax and of the format's packages"
        )
    return largest
