"""Class names and the label values that stand for them in the files of a data set."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = Path(__file__).with_name("class_list_files")
BUILT_IN = tuple(sorted(path.stem for path in _DIRECTORY.glob("*.txt")))

_VALUE_AND_NAME = re.compile(r"\s*(\d+)\s*\t\s*(.*)")


@dataclass(frozen=True)
class ClassList:
    """Class names in contiguous order, and the value of each in the label files."""

    names: tuple[str, ...]
    label_values: tuple[int, ...]


def load_class_list(name_or_path: str | Path, ignore_labels: Sequence[int] = (255,)) -> ClassList:
    """Reads a built-in class list, or a file with one class per line.

    A line is a name, whose label value is its line number - 1, or `integer<TAB>name`; a file uses
    one of the two forms throughout. `integer<TAB>name` lines of an ignored value are skipped.
    Raises ValueError for a missing, empty or ambiguous file, and for a file of names alone where
    a class falls on an ignored value.
    """
    path = Path(name_or_path)
    if str(name_or_path) in BUILT_IN:
        path = _DIRECTORY / f"{name_or_path}.txt"
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such class list; expected a text file with one class per line, "
            f"or the name of a built-in list: {', '.join(BUILT_IN)}"
        )
    return parse_class_list(path.read_bytes(), str(path), ignore_labels)


def parse_class_list(
    content: bytes, where: str, ignore_labels: Sequence[int] = (255,)
) -> ClassList:
    """`load_class_list` for the content of a file; the errors begin with `where`."""
    names, values = [], []
    for number, value, name, value_is_given in _numbered_classes(content, where):
        if value in ignore_labels and value_is_given:
            continue
        if value in ignore_labels:
            raise ValueError(
                f"{where}:{number}: class {name!r} falls on label value {value}, which is ignored; "
                "set ignore_labels to other values, or write 'integer<TAB>name' lines"
            )
        if name in names:
            first = names.index(name)
            raise ValueError(
                f"{where}:{number}: class {name!r} is already listed with label value "
                f"{values[first]}; class names must differ, so merge or rename one of them"
            )
        if value in values:
            first = values.index(value)
            raise ValueError(
                f"{where}:{number}: label value {value} already belongs to class {names[first]!r}; "
                "give every class its own value"
            )
        names.append(name)
        values.append(value)
    if not names:
        raise ValueError(f"{where}: expected one class per line, found no class")
    return ClassList(tuple(names), tuple(values))


def _numbered_classes(content: bytes, where: str) -> list[tuple[int, int, str, bool]]:
    """(line number, label value, name, whether the file gives the value) of every line."""
    try:
        text = content.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected UTF-8 text, {error}; save the file as UTF-8") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines == [""]:
        raise ValueError(f"{where}: expected one class per line, the file is empty")
    matches = [_VALUE_AND_NAME.fullmatch(line) for line in lines]
    has_values = any(matches)
    classes = []
    for number, (line, match) in enumerate(zip(lines, matches, strict=True), start=1):
        if not line.strip() or (match and not match[2].strip()):
            raise ValueError(
                f"{where}:{number}: the class name is blank; delete the line or name the class"
            )
        if has_values and not match:
            raise ValueError(
                f"{where}:{number}: expected 'integer<TAB>name' as on line "
                f"{1 + next(i for i, m in enumerate(matches) if m)}, found {line.strip()!r}; use "
                "one form throughout the file"
            )
        value, name = (int(match[1]), match[2]) if match else (number - 1, line)
        classes.append((number, value, name.strip(), has_values))
    return classes
