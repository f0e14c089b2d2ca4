"""Class lists with a line of headings: CSV files, tab-separated ones, and ADE's objectInfo150."""

import csv
import re
from collections.abc import Sequence

from input_pipeline.class_list_formats.documents import Found
from input_pipeline.class_list_formats.listed_class import WRITE_LINES, ListedClass, read_thing

_VALUE_HEADING = re.compile(
    r"((label|class|category|pixel|train) ?)?(id|idx|index|value|number)|key|pixel"
)
_NAME_HEADING = re.compile(
    r"((label|class|category) ?)?names?|labels?|class(es| label)?|categor(y|ies)"
)
_THING_HEADING = re.compile(r"is ?thing|things?|thing/stuff|thing or stuff")
_COLOR_HEADINGS = (("r", "g", "b"), ("red", "green", "blue"))
_DELIMITERS = ("\t", ",", ";")


def has_heading(line: str) -> bool:
    """Whether a line, or a cell of it, says that names are below it instead of naming a class."""
    cells = _headings(re.split(r"[\t,;|]", line.strip().rstrip(":")))
    words = _headings(line.split())
    of_words = all(word == "color" or _NAME_HEADING.fullmatch(word) for word in words)
    return of_words or any(map(_NAME_HEADING.fullmatch, cells))


def read_table(lines: Sequence[str], where: str) -> Found | None:
    """Classes of the lines below headings such as `id,name`; None where the first has none.

    Columns of red, green and blue in place of label values give a list of colours.
    """
    delimiter = next((d for d in _DELIMITERS if d in lines[0]), " ")
    words = _headings(_cells(lines[0], delimiter))
    names = [i for i, word in enumerate(words) if _NAME_HEADING.fullmatch(word)]
    values = [i for i, word in enumerate(words) if _VALUE_HEADING.fullmatch(word)]
    colors = [words.index(word) for word in _color_headings(words)]
    if len(words) < 2 or not names or not (values or colors or len(names) == len(words)):
        return None
    rows = _rows(lines, delimiter, len(words), where)
    things = next((i for i, word in enumerate(words) if _THING_HEADING.fullmatch(word)), None)
    if not values:
        values = [i for i in names if all(row[i].isdecimal() for row in rows)]
        names = [i for i in names if i not in values]
    if "name" in words:
        names = [words.index("name")]
    if not (values or colors):
        return None
    if len(names) != 1 or len(values) > 1:
        raise ValueError(
            f"{where}:1: expected one column of names and one of label values, the headings are "
            f"{words}; delete the other columns, or {WRITE_LINES}"
        )
    several = "ratio" in words  # objectInfo150: `building, edifice`
    listed = []
    for number, row in enumerate(rows, start=2):
        place = f"{where}:{number}"
        name = re.split("[,;]", row[names[0]])[0].strip() if several else row[names[0]]
        if not name:
            raise ValueError(f"{place}: the class name is blank; delete the line or name the class")
        value = _integer(row[values[0]], place) if values else None
        color = tuple(_integer(row[i], place) for i in colors) if colors else None
        is_thing = None if things is None else read_thing(row[things], place)
        listed.append(ListedClass(place, value, name, color=color, is_thing=is_thing))
    if not values:
        return listed, "colours -> classes"
    taken_for = f"columns {words[values[0]]!r} -> {words[names[0]]!r}"
    return listed, taken_for + (", the first of several names" if several else "")


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter in ",;":
        (cells,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
    else:
        cells = line.split(delimiter if delimiter == "\t" else None)
    return [cell.strip() for cell in cells]


def _headings(cells: Sequence[str]) -> list[str]:
    return [" ".join(re.split(r"[\s_-]+", cell.strip().lower())) for cell in cells]


def _color_headings(words: Sequence[str]) -> Sequence[str]:
    return next((colors for colors in _COLOR_HEADINGS if set(colors) <= set(words)), ())


def _rows(lines: Sequence[str], delimiter: str, width: int, where: str) -> list[list[str]]:
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        row = _cells(line, delimiter)
        if delimiter == " " and len(row) > width == 2:
            row = line.split(None, 1)
        if len(row) != width:
            raise ValueError(
                f"{where}:{number}: expected {width} columns as in the headings on line 1, found "
                f"{line.strip()!r}; put names with the separator in double quotes, or {WRITE_LINES}"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{where}:1: found headings {lines[0].strip()!r} and no class below them")
    return rows


def _integer(cell: str, place: str) -> int:
    if not cell.isdecimal():
        raise ValueError(
            f"{place}: expected an integer from 0, found {cell!r}; correct it, or {WRITE_LINES}"
        )
    return int(cell)
