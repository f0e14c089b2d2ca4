"""Draws docs/method.png: who attends to whom in a masked layer, and where the two losses come from.

    python -m tests.models.draw_method docs/method.png

The upper half is drawn from `ProposalSequence.pattern`, so it shows what the encoder computes, with
a grid of 4 x 4 patches and four proposals in place of 30 x 30 and 100.
"""

import io
import sys

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from maft_jax.models.attention_pattern import ProposalSequence

SIDE, START, LAYERS = 4, 8, 12
WIDTH, HEIGHT = 10, 9.2
"""Of the figure in inches."""
WHOLE, PATCHES, PROPOSALS, OWN = "#7d8590", "#2f6fab", "#d9822b", "#8c3b0a"
PAPER, INK, TUNED, FROZEN, DATA = "#eef1f4", "#1f2328", "#fbe6cf", "#dfe4ea", "#e3eef9"
MASKS = np.zeros((4, SIDE, SIDE), bool)
MASKS[0, :2, :2] = MASKS[1, 1:, 2:] = MASKS[2, 2:] = True  # the last allows no patch
NAMES = ("proposal 1", "proposal 2", "proposal 3", "proposal 4: empty")


def attention_matrix(sequence: ProposalSequence) -> np.ndarray:
    """An RGB colour for every pair of a query (row) and a key (column)."""
    kinds = ((sequence.whole, WHOLE), (sequence.patches, PATCHES), (sequence.proposals, PROPOSALS))
    color_of = {row: color for run, color in kinds for row in run}
    size = sequence.proposals.stop
    colors = np.tile(to_rgb(PAPER), (size, size, 1))
    for segment in sequence.pattern:
        for number, query in enumerate(segment.queries):
            for place, key in enumerate(segment.keys):
                if not segment.masked or MASKS[number].flat[place]:
                    colors[query, key] = to_rgb(color_of[query])
            if segment.own is not None:
                colors[query, segment.own[number]] = to_rgb(OWN)
    return colors


def draw_matrix(axes, sequence: ProposalSequence) -> None:
    """The matrix, with names and lines around its groups of tokens."""
    sizes = np.ones(sequence.proposals.stop)
    sizes[[0, *sequence.proposals]] = 2.5  # room for their names
    edges = np.concatenate([[0], np.cumsum(sizes)])
    axes.pcolormesh(edges, edges, attention_matrix(sequence), edgecolors="white", linewidth=0.6)
    whole, read = "patches of the\nwhole image", "patches that\nproposals read"
    groups = (
        ("class token", "cls", range(1)),
        (whole, whole, range(1, sequence.whole.stop)),
        (read, read, sequence.patches),
        ("", "proposals", sequence.proposals),
    )
    for row_name, column_name, run in groups:
        middle = (edges[run.start] + edges[run.stop]) / 2
        axes.text(middle, -1, column_name, ha="center", va="bottom", fontsize=9)
        axes.text(-1, middle, row_name, ha="right", va="center", fontsize=9)
        for edge in (edges[run.start], edges[run.stop]):
            axes.axhline(edge, color=INK, lw=0.9)
            axes.axvline(edge, color=INK, lw=0.9)
    for row, name in zip(sequence.proposals, NAMES, strict=True):
        middle = (edges[row] + edges[row + 1]) / 2
        axes.text(-1, middle, name, ha="right", va="center", fontsize=9)
    slanted = {"ha": "center", "va": "center", "fontsize": 9.5, "style": "italic"}
    axes.text(edges[-1] / 2, -5.8, "is read (key)", **slanted)
    axes.text(-13, edges[-1] / 2, "reads (query)", rotation=90, **slanted)
    axes.set(xlim=(0, edges[-1]), ylim=(edges[-1], 0), aspect="equal")
    axes.axis("off")


def draw_masks(figure, left: float, bottom: float) -> None:
    """What each proposal's mask allows, on the grid of patches."""
    for number, mask in enumerate(MASKS):
        axes = figure.add_axes([left + 0.098 * number, bottom, 0.078, 0.078 * WIDTH / HEIGHT])
        shown = np.array([to_rgb(PAPER), to_rgb(PROPOSALS)])[mask.astype(int)]
        axes.pcolormesh(shown[::-1], edgecolors="white", linewidth=1)
        axes.set_aspect("equal")
        axes.axis("off")
        axes.set_title(NAMES[number].replace(": ", ":\n"), fontsize=9, va="bottom", pad=3)


def draw_notes(figure, left: float, top: float) -> None:
    """What the colours of the matrix mean."""
    notes = (
        (0.0, WHOLE, "The whole image: plain CLIP, for distillation."),
        (0.05, PATCHES, "Patches read patches, and no class token."),
        (0.1, PROPOSALS, "A proposal, a copy of the class token, reads\nthe patches of its mask"),
        (0.165, OWN, "and itself, but no other proposal."),
    )
    for down, color, text in notes:
        figure.text(left, top - down, "■", color=color, fontsize=13, va="top")
        figure.text(left + 0.03, top - down - 0.002, text, fontsize=9.5, va="top", linespacing=1.3)


def box(axes, x: float, y: float, text: str, color: str, width: float = 2.0) -> None:
    """A step of the computation, around its middle."""
    shape = {"boxstyle": "round,pad=0,rounding_size=0.1", "fc": color, "ec": INK, "lw": 0.9}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.36), width, 0.72, **shape))
    axes.text(x, y, text, ha="center", va="center", fontsize=9, linespacing=1.25)


def arrow(axes, *points: tuple[float, float]) -> None:
    """A line through all points with a head at the last."""
    axes.plot(*zip(*points[:-1], strict=True), color=INK, lw=1.0)
    head = {"arrowstyle": "-|>", "color": INK, "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=head)


def draw_flow(axes) -> None:
    """From images, proposals and labels to the losses."""
    axes.set(xlim=(0, 12), ylim=(0, 4.6), aspect="equal")
    axes.axis("off")
    box(axes, 0.8, 2.75, "image", DATA, 1.2)
    box(axes, 0.8, 1.65, "proposals", DATA, 1.2)
    box(axes, 0.8, 0.55, "labels", DATA, 1.2)
    box(axes, 3.1, 4.05, f"frozen CLIP,\nlayers 0 to {LAYERS - 1}", FROZEN, 1.7)
    box(axes, 3.1, 2.75, f"layers 0 to {START - 1},\nonce for both", TUNED, 1.7)
    box(axes, 5.4, 2.75, f"layers {START} to {LAYERS - 1},\nas drawn above", TUNED, 1.7)
    box(axes, 7.85, 4.05, "whole image's class\nprobabilities", FROZEN)
    box(axes, 7.85, 2.75, "whole image's class\nprobabilities", TUNED)
    box(axes, 7.85, 1.65, "proposals' class\nprobabilities", TUNED)
    box(axes, 4.25, 0.55, "soft IoU of each proposal\nwith each class present", DATA, 2.6)
    box(axes, 7.85, 0.55, "scaled to 0 ... 1\nover the proposals", DATA)
    box(axes, 10.85, 3.4, "distillation loss", "white")
    box(axes, 10.85, 1.1, "mask-aware loss", "white")
    arrow(axes, (0.8, 3.11), (0.8, 4.05), (2.25, 4.05))
    arrow(axes, (3.95, 4.05), (6.85, 4.05))
    arrow(axes, (1.4, 2.75), (2.25, 2.75))
    arrow(axes, (3.95, 2.75), (4.55, 2.75))
    arrow(axes, (6.25, 2.75), (6.85, 2.75))
    arrow(axes, (5.65, 2.39), (5.65, 1.65), (6.85, 1.65))
    arrow(axes, (1.4, 1.65), (5.15, 1.65), (5.15, 2.39))
    arrow(axes, (2.2, 1.65), (2.2, 0.75), (2.95, 0.75))
    arrow(axes, (1.4, 0.55), (2.95, 0.55))
    arrow(axes, (5.55, 0.55), (6.85, 0.55))
    for start, end in ((4.05, 3.55), (2.75, 3.25), (1.65, 1.25), (0.55, 0.95)):
        arrow(axes, (8.85, start), (9.35, start), (9.35, end), (9.85, end))
    for number, (name, color) in enumerate((("data", DATA), ("frozen", FROZEN), ("tuned", TUNED))):
        x = 9.55 + 0.84 * number
        axes.add_patch(Rectangle((x, 4.32), 0.16, 0.16, fc=color, ec=INK, lw=0.7))
        axes.text(x + 0.22, 4.4, name, va="center", fontsize=8.5)


def draw(path: str) -> None:
    """Writes the figure as a PNG with a palette."""
    plt.rcParams["font.family"] = "DejaVu Sans"
    figure = plt.figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    heading = {"fontsize": 12, "weight": "bold"}
    figure.text(0.02, 0.97, f"A masked layer (from layer {START} on)", **heading)
    axes = figure.add_axes([0.165, 0.447, 0.41, 0.41 * WIDTH / HEIGHT])
    draw_matrix(axes, ProposalSequence(SIDE**2, len(MASKS), has_whole=True))
    draw_masks(figure, 0.605, 0.76)
    draw_notes(figure, 0.605, 0.7)
    figure.text(0.02, 0.41, "A training step", **heading)
    draw_flow(figure.add_axes([0.01, 0.01, 0.98, 0.39]))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    picture = Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


if __name__ == "__main__":
    draw(sys.argv[1])
