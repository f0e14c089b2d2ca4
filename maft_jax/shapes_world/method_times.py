"""How long steps of methods take beside each other, on a machine that may have other work."""

import statistics
from collections.abc import Mapping

from maft_jax.benchmarks.models import load_model
from maft_jax.benchmarks.step import StepProgram, configured_data
from maft_jax.benchmarks.timing import seconds_of
from maft_jax.config import Config

ROUNDS = 10


def step_seconds(configs: Mapping[str, Config], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Wall clock of training steps on the first batch; in each round every method takes one.

    Raises:
        Stopped: a signal came.
    """
    programs = {}
    for name, config in configs.items():
        model = load_model(config)
        programs[name] = StepProgram(model, configured_data(model))
        programs[name].run()
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            taken[name].append(seconds_of(program.run))
    return taken


def relative_times(seconds: Mapping[str, list[float]], reference: str) -> dict[str, float]:
    """How many times as long as the reference each takes: median over rounds."""
    return {
        name: statistics.median(a / b for a, b in zip(own, seconds[reference], strict=True))
        for name, own in seconds.items()
    }
