"""Pieces of the Markdown pages that programs write."""

import textwrap
from collections.abc import Iterable, Sequence

_COLUMNS = 100


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def paragraph(text: str, indent: str = "") -> str:
    """In lines of at most 100 columns, all but the first of which begin with `indent`."""
    return textwrap.fill(
        text, _COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def bullets(*texts: str) -> str:
    return "\n".join(paragraph(f"* {text}", "  ") for text in texts)
