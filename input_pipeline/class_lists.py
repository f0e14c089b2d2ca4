"""Class names and the label values that stand for them in the files of a data set."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.class_list_formats.lines import read_listed_classes
from input_pipeline.class_list_formats.listed_class import ListedClass
from input_pipeline.limits import MAX_CLASS_LIST_BYTES, check_limit

_DIRECTORY = Path(__file__).with_name("class_list_files")
BUILT_IN = tuple(sorted(path.stem for path in _DIRECTORY.glob("*.txt")))
DEFAULT_IGNORE_LABELS = (255,)

_LARGEST_VALUE = 65535
_NAME_OF_IGNORED = re.compile(
    r"(__)?ignored?(__)?|void|unlabell?ed|unknown|none|border|boundary|don't care|dontcare"
)
_NAME_OF_THE_REST = re.compile(r"_?background_?|others?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassList:
    """Class names in contiguous order, and the value of each in the label files.

    `colors` are those of a list that has some; one that has nothing else has no `label_values`.
    """

    names: tuple[str, ...]
    label_values: tuple[int, ...]
    colors: tuple[tuple[int, int, int], ...] = ()


def load_class_list(
    name_or_path: str | Path, ignore_labels: Sequence[int] = DEFAULT_IGNORE_LABELS
) -> ClassList:
    """Reads a built-in class list, or a file in one of the formats of docs/class_lists.md.

    Raises ValueError for a missing file, and as `parse_class_list`.
    """
    path = Path(name_or_path)
    if str(name_or_path) in BUILT_IN:
        path = _DIRECTORY / f"{name_or_path}.txt"
        return _parse(path.read_bytes(), str(path), ignore_labels)[0]
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such class list; expected a text file with one class per line, "
            f"or the name of a built-in list: {', '.join(BUILT_IN)}"
        )
    return parse_class_list(path.read_bytes(), str(path), ignore_labels)


def parse_class_list(
    content: bytes, where: str, ignore_labels: Sequence[int] = DEFAULT_IGNORE_LABELS
) -> ClassList:
    """`load_class_list` for the content of a file; logs in a line what it was taken for.

    A value that the file gives to a class is not ignored by default, unless the name says so
    (`void`, `border`); where `ignore_labels` are others than the default, that is a contradiction.
    Raises ValueError, which begins with `where`, for an empty, ambiguous or contradictory list.
    """
    classes, taken_for = _parse(content, where, ignore_labels)
    logger.info("%d classes of %s, %s", len(classes.names), where, taken_for)
    return classes


def _parse(content: bytes, where: str, ignore_labels: Sequence[int]) -> tuple[ClassList, str]:
    check_limit(MAX_CLASS_LIST_BYTES, len(content), f"{where}: bytes of a class list")
    try:
        text = content.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected UTF-8 text, {error}; save the file as UTF-8") from None
    if not text:
        raise ValueError(f"{where}: expected one class per line, the file is empty")
    listed, taken_for = read_listed_classes(text, where)
    kept = [entry for entry in listed if not _is_ignored(entry, ignore_labels)]
    _check_distinct(kept)
    if not kept:
        raise ValueError(f"{where}: expected one class per line, found no class")
    among = set(kept)
    left_out = [f"{entry.value} {entry.name!r}" for entry in listed if entry not in among]
    if left_out:
        taken_for += f"; ignored: {', '.join(left_out)}"
    colors = tuple(entry.color for entry in kept)
    classes = ClassList(
        tuple(entry.name for entry in kept),
        tuple(entry.value for entry in kept if entry.value is not None),
        colors if None not in colors else (),
    )
    return classes, taken_for


def _is_ignored(entry: ListedClass, ignore_labels: Sequence[int]) -> bool:
    """Whether a line of an ignored value says so itself; ValueError where it contradicts."""
    if entry.value not in ignore_labels:
        return False
    if not entry.value_is_given:
        raise ValueError(
            f"{entry.place}: class {entry.name!r} falls on label value {entry.value}, which is "
            "ignored; set ignore_labels to other values, or write 'integer<TAB>name' lines"
        )
    name = entry.name.lower()
    if _NAME_OF_IGNORED.fullmatch(name):
        return True
    if set(ignore_labels) == set(DEFAULT_IGNORE_LABELS):
        return False
    if _NAME_OF_THE_REST.fullmatch(name):
        return True
    raise ValueError(
        f"{entry.place}: label value {entry.value} is class {entry.name!r} here, but "
        f"ignore_labels {tuple(ignore_labels)} (--config.data.ignore_labels) leave it out; "
        "delete the line, or take the value out of ignore_labels"
    )


def _check_distinct(listed: Sequence[ListedClass]) -> None:
    by_name: dict[str, ListedClass] = {}
    by_value: dict[int, ListedClass] = {}
    for entry in listed:
        if first := by_name.get(entry.name):
            raise ValueError(
                f"{entry.place}: class {entry.name!r} is already listed with label value "
                f"{first.value}; class names must differ, so merge or rename one of them"
            )
        if first := by_value.get(entry.value):
            raise ValueError(
                f"{entry.place}: label value {entry.value} already belongs to class "
                f"{first.name!r}; give every class its own value"
            )
        by_name[entry.name] = entry
        if entry.value is None:
            continue
        if entry.value > _LARGEST_VALUE:
            raise ValueError(
                f"{entry.place}: label value {entry.value} of class {entry.name!r} is larger than "
                f"those of label maps, which go up to {_LARGEST_VALUE}; correct it"
            )
        by_value[entry.value] = entry
