"""What the study measured, table by table and over seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maft_jax.evaluators.zero_shot import harmonic_mean
from maft_jax.shapes_world.experiments import Experiment

TITLES = {
    "steps_held_out": "Choosing the number of steps",
    "main": "Frozen against tuned",
    "learned_masks": "Learned masks",
    "losses": "Losses",
    "distillation_weight": "Weight of distillation",
    "mask_start_layer": "First layer with masks",
    "trainable": "What is trained",
    "loss_kind": "Kind of mask-aware loss",
    "steps": "Number of steps",
    "proposal_number": "Number of proposals",
    "proposal_quality": "Quality of proposals",
    "logit_scale": "Logit scale",
}
"""Of the tables."""

METRICS = ("seen", "unseen", "hIoU")

_OWN_SECTIONS = ("steps_held_out", "main", "learned_masks")


@dataclass(frozen=True)
class Estimate:
    """What one number is over seeds, in percent."""

    mean: float
    spread: float | None
    """Sample standard deviation; None with one seed."""

    @classmethod
    def of(cls, fractions: Sequence[float]) -> "Estimate":
        """Of one fraction per seed."""
        percent = 100 * np.array(fractions, np.float64)
        return cls(float(percent.mean()), float(percent.std(ddof=1)) if len(percent) > 1 else None)

    def __format__(self, sign: str) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.1f}"
        return f"{self.mean:{sign}.1f}{spread}"

    def __str__(self) -> str:
        return f"{self}"

    def is_above(self, other: "Estimate") -> str:
        """yes or no, if the difference of means exceeds the larger spread; else why not."""
        spread = self._larger_spread(other)
        if spread is None:
            return "one seed"
        if abs(self.mean - other.mean) <= spread:
            return "within the spread"
        return "yes" if self.mean > other.mean else "no"

    def compared(self, other: "Estimate", name: str) -> str:
        """In words: by how much it is above or below the other, of this name."""
        difference, spread = self.mean - other.mean, self._larger_spread(other)
        words = f"{abs(difference):.1f} {'above' if difference >= 0 else 'below'} {name}"
        if spread is None:
            return f"{words}, of one seed each"
        kind = "more than" if abs(difference) > spread else "within"
        return f"{words}, {kind} the spread over seeds ({spread:.1f})"

    def _larger_spread(self, other: "Estimate") -> float | None:
        return max((one.spread for one in (self, other) if one.spread is not None), default=None)


@dataclass(frozen=True)
class Row:
    """An experiment and its runs, one per seed, those that are there."""

    experiment: Experiment
    runs: tuple[Mapping, ...]

    @property
    def is_recipe(self) -> bool:
        """Whether it is the configuration as it is, on the first split."""
        return not self.experiment.changes and self.experiment.split == 0

    @property
    def label(self) -> str:
        """Its name, marked if it is the recipe."""
        return self.experiment.row + " (recipe)" * self.is_recipe

    @property
    def missing_seeds(self) -> list[int]:
        """Seeds of the experiment without a run."""
        return sorted(set(self.experiment.seeds) - {run["seed"] for run in self.runs})

    def frozen(self, metric: str) -> Estimate:
        """Before the first step."""
        return Estimate.of([value(run, 0, metric) for run in self.runs])

    def tuned(self, metric: str) -> Estimate:
        """After the last step."""
        return Estimate.of([value(run, -1, metric) for run in self.runs])

    def gain(self, metric: str) -> Estimate:
        """Tuned less frozen, seed by seed."""
        return Estimate.of([gain(run, metric) for run in self.runs])


class Results:
    """The runs, by the experiments that they belong to.

    Raises:
        ValueError: a run is of no experiment, or had other settings than its experiment.
    """

    def __init__(self, runs: Sequence[Mapping], experiments: Sequence[Experiment], num_steps: int):
        self.num_steps = num_steps
        self._experiments = experiments
        self._runs = {(run["table"], run["row"], run["seed"]): run for run in runs}
        expected = {
            (one.table, one.row, seed): (as_json(one.changes), one.split)
            for one in experiments
            for seed in one.seeds
        }
        for (table, row, seed), run in self._runs.items():
            if expected.get((table, row, seed)) != (run["settings"], run["split"]):
                raise ValueError(
                    f"table {table!r}, row {row!r}, seed {seed}: expected a run of "
                    f"EXPERIMENTS, got one of split {run['split']} with the settings "
                    f"{run['settings']}; run the study again"
                )
        there = {run["table"] for run in runs}
        self.tables = [
            name for name in dict.fromkeys(e.table for e in experiments) if name in there
        ]
        self.ablations = [name for name in self.tables if name not in _OWN_SECTIONS]

    def rows(self, table: str) -> list[Row]:
        """All rows of a table, also those without runs."""
        experiments = [one for one in self._experiments if one.table == table]
        return [
            Row(one, tuple(run for seed in one.seeds if (run := self._find(one, seed))))
            for one in experiments
        ]

    def measured(self, table: str) -> list[Row]:
        """The rows that have runs."""
        return [row for row in self.rows(table) if row.runs]

    def recipe(self) -> Row | None:
        """The row of table main that ablations are compared with."""
        return next((row for row in self.measured("main") if row.is_recipe), None)

    def step_points(self, table: str, metric: str) -> dict[int, Estimate]:
        """By step, of runs of several lengths; step 0 is the frozen CLIP."""
        rows = self.measured(table)
        ends = {row.runs[0]["scores"][-1]["step"]: row.tuned(metric) for row in rows}
        return {0: rows[0].frozen(metric)} | dict(sorted(ends.items()))

    def _find(self, experiment: Experiment, seed: int) -> Mapping | None:
        """The run of this row, or one of another table that is the same run."""
        own = self._runs.get((experiment.table, experiment.row, seed))
        if own is not None or experiment.held_out_split is not None:
            return own
        wanted = (as_json(experiment.changes), experiment.split, seed)
        for run in self._runs.values():
            same = (run["settings"], run["split"], run["seed"]) == wanted
            if same and "unseen" in run["scores"][0]:
                return run
        return None


def as_json(changes: Mapping) -> dict:
    """As JSON has them."""
    return json.loads(json.dumps(dict(changes)))


def value(run: Mapping, index: int, metric: str) -> float:
    """A fraction of the evaluation at `index`; hIoU of held-out classes where there are any."""
    score = run["scores"][index]
    if metric == "hIoU" and "held_out" in score:
        return harmonic_mean(score["seen"], score["held_out"])
    return score[metric.lower().replace("-", "_")]


def gain(run: Mapping, metric: str) -> float:
    """Tuned less frozen."""
    return value(run, -1, metric) - value(run, 0, metric)


def best_step(points: Mapping[int, Estimate]) -> int:
    """The step with the highest mean."""
    return max(points, key=lambda step: points[step].mean)


def row_panels(results: Results) -> dict[str, list[Row]]:
    """Rows of the ablations by title, for `draw_ablations`."""
    return {TITLES[table]: results.measured(table) for table in results.ablations}


def step_panels(results: Results) -> dict[str, dict[str, dict[int, Estimate]]]:
    """Curves by title and metric, for `draw_steps`."""
    metrics_by_table = {"steps_held_out": ("seen", "held-out", "hIoU"), "steps": METRICS}
    return {
        TITLES[table]: {metric: results.step_points(table, metric) for metric in metrics}
        for table, metrics in metrics_by_table.items()
        if table in results.tables
    }
