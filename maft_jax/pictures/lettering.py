"""Text in pictures: fonts that have the letters, and lines that fit."""

import functools
import logging
import re
import unicodedata
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

SMALLEST = 11
"""Pixels of a font below which letters of most scripts run together."""

_BOLD, _REGULAR = "DejaVuSans-Bold.ttf", "DejaVuSans.ttf"
_NO_LETTERS = ("lastresort", "emoji", "symbol", "dingbat")
"""In names of fonts that have boxes or pictures for letters."""

_PIECES = re.compile(r"[\u2e80-\u9fff\uff00-\uffef]|[^\s\-/,;]*?[\-/,;]+|[^\s\-/,;]+|\s+")
"""What a line may end after; Chinese and Japanese have no spaces."""

logger = logging.getLogger(__name__)


def letters_for(text: str, size: int, bold: bool = False) -> ImageFont.FreeTypeFont | None:
    """A font with all letters of a text: DejaVu Sans, else one of the system's; None without."""
    path = _font_with(_needed(text), bold)
    return None if path is None else _load(path, size)


def readable(text: str, number: int) -> str:
    """The text if a font has its letters, else "#number"; tells so once."""
    if letters_for(text, SMALLEST) is not None:
        return text
    _warn_once(_needed(text))
    return f"#{number}"


def letter_size(height: int, width: int) -> int:
    """Pixels of the text in a picture of this size."""
    return max(SMALLEST, round(min(0.021 * (height * width) ** 0.5, width / 22)))


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float | int) -> str:
    """As much of the text as is at most `width` pixels wide, with an ellipsis if cut."""
    if font.getlength(text) <= width:
        return text
    dots = "…" if _has(font.path, "…") else "..."
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = font.getlength(text[:middle].rstrip() + dots) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[:low].rstrip() + dots if low else ""


def wrapped(
    text: str, font: ImageFont.FreeTypeFont, room: float | int, most_lines: int = 3
) -> tuple[str, ...]:
    """The text in lines of similar length, broken at spaces and after hyphens and the like.

    Lines of more than `room` pixels are shortened.
    """
    pieces = _PIECES.findall(text)
    lengths = [font.getlength(piece) for piece in pieces]
    width = max(sum(lengths) / most_lines, max(lengths, default=0))
    for widened in (1.0, 1.15, 1.35, 1.6, 2.0):
        lines = _filled(pieces, lengths, min(room, widened * width))
        if len(lines) <= most_lines:
            break
    lines = [*lines[: most_lines - 1], "".join(lines[most_lines - 1 :])]
    return tuple(shortened(line.strip(), font, room) for line in lines if line.strip())


def _filled(pieces: list[str], lengths: list[float], width: float | int) -> list[str]:
    """Lines, each with as many pieces as fit and at least one."""
    lines, used = [""], 0.0
    for piece, length in zip(pieces, lengths, strict=True):
        if lines[-1].strip() and used + length > width and piece.strip():
            lines.append("")
            used = 0.0
        lines[-1] += piece
        used += length
    return lines


def _needed(text: str) -> str:
    """Letters that leave ink, once each."""
    invisible = ("Cf", "Zs", "Cc")
    return "".join(sorted({c for c in text if unicodedata.category(c) not in invisible}))


@functools.lru_cache(maxsize=10_000)
def _font_with(needed: str, bold: bool) -> str | None:
    own = Path(matplotlib.get_data_path(), "fonts", "ttf")
    for name in (_BOLD, _REGULAR) if bold else (_REGULAR,):  # the bold one has fewer letters
        if _has(str(own / name), needed):
            return str(own / name)
    return next((path for path in _system_fonts() if _has(path, needed)), None)


@functools.cache
def _system_fonts() -> list[str]:
    """Scalable fonts with letters, upright sans-serif ones first."""
    from matplotlib import font_manager  # late: it looks through all folders of fonts

    def order(path: str):
        name = Path(path).stem.lower()
        odd = ("italic", "oblique", "mono", "thin", "light", "black", "condensed")
        return "sans" not in name, sum(word in name for word in odd), "serif" in name, name

    found = font_manager.findSystemFonts()
    return sorted((p for p in found if not any(w in p.lower() for w in _NO_LETTERS)), key=order)


def _has(path: str, needed: str) -> bool:
    font = _opened(path)
    return font is not None and all(font.get_char_index(ord(letter)) for letter in needed)


@functools.lru_cache(maxsize=1000)
def _opened(path: str) -> FT2Font | None:
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return None
    return font if font.scalable else None


@functools.lru_cache(maxsize=200)
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.cache
def _warn_once(needed: str) -> None:
    logger.warning(
        "no font on this machine has the letters %s; pictures show the class's number instead "
        "(install one, such as Noto Sans)",
        needed,
    )
