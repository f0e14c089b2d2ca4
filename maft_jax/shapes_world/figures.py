"""What the study measured, over seeds, and figures of it, drawn without a display."""

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from maft_jax.evaluators.zero_shot import harmonic_mean
from maft_jax.shapes_world.experiments import Experiment

COLORS = {
    "seen": "#0072B2",
    "unseen": "#D55E00",
    "held-out": "#D55E00",
    "hIoU": "#009E73",
    "object": "#D55E00",
    "pattern": "#0072B2",
    "color": "#009E73",
}
"""Told apart by everybody (Okabe and Ito)."""

TITLES = {
    "steps_held_out": "Choosing the number of steps",
    "main": "Frozen against tuned",
    "losses": "Losses",
    "distillation_weight": "Weight of distillation",
    "mask_start_layer": "First layer with masks",
    "trainable": "What is trained",
    "loss_kind": "Kind of mask-aware loss",
    "steps": "Number of steps",
    "proposal_number": "Number of proposals",
    "proposal_quality": "Quality of proposals",
    "temperature": "Temperature",
}
"""Of the tables."""

METRICS = ("seen", "unseen", "hIoU")

_IN_ROWS = METRICS[:2]
_MARKERS = {"seen": "o", "unseen": "s", "held-out": "s", "hIoU": "^"}
_FROZEN = "#999999"
_WINDOW = 50
"""Steps that the loss is averaged over."""
_WIDTH, _DOTS_PER_INCH = 8.2, 110
"""Inches; together about the width of a page on GitHub."""
_LABEL_LENGTH = 24
"""Characters of a line beside a panel."""


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

    def points(self, metric: str) -> dict[int, Estimate]:
        """By step; step 0 is the frozen CLIP."""
        steps = [score["step"] for score in self.runs[0]["scores"]]
        return {
            step: Estimate.of([value(run, index, metric) for run in self.runs])
            for index, step in enumerate(steps)
        }


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
            (one.table, one.row, seed): (_plain(one.changes), one.split)
            for one in experiments
            for seed in one.seeds
        }
        for (table, row, seed), run in self._runs.items():
            if expected.get((table, row, seed)) != (run["settings"], run["split"]):
                raise ValueError(
                    f"runs.json: table {table!r}, row {row!r}, seed {seed}: expected a run of "
                    f"EXPERIMENTS, got one of split {run['split']} with the settings "
                    f"{run['settings']}; run the study again"
                )
        there = {run["table"] for run in runs}
        self.tables = [
            name for name in dict.fromkeys(e.table for e in experiments) if name in there
        ]
        self.ablations = [name for name in self.tables if name not in ("main", "steps_held_out")]

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
        """By step: of runs that were evaluated on their way, or of runs of several lengths."""
        rows = self.measured(table)
        if rows[0].experiment.every_steps:
            return rows[0].points(metric)
        ends = {row.runs[0]["scores"][-1]["step"]: row.tuned(metric) for row in rows}
        return {0: rows[0].frozen(metric)} | dict(sorted(ends.items()))

    def _find(self, experiment: Experiment, seed: int) -> Mapping | None:
        """The run of this row, or one of another table that is the same run."""
        own = self._runs.get((experiment.table, experiment.row, seed))
        if own is not None or experiment.every_steps or experiment.held_out_split is not None:
            return own
        wanted = (_plain(experiment.changes), experiment.split, seed)
        for run in self._runs.values():
            same = (run["settings"], run["split"], run["seed"]) == wanted
            if same and "unseen" in run["scores"][0]:
                return run
        return None


def _plain(changes: Mapping) -> dict:
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
    """Rows of the ablations by title, for `draw_ablations`; without those that are curves."""
    tables = {TITLES[table]: results.measured(table) for table in results.ablations}
    return {title: rows for title, rows in tables.items() if not rows[0].experiment.every_steps}


def step_panels(results: Results) -> dict[str, dict[str, dict[int, Estimate]]]:
    """Curves by title and metric, for `draw_steps`."""
    of_table = {"steps_held_out": ("seen", "held-out", "hIoU"), "steps": METRICS}
    return {
        TITLES[table]: {metric: results.step_points(table, metric) for metric in metrics}
        for table, metrics in of_table.items()
        if table in results.tables
    }


def draw_clip_training(curve: Mapping) -> bytes:
    """PNG: the loss of the tiny CLIP, and what it answered when quizzed."""
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    loss = np.array(curve["loss"])
    window = min(_WINDOW, len(loss))
    smooth = np.convolve(loss, np.full(window, 1 / window), "valid")
    left.plot(np.arange(window, len(loss) + 1), smooth, color=COLORS["seen"])
    left.set(xlabel="step", ylabel=f"contrastive loss, mean of {window} steps", ylim=(0, None))
    steps = [quiz["step"] for quiz in curve["quiz"]]
    for name, marker in (("color", "^"), ("pattern", "o"), ("object", "s")):
        right.plot(
            steps,
            [100 * quiz[name] for quiz in curve["quiz"]],
            color=COLORS[name],
            marker=marker,
            markersize=4,
            label=name,
        )
    right.set(xlabel="step", ylabel="named right, %", ylim=(0, 100))
    right.legend(loc="lower right", fontsize=9)
    return _png(figure)


def draw_splits(rows: Sequence[Row]) -> bytes:
    """PNG: bars of each row, frozen beside tuned, a panel for each metric."""
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    places = np.arange(len(rows))
    for panel, metric in zip(panels, METRICS, strict=True):
        frozen = [row.frozen(metric) for row in rows]
        tuned = [row.tuned(metric) for row in rows]
        _draw_bars(panel, places - 0.2, frozen, color=_FROZEN, label="frozen")
        _draw_bars(panel, places + 0.2, tuned, color=COLORS[metric], label="tuned")
        panel.set_title(metric, fontsize=11)
        panel.set_xticks(places, [row.experiment.row for row in rows])
        panel.legend(fontsize=9)
    panels[0].set_ylabel("mIoU, %")
    panels[0].set_ylim(0, panels[0].get_ylim()[1] * 1.25)  # room for the legends
    return _png(figure)


def draw_steps(panels: Mapping[str, Mapping[str, Mapping[int, Estimate]]], num_steps: int) -> bytes:
    """PNG: metrics against steps with their spread, a panel per title; a line at `num_steps`."""
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    for panel, (title, metrics) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for metric, points in metrics.items():
            steps, estimates = list(points), list(points.values())
            mean, spread = np.array([one.mean for one in estimates]), _spreads(estimates)
            color, marker = COLORS[metric], _MARKERS[metric]
            panel.fill_between(
                steps, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0
            )
            panel.plot(steps, mean, color=color, marker=marker, markersize=4, label=metric)
        panel.axvline(num_steps, color=_FROZEN, linestyle="--", label="config.num_steps")
        panel.set_title(title, fontsize=11)
        panel.set(xlabel="step (0 = frozen)", ylabel="mIoU, %")
        panel.set_ylim(0, panel.get_ylim()[1] * 1.3)  # room for the legend
        panel.legend(fontsize=9, loc="upper center", ncols=2)
    return _png(figure)


def draw_ablations(tables: Mapping[str, Sequence[Row]]) -> bytes:
    """PNG: a panel per table, a line per row; hollow = frozen, filled = tuned, bars = spread."""
    columns = min(2, len(tables))
    in_lines = [list(tables.items())[at : at + columns] for at in range(0, len(tables), columns)]
    heights = [1.2 + max(len(rows) for _, rows in line) for line in in_lines]
    figure = Figure(figsize=(_WIDTH, 0.5 + 0.34 * sum(heights)), layout="constrained")
    panels = figure.subplots(
        len(in_lines), columns, squeeze=False, sharex=True, height_ratios=heights
    )
    for panel in panels.flat[len(tables) :]:
        panel.set_visible(False)
    for panel, (title, rows) in zip(panels.flat, tables.items(), strict=False):
        _draw_rows(panel, rows)
        panel.set_title(title, fontsize=10, loc="left")
        panel.xaxis.set_tick_params(labelbottom=True)
    panels[0, 0].set_xlim(0, None)  # of all: the last, since it keeps what there is
    figure.legend(
        handles=[_key(metric, tuned) for metric in _IN_ROWS for tuned in (False, True)],
        loc="outside upper center",
        ncols=4,
        fontsize=9,
    )
    figure.supxlabel("mIoU, %", fontsize=10)
    return _png(figure)


def _draw_bars(panel: Axes, places: np.ndarray, estimates: Sequence[Estimate], **style) -> None:
    means = [one.mean for one in estimates]
    panel.bar(places, means, 0.38, yerr=_spreads(estimates), capsize=3, **style)


def _draw_rows(panel: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        for metric, above in zip(_IN_ROWS, (-0.15, 0.15), strict=True):
            frozen, tuned = row.frozen(metric), row.tuned(metric)
            style = {"color": COLORS[metric], "marker": _MARKERS[metric], "markersize": 5}
            panel.plot(frozen.mean, place + above, markerfacecolor="white", **style)
            panel.errorbar(tuned.mean, place + above, xerr=_spreads([tuned]), capsize=2, **style)
    labels = [textwrap.fill(row.label, _LABEL_LENGTH) for row in rows]
    panel.set_yticks(range(len(rows)), labels, fontsize=9)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.grid(axis="x", alpha=0.3)


def _key(metric: str, tuned: bool) -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="",
        color=COLORS[metric],
        marker=_MARKERS[metric],
        markerfacecolor=COLORS[metric] if tuned else "white",
        label=f"{metric}, {'tuned' if tuned else 'frozen'}",
    )


def _spreads(estimates: Sequence[Estimate]) -> np.ndarray:
    """Lengths of bars: none where one seed says nothing about others."""
    return np.array([one.spread or 0.0 for one in estimates])


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()
