"""What methods gain over each other: differences of runs on the same pictures, split by split."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.stats import t as students_t

from maft_jax.shapes_world.experiments import REFERENCE, Experiment
from maft_jax.shapes_world.study_results import as_json

METRICS = {
    "seen": "seen",
    "unseen": "unseen",
    "hIoU": "hiou",
    "seen masks": "seen_masks",
    "unseen masks": "unseen_masks",
}
"""Names of columns, and what records call these numbers."""
FROZEN = "frozen"
"""What methods are compared with beside the reference: the CLIP before the first step."""
LEVEL = 0.05
"""Of the two-sided test: how often it sees a difference where there is none."""

Pair = tuple[int, int]
"""Split and seed: equal pictures, masks, order of training and unseen classes."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two methods in one number, pair by pair, in percent."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def standard_error(self) -> float:
        """Of the mean; infinite with one pair."""
        if len(self.values) < 2:
            return math.inf
        return statistics.stdev(self.values) / math.sqrt(len(self.values))

    @property
    def verdict(self) -> str:
        """higher or lower, where Student's paired test at LEVEL sees a difference; else open."""
        if len(self.values) < 2:
            return "open"
        bound = students_t.ppf(1 - LEVEL / 2, len(self.values) - 1) * self.standard_error
        if abs(self.mean) <= bound:
            return "open"
        return "higher" if self.mean > 0 else "lower"

    @property
    def num_higher(self) -> int:
        """Pairs in which the first is above the second."""
        return sum(value > 0 for value in self.values)

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {self.standard_error:.1f}"


class MethodResults:
    """Runs by method and pair.

    Raises:
        ValueError: a run is of no experiment, or had other settings than its experiment.
    """

    def __init__(self, runs: Sequence[Mapping], experiments: Sequence[Experiment]):
        known = {(one.row, one.split, seed): one for one in experiments for seed in one.seeds}
        self._runs: dict[str, dict[Pair, Mapping]] = {row: {} for row, _, _ in known}
        for run in runs:
            experiment = known.get((run["row"], run["split"], run["seed"]))
            if experiment is None or as_json(experiment.changes) != run["settings"]:
                raise ValueError(
                    f"row {run['row']!r}, split {run['split']}, seed {run['seed']}: expected a run "
                    f"of its table, got one with the settings {run['settings']}; run the "
                    "study again"
                )
            self._runs[run["row"]][run["split"], run["seed"]] = run
        self.missing = [
            f"{row}, split {split}, seed {seed}"
            for row, split, seed in known
            if (split, seed) not in self._runs[row]
        ]

    @property
    def methods(self) -> list[str]:
        """Those with runs, in the order of the experiments."""
        return [row for row, runs in self._runs.items() if runs]

    @property
    def num_pairs(self) -> int:
        """Of the reference."""
        return len(self._runs[REFERENCE])

    def values(self, method: str, metric: str) -> dict[Pair, float]:
        """Percent by pair, after the last step; of `frozen` before the first."""
        index = 0 if method == FROZEN else -1
        runs = self._runs[REFERENCE if method == FROZEN else method]
        return {pair: 100 * run["scores"][index][METRICS[metric]] for pair, run in runs.items()}

    def difference(self, method: str, other: str, metric: str) -> Difference:
        """Of a method less another, over the pairs that both have."""
        first, second = self.values(method, metric), self.values(other, metric)
        return Difference(tuple(first[pair] - second[pair] for pair in first if pair in second))

    def relative_time(self, method: str) -> float | None:
        """Of a step, as a multiple of the reference's; None where it was not measured."""
        return next(iter(self._runs[method].values())).get("relative_time")
