"""The strip below a picture that says which colour is what, and how much of it there is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from maft_jax.pictures.lettering import letters_for, shortened

_INK, _FAINT, _PAPER = (32, 33, 36), (112, 117, 122), (255, 255, 255)
_NARROWEST = 11
"""Columns are at least so many letter heights wide before rows are left out."""


@dataclass(frozen=True)
class LegendEntry:
    """A line of the legend; without a colour its swatch is hollow."""

    text: str
    share: float
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Cell:
    """Where a line of the legend goes; x, y, width and height in pixels of the strip."""

    entry: LegendEntry
    x: int
    y: int
    width: int
    height: int


def format_share(share: float) -> str:
    """A share as a short percentage, never 0% of what is there."""
    percent = 100 * share
    if percent >= 9.95:
        return f"{percent:.0f}%"
    return f"{percent:.1f}%" if percent >= 0.1 else "<0.1%"


def lay_out_legend(
    entries: Sequence[LegendEntry], width: int, letter_size: int, max_height: int
) -> tuple[list[Cell], int]:
    """Cells in columns, read downwards, and the height of the strip.

    Columns become narrower, and names are shortened, before entries are left out; those that still
    find no place are summed up in the last cell. There are at least three rows.
    """
    line, gap = round(1.55 * letter_size), round(0.9 * letter_size)
    margin = round(0.7 * letter_size)
    room = width - 2 * margin
    max_rows = max(3, (max_height - 2 * margin) // line)
    longest = max(_natural_width(entry, letter_size) for entry in entries)
    columns = max(1, (room + gap) // (min(longest, room) + gap))
    narrowest = min(room, _NARROWEST * letter_size)
    while columns * max_rows < len(entries) and (columns + 1) * narrowest + columns * gap <= room:
        columns += 1
    if columns * max_rows < len(entries):
        kept = entries[: columns * max_rows - 1]
        left_out = entries[len(kept) :]
        rest = LegendEntry(f"and {len(left_out)} more", sum(entry.share for entry in left_out))
        entries = [*kept, rest]
    rows = -(-len(entries) // columns)
    columns = -(-len(entries) // rows)
    widest = (room - (columns - 1) * gap) // columns
    cell_width = min(widest, round(1.15 * longest)) if columns == 1 else widest
    cells = [
        Cell(
            entry,
            margin + (i // rows) * (cell_width + gap),
            margin + (i % rows) * line,
            cell_width,
            line,
        )
        for i, entry in enumerate(entries)
    ]
    return cells, 2 * margin + rows * line


def draw_legend(
    entries: Sequence[LegendEntry], width: int, letter_size: int, max_height: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The strip, as high as it needs to be up to about `max_height`."""
    cells, height = lay_out_legend(entries, width, letter_size, max_height)
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for cell in cells:
        _draw_cell(draw, cell, letter_size)
    return np.asarray(canvas)


def _draw_cell(draw: ImageDraw.ImageDraw, cell: Cell, size: int) -> None:
    side, middle = _swatch(size), cell.y + cell.height / 2
    if cell.entry.color is not None or not cell.entry.text.startswith("and "):
        top = round(middle - side / 2)
        box = (cell.x, top, cell.x + side - 1, top + side - 1)
        outline = None if cell.entry.color else _FAINT
        draw.rounded_rectangle(
            box, max(1, side // 5), cell.entry.color, outline, max(1, size // 12)
        )
    numbers = letters_for("0123456789.%<", size)
    share = format_share(cell.entry.share)
    right = cell.x + cell.width
    draw.text((right, middle), share, _FAINT, numbers, "rm")
    left = cell.x + side + round(0.5 * size)
    room = right - numbers.getlength(share) - round(0.5 * size) - left
    font = _font(cell.entry.text, size)
    draw.text((left, middle), shortened(cell.entry.text, font, room), _INK, font, "lm")


def _natural_width(entry: LegendEntry, size: int) -> int:
    share = letters_for("0123456789.%<", size).getlength(format_share(entry.share))
    text = _font(entry.text, size).getlength(entry.text)
    return round(_swatch(size) + 0.5 * size + text + 0.7 * size + share)


def _swatch(size: int) -> int:
    return max(8, round(0.95 * size))


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    font = letters_for(text, size)
    if font is None:
        raise ValueError(f"legend: no font has the letters of {text!r}; lettering.readable does")
    return font
