"""Class lists of one class a line, and the way into all formats.

What is not recognised with certainty is refused by line: a list that is read one label off trains
to nonsense without a word.
"""

import re
from collections.abc import Sequence

from input_pipeline.class_list_formats.documents import Found, read_json, read_yaml
from input_pipeline.class_list_formats.label_map_pbtxt import read_pbtxt
from input_pipeline.class_list_formats.listed_class import THINGS, WRITE_LINES, ListedClass
from input_pipeline.class_list_formats.tables import has_heading, read_table

_COLOR_LINE = re.compile(r"([^:]+):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*:[^:]*:[^:]*")
_COLOR_HEADING = re.compile(r"#\s*label\s*:\s*color_rgb\b.*")
_COLOR_FIRST = re.compile(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+([^\d\s].*)")
_IGNORE, _BACKGROUND = "__ignore__", "_background_"

_TAB = re.compile(r"\s*(?P<value>\d+)\s*\t\s*(?P<name>.*)")
_NUMBERED = {
    "number: name": re.compile(r"\s*(?P<value>\d+)\s*:\s*(?P<name>[^\d\s].*)"),
    "number,name": re.compile(r"\s*(?P<value>\d+)\s*,\s*(?P<name>[^\d\s].*)"),
    "number;name": re.compile(r"\s*(?P<value>\d+)\s*;\s*(?P<name>[^\d\s].*)"),
    "number=name": re.compile(r"\s*(?P<value>\d+)\s*=\s*(?P<name>[^\d\s].*)"),
    "number) name": re.compile(r"\s*(?P<value>\d+)\s*\)\s*(?P<name>[^\d\s].*)"),
    "number. name": re.compile(r"\s*(?P<value>\d+)\.\s+(?P<name>[^\d\s].*)"),
    "name<TAB>number": re.compile(r"\s*(?P<name>\S.*?)\s*\t\s*(?P<value>\d+)\s*"),
    "name: number": re.compile(r"\s*(?P<name>\S.*?)\s*:\s*(?P<value>\d+)\s*"),
    "name,number": re.compile(r"\s*(?P<name>\S.*?)\s*,\s*(?P<value>\d+)\s*"),
    "name;number": re.compile(r"\s*(?P<name>\S.*?)\s*;\s*(?P<value>\d+)\s*"),
    "name=number": re.compile(r"\s*(?P<name>\S.*?)\s*=\s*(?P<value>\d+)\s*"),
}
_OF_SEVERAL_NAMES = "number: name"
_NO_CLASS = "invalid_class_id"
"""What FC-CLIP's lists call values that are not used."""
_NUMBER_FIRST = re.compile(r"\s*(?P<value>\d+)\s+(?P<name>\S.*)")
_NUMBER_LAST = re.compile(r"\s*(?P<name>\S.*?)\s+(?P<value>\d+)\s*")
_NUMBER_AT_AN_END = re.compile(
    r"\s*[(\[]?-?\d+\s*[^\w\s].*|\s*\d+_.*|.*[^\w\s]\s*-?\d+\s*[)\]]?\s*|\D+_?\d+\s*[:=].*"
)
"""A number set off by a sign, at the beginning or the end; `class_1: road` is one, too."""
_TOO_LONG = re.compile(r".{501}|.*?\s{101}")
_NOT_OF_NAMES = re.compile(r"#|-\s|.*[\t{}<>]|.*\s#\s|.*,\s*$|\s*(['\"]).*\1\s*$")


def read_listed_classes(text: str, where: str) -> Found:
    """The classes of a list in the order of its file, and what it was taken for.

    Raises ValueError, with the line, for what is no class list of a known format.
    """
    listed, taken_for = _read(text, where)
    classes = [
        entry._replace(is_class=entry.is_class and entry.name != _NO_CLASS) for entry in listed
    ]
    return classes, taken_for


def _read(text: str, where: str) -> Found:
    found = read_json(text, where) or read_yaml(text, where) or read_pbtxt(text, where)
    if found is not None:
        return found
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(
                f"{where}:{number}: the class name is blank; delete the line or name the class"
            )
        if _TOO_LONG.match(line):  # for which expressions above take as long as its square
            raise ValueError(
                f"{where}:{number}: expected a class on the line, found more than 500 characters, "
                "or 100 blanks; shorten it"
            )
    return (
        _colors(lines, where)
        or _colors_first(lines, where)
        or _labelme(lines, where)
        or read_table(lines, where)
        or _numbered(lines, where)
        or _names(lines, where)
    )


def _colors(lines: Sequence[str], where: str) -> Found | None:
    """CVAT's labelmap.txt: `name:r,g,b:parts:actions` below a heading."""
    has_heading = _COLOR_HEADING.fullmatch(lines[0])
    if not has_heading and not _COLOR_LINE.fullmatch(lines[0]):
        return None
    listed = []
    for number, line in enumerate(lines, start=1):
        match = _COLOR_LINE.fullmatch(line)
        if match:
            color = tuple(map(int, match.groups()[1:]))
            listed.append(ListedClass(f"{where}:{number}", None, match[1].strip(), color=color))
        elif number > 1 or not has_heading:
            raise ValueError(
                f"{where}:{number}: expected 'label:red,green,blue:parts:actions' as in CVAT's "
                f"labelmap.txt, found {line.strip()!r}; correct the line"
            )
    return listed, "colours -> classes"


def _colors_first(lines: Sequence[str], where: str) -> Found | None:
    """label_colors.txt of CamVid and Cityscapes, also by CVAT: `red green blue name` lines."""
    start = 1 if lines[0].startswith("#") and len(lines) > 1 else 0
    if not _COLOR_FIRST.fullmatch(lines[start]):
        return None
    listed = []
    for number, line in enumerate(lines[start:], start=start + 1):
        match = _COLOR_FIRST.fullmatch(line)
        if not match:
            raise ValueError(
                f"{where}:{number}: expected 'red green blue name' as on line {start + 1}, found "
                f"{line.strip()!r}; correct the line"
            )
        color = tuple(map(int, match.groups()[:3]))
        listed.append(ListedClass(f"{where}:{number}", None, match[4].strip(), color=color))
    return listed, "colours -> classes"


def _labelme(lines: Sequence[str], where: str) -> Found | None:
    """labelme's list, whose first line is -1: `__ignore__`, `_background_`, then the classes."""
    names = [line.strip() for line in lines]
    if _IGNORE not in names:
        return None
    if names[:2] != [_IGNORE, _BACKGROUND]:
        number = 1 if names[0] != _IGNORE else 2
        raise ValueError(
            f"{where}:{number}: expected a list of labelme, with {_IGNORE!r} on line 1 and "
            f"{_BACKGROUND!r} on line 2, found {names[number - 1]!r}; correct it, or {WRITE_LINES}"
        )
    listed = [
        ListedClass(f"{where}:{value + 2}", value, "background" if value == 0 else name)
        for value, name in enumerate(names[1:])
    ]
    return listed, f"labelme's list: {_BACKGROUND} is 0"


def _numbered(lines: Sequence[str], where: str) -> Found | None:
    """Lines that all give their label value; None for lines of names alone."""
    if any(map(_TAB.fullmatch, lines)):
        return _matched(_TAB, "integer<TAB>name", lines, where), "value<TAB>name"
    for form, pattern in _NUMBERED.items():
        matches = sum(1 for line in lines if pattern.fullmatch(line))
        if 2 * matches >= len(lines):
            listed = _matched(pattern, form, lines, where)
            if form == _OF_SEVERAL_NAMES:
                listed = [_with_synonyms(entry) for entry in listed]
            _check_single_names(listed, form)
            several = sum(bool(entry.synonyms) for entry in listed)
            return listed, f"lines of {form!r}" + f", {several} with several names" * (several > 0)
    first = [match["name"] for line in lines if (match := _NUMBER_FIRST.fullmatch(line))]
    if len(first) > 1 and 2 * len(first) >= len(lines) and len(set(first)) > 1:
        listed = _matched(_NUMBER_FIRST, "number name", lines, where)
        _check_single_names(listed, "number name")
        return listed, "lines of 'number name'"
    last = [match["name"] for line in lines if (match := _NUMBER_LAST.fullmatch(line))]
    if len(last) > 1 and len(last) == len(lines) and len(set(last)) > 1:
        raise ValueError(
            f"{where}:1: every line ends in a number, {lines[0].strip()!r}, which may be part of "
            f"the name or its label value; {WRITE_LINES}"
        )
    return None


def _matched(pattern: re.Pattern, form: str, lines: Sequence[str], where: str) -> list[ListedClass]:
    matches = [pattern.fullmatch(line) for line in lines]
    first = next(i for i, match in enumerate(matches, start=1) if match)
    listed = []
    for number, (line, match) in enumerate(zip(lines, matches, strict=True), start=1):
        place = f"{where}:{number}"
        if not match:
            raise ValueError(
                f"{place}: expected {form!r} as on line {first}, found {line.strip()!r}; use one "
                "form throughout the file"
            )
        name, is_thing = _name_and_kind(match["name"])
        if not name:
            raise ValueError(f"{place}: the class name is blank; delete the line or name the class")
        if "\t" in name:
            raise ValueError(
                f"{place}: expected {form!r}, found more columns, {line.strip()!r}; {WRITE_LINES}"
            )
        if listed and (is_thing is None) != (listed[0].is_thing is None):
            raise ValueError(
                f"{place}: expected thing or stuff in a last column of all lines or of none, found "
                f"{line.strip()!r}; complete the lines, or remove the column"
            )
        listed.append(ListedClass(place, int(match["value"]), name, is_thing=is_thing))
    return listed


def _name_and_kind(text: str) -> tuple[str, bool | None]:
    """The name, and what a last column `thing` or `stuff` says."""
    name, tab, kind = text.strip().rpartition("\t")
    if tab and kind.strip().lower() in ("thing", "stuff"):
        return name.strip(), THINGS[kind.strip().lower()]
    return text.strip(), None


def _with_synonyms(entry: ListedClass) -> ListedClass:
    """FC-CLIP's `1:person,child`: names between commas, of which the first stands for all."""
    names = dict.fromkeys(name.strip() for name in entry.name.split(","))
    if "" in names:
        raise ValueError(
            f"{entry.place}: expected names with one comma between them, found {entry.name!r}; "
            "delete the comma too many, or write the name that is missing"
        )
    name, *synonyms = names
    return entry._replace(name=name, synonyms=tuple(synonyms))


def _check_single_names(listed: Sequence[ListedClass], form: str) -> None:
    """Refuses several names for a class, further columns, and numbers that are part of names."""
    for entry in listed:
        wrong = (n for n in (entry.name, *entry.synonyms) if re.search(r"[,;:=]|^[\W\d]", n))
        if (name := next(wrong, None)) is not None:
            raise ValueError(
                f"{entry.place}: expected {form!r} with one name, found {name!r} for value "
                f"{entry.value}; several names for a class are read as 'number:name,synonym', "
                f"further columns are not: keep one name, and {WRITE_LINES}"
            )


def _names(lines: Sequence[str], where: str) -> Found:
    """One name a line, whose label value is its line number - 1."""
    if len(lines) > 1 and has_heading(lines[0]):
        raise ValueError(
            f"{where}:1: {lines[0].strip()!r} looks like a heading, which is no class; delete the "
            f"line, or {WRITE_LINES}"
        )
    numbered = [bool(_NUMBER_AT_AN_END.fullmatch(line)) for line in lines]
    alike = len(lines) > 1 and len({re.sub(r"\d+", "", line).strip() for line in lines}) == 1
    many_numbered = 2 * sum(numbered) >= len(lines) and not alike  # T-34 and T-72 are names
    listed = []
    for value, line in enumerate(lines):
        place = f"{where}:{value + 1}"
        if _NOT_OF_NAMES.match(line) or (many_numbered and numbered[value]):
            raise ValueError(
                f"{place}: expected a class name, found {line.strip()!r}; if it is one, or its "
                f"label value is in it, {WRITE_LINES}; else delete the line"
            )
        name = "background" if line.strip() == _BACKGROUND else line.strip()  # labelme's
        listed.append(ListedClass(place, value, name, value_is_given=False))
    return listed, "names in the order of their label values, from 0"
