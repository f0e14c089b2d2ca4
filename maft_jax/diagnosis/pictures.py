"""Figures of the diagnosis, frozen beside tuned, drawn with matplotlib without a display."""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from maft_jax.diagnosis.report import Measurements, best_known_classes, triples_of_class
from maft_jax.diagnosis.statistics import (
    LOW_IOU,
    MOSTLY,
    FalsePositive,
    ImageScores,
    binned_means,
    confident_false_positives,
    joined,
    mean_row_spearman,
    pearson,
    spearman,
)
from maft_jax.pictures.lettering import letters_for, readable, wrapped
from maft_jax.pictures.sheets import outline

COLORS = ("#0072B2", "#D55E00")
"""Of the columns, from left to right; told apart by everybody (Okabe and Ito)."""

_TITLES = {"frozen": "frozen CLIP", "tuned": "tuned CLIP", "clip": "CLIP"}
_LINE = "#D55E00"
_DENSITY = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 256)))
_SMALLEST_BIN = 5
_SMALLEST_CROP = 48
_CROP_SIZE = 240
_SURROUNDINGS = 0.5
_CAPTION_SIZE, _CAPTION_WIDTH = 14, 222.0
_DOTS_PER_INCH = 110


def draw_score_against_iou(measured: Measurements) -> bytes:
    """PNG: all (image, present class, proposal) triples of each column, on the same axes."""
    iou = joined([truth.iou for truth in measured.truths])
    columns = {
        title: joined([one.present_probability for one in scores])
        for title, scores in measured.scores.items()
    }
    figure = Figure(figsize=(1.2 + 5 * len(columns), 5.4), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False, sharex=True, sharey=True)[0]
    densities = []
    for panel, (title, score) in zip(panels, columns.items(), strict=True):
        densities.append(_draw_triples(panel, iou, score, 40, _top(columns.values())))
        panel.set_title(
            f"{_title(title)}\n{_correlations(iou, score)}\n{_row_correlation(measured, title)}",
            fontsize=10.5,
        )
        panel.set_xlabel("IoU of proposal and class")
    panels[0].set_ylabel("probability of the class  (line: its mean)")
    _share_colors(densities)
    figure.colorbar(densities[-1], ax=panels, label="proposals in a hexagon", pad=0.01)
    figure.suptitle(
        f"Does the score of a class rise with IoU?\n{_describe(measured, len(iou))}",
        fontsize=12,
        parse_math=False,
    )
    return _png(figure)


def draw_classes(measured: Measurements, num_classes: int = 6) -> bytes:
    """PNG: the same for the classes that the most images have, a row for each column."""
    classes = best_known_classes(measured, num_classes)
    titles = list(measured.scores)
    figure = Figure(
        figsize=(0.8 + 2.3 * max(len(classes), 2), 0.9 + 2.6 * len(titles)), layout="constrained"
    )
    panels = figure.subplots(
        len(titles), max(len(classes), 1), squeeze=False, sharex=True, sharey=True
    )
    top = _top([one.present_probability for scores in measured.scores.values() for one in scores])
    densities = []
    for row, (title, scores) in enumerate(measured.scores.items()):
        for panel, class_id in zip(panels[row], classes, strict=False):
            iou, score = triples_of_class(measured.truths, scores, class_id)
            densities.append(_draw_triples(panel, iou, score, 20, top))
            heading = f"r = {_number(pearson(iou, score))}"
            if row == 0:
                heading = f"{_name(measured.class_names, class_id)}\n{heading}"
            panel.set_title(heading, fontsize=9.5, parse_math=False, **_font(heading))
        panels[row, 0].set_ylabel(f"{_title(title)}\nprobability of the class")
    panels[0, 0].set_xticks([0, 0.5, 1])
    _share_colors(densities)
    figure.supxlabel("IoU of proposal and class", fontsize=10)
    figure.suptitle(
        f"Score against IoU, class by class\n{measured.dataset}, the {len(classes)} most frequent "
        "classes, with Pearson's r",
        fontsize=12,
        parse_math=False,
    )
    return _png(figure)


def draw_similarity(measured: Measurements) -> bytes:
    """PNG: histograms over images of how alike and how certain the scores of proposals are."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    parts = {
        "cosine": ("How alike two proposals are scored", "mean cosine similarity\n(1 = all alike)"),
        "entropy": (
            "How undecided the scores are",
            "mean entropy / log(number of classes)\n(0 = all on one class, 1 = all classes alike)",
        ),
        "max_probability": (
            "How sure CLIP is of its first choice",
            "mean largest probability\n(1 = certain)",
        ),
    }
    for panel, (name, (heading, label)) in zip(panels, parts.items(), strict=True):
        for number, (title, scores) in enumerate(measured.scores.items()):
            _draw_histogram(panel, name, title, scores, COLORS[number], ("--", "-")[number])
        panel.set(xlim=(0, 1), xlabel=label)
        panel.set_title(heading, fontsize=11)
        panel.yaxis.get_major_locator().set_params(integer=True)
        panel.set_ylim(0, panel.get_ylim()[1] * 1.35)  # room for the legend
        panel.legend(loc="upper center", fontsize=9, framealpha=1)
    panels[0].set_ylabel("images")
    figure.suptitle(
        f"Does CLIP tell the proposals of an image apart?\n{_describe(measured)}",
        fontsize=12,
        parse_math=False,
    )
    return _png(figure)


def draw_false_positives(
    measured: Measurements,
    found: dict[str, list[tuple[FalsePositive, UInt8[np.ndarray, "h w 3"]]]],
) -> bytes:
    """PNG: a row of crops for each column, made by `crop_around`, with what CLIP says of them."""
    width = max([4, *map(len, found.values())])  # narrower, the title would not fit
    figure = Figure(figsize=(2.3 * width + 0.4, 0.7 + 3.1 * len(found)))
    figure.set_layout_engine("constrained", h_pad=0.05, w_pad=0.05)
    panels = figure.subplots(len(found), width, squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[], frame_on=False)
    for row, (title, crops) in enumerate(found.items()):
        panels[row, 0].set_ylabel(_title(title), fontsize=12, fontweight="bold")
        if not crops:
            panels[row, 0].set_title("none", fontsize=10)
        for panel, (one, crop) in zip(panels[row], crops, strict=False):
            panel.imshow(crop, interpolation="nearest")
            verdict = _verdict(one, measured.class_names)
            panel.set_title(verdict, fontsize=9, loc="left", parse_math=False, **_font(verdict))
    shares = [
        f"{_title(title)} {_percent(confident_false_positives(measured.truths, scores))}"
        for title, scores in measured.scores.items()
    ]
    figure.suptitle(
        f"The worst false positives: highest scores at an IoU below {LOW_IOU:g}, one per image\n"
        f"Share of proposals scored {MOSTLY:g} or more at such an IoU: {', '.join(shares)}",
        fontsize=12,
    )
    return _png(figure)


def crop_around(
    image: UInt8[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "s s 3"]:
    """A square with a mask and its surroundings, the mask outlined; beyond the image is white."""
    places = [np.flatnonzero(inside.any(axis)) for axis in (1, 0)]
    if not len(places[0]):
        places = [np.arange(size) for size in inside.shape]
    ends = [(int(place[0]), int(place[-1]) + 1) for place in places]
    widest = max(end - start for start, end in ends)
    side = min(max(math.ceil(1.5 * widest), _SMALLEST_CROP), max(inside.shape))
    box = []
    for (start, end), size in zip(ends, inside.shape, strict=True):
        first = min(max((start + end - side) // 2, 0), max(size - side, 0))
        box.append(slice(first, first + side))
    crop, mask = image[tuple(box)], inside[tuple(box)]
    height, width = (max(1, round(length * _CROP_SIZE / side)) for length in mask.shape)
    crop, mask = (
        np.asarray(Image.fromarray(array).resize((width, height), how))
        for array, how in (
            (crop, Image.Resampling.BICUBIC),
            (mask, Image.Resampling.NEAREST),
        )
    )
    canvas = np.full((_CROP_SIZE, _CROP_SIZE, 3), 255, np.uint8)
    canvas[:height, :width] = outline(crop, mask, _SURROUNDINGS)
    return canvas


def _draw_triples(panel: Axes, iou: np.ndarray, score: np.ndarray, bins: int, top: float):
    """Density of the triples and the line of their mean; returns what the colours stand for."""
    height = max(1, round(bins / 1.7))
    density = panel.hexbin(
        iou,
        score,
        gridsize=(bins, height),
        extent=(0, 1, 0, top),
        mincnt=1,
        cmap=_DENSITY,
        norm=LogNorm(),
        linewidths=0.1,
    )
    means = binned_means(iou, score, bins // 2)
    centres = (means.edges[:-1] + means.edges[1:]) / 2
    line = np.where(means.count >= _SMALLEST_BIN, means.mean, np.nan)
    panel.plot(centres, line, "o-", color="white", linewidth=4, markersize=6)
    panel.plot(centres, line, "o-", color=_LINE, linewidth=2, markersize=3.5)
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02 * top, 1.02 * top))
    return density


def _share_colors(densities: list) -> None:
    """One scale for all panels, from one triple to the most in any hexagon."""
    counts = [density.get_array() for density in densities]
    most = max([10, *(count.max() for count in counts if count.size)])
    for density in densities:
        density.set_norm(LogNorm(1, most))


def _draw_histogram(
    panel: Axes, name: str, title: str, scores: Sequence[ImageScores], color: str, line: str
) -> None:
    values = [getattr(one, name) for one in scores if getattr(one, name) is not None]
    mean = f"mean {np.mean(values):.3f}" if values else "none"
    options = {"bins": np.linspace(0, 1, 31), "color": color}
    panel.hist(values, alpha=0.35, **options)
    panel.hist(values, histtype="step", linewidth=1.2, **options)
    at = np.mean(values) if values else np.nan
    panel.axvline(
        at, ymax=0.78, color=color, linestyle=line, linewidth=2, label=f"{_title(title)}, {mean}"
    )


def _correlations(iou: np.ndarray, score: np.ndarray) -> str:
    return f"Pearson {_number(pearson(iou, score))}   Spearman {_number(spearman(iou, score))}"


def _row_correlation(measured: Measurements, title: str) -> str:
    found = mean_row_spearman(
        [row for truth in measured.truths for row in truth.iou],
        [row for one in measured.scores[title] for row in one.present_probability],
    )
    return f"Spearman within one image and class: {_number(found)} on average"


def _describe(measured: Measurements, num_triples: int | None = None) -> str:
    parts = [measured.dataset, f"{len(measured.truths)} images"]
    if num_triples is not None:
        parts.append(f"{num_triples:,} proposals of present classes")
    return ", ".join(parts)


def _verdict(one: FalsePositive, class_names: Sequence[str]) -> str:
    font = letters_for(one.example_id, _CAPTION_SIZE)
    example_id = one.example_id
    while font and font.getlength(f"…{example_id}") > _CAPTION_WIDTH:
        example_id = example_id[1:]
    return "\n".join(
        [
            example_id if example_id == one.example_id else f"…{example_id}",
            f"scored {one.score:.2f}: {_name(class_names, one.predicted, 'scored 0.00: ')}",
            f"IoU with it: {one.iou:.2f}",
            f"is {one.majority_share:.0%} {_name(class_names, one.majority, 'is 100% ')}",
        ]
    )


def _name(class_names: Sequence[str], class_id: int, after: str = "") -> str:
    """A class's name in up to two lines that fit a caption, the first one after other text."""
    name = readable(class_names[class_id], class_id)
    font = letters_for(after + name, _CAPTION_SIZE)
    if font is None:
        return f"#{class_id}"
    room = _CAPTION_WIDTH - font.getlength(after)
    if font.getlength(name) <= room:
        return name
    return "\n".join(wrapped(name, font, room, most_lines=2))


def _font(text: str) -> dict[str, FontProperties]:
    """The argument that makes matplotlib use a font with these letters."""
    font = letters_for(text, _CAPTION_SIZE)
    return {} if font is None else {"fontproperties": FontProperties(fname=font.path)}


def _title(column: str) -> str:
    return _TITLES.get(column, column)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _top(scores) -> float:
    """Upper end of the axis of probabilities: a tenth that all are below."""
    largest = max((one.max() for one in scores if one.size), default=1.0)
    return min(1.0, max(0.1, math.ceil(largest * 10 + 1e-9) / 10))


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()
