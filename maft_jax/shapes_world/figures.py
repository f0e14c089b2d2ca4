"""Figures of the study and of the tiny CLIP's training, drawn without a display."""

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from maft_jax.shapes_world.study_results import (
    METRICS,
    Estimate,
    Row,
)

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

_IN_ROWS = METRICS[:2]
_MARKERS = {"seen": "o", "unseen": "s", "held-out": "s", "hIoU": "^"}
_FROZEN = "#999999"
_WINDOW = 50
"""Steps that the loss is averaged over."""
_WIDTH, _DOTS_PER_INCH = 8.2, 110
"""Inches; together about the width of a page on GitHub."""
_LABEL_LENGTH = 24
"""Characters of a line beside a panel."""


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
