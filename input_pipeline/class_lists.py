"""Class names and the label values that stand for them in the files of a data set."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.class_list_formats.lines import read_listed_classes
from input_pipeline.class_list_formats.listed_class import Color, ListedClass
from input_pipeline.file_names import shorten
from input_pipeline.limits import MAX_CLASS_LIST_BYTES, check_limit

_DIRECTORY = Path(__file__).with_name("class_list_files")
BUILT_IN = tuple(sorted(path.stem for path in _DIRECTORY.glob("*.txt")))
UNLESS_NAMED = (-1,)
"""Ignore labels where nobody says which: 255, unless the class list has a class of this value."""
DEFAULT_IGNORED = (255,)

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
    `ignored_colors` are those of its entries that are no classes, such as `void`.
    `values_are_given` is False where they follow from the order of names alone.
    `ignored_values` are those of unlabelled pixels. `synonyms` are the further names of each
    class, and empty where none has any. `things` are the class ids with countable objects; None
    where the list does not say.
    """

    names: tuple[str, ...]
    label_values: tuple[int, ...]
    colors: tuple[Color, ...] = ()
    ignored_colors: tuple[Color, ...] = ()
    values_are_given: bool = True
    ignored_values: tuple[int, ...] = DEFAULT_IGNORED
    synonyms: tuple[tuple[str, ...], ...] = ()
    things: tuple[int, ...] | None = None

    @property
    def further_names(self) -> dict[str, tuple[str, ...]]:
        """Synonyms of the classes that have some, by name."""
        pairs = zip(self.names, self.synonyms, strict=True) if self.synonyms else ()
        return {name: synonyms for name, synonyms in pairs if synonyms}


def load_class_list(
    name_or_path: str | Path, ignore_labels: Sequence[int] = UNLESS_NAMED
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
    content: bytes, where: str, ignore_labels: Sequence[int] = UNLESS_NAMED
) -> ClassList:
    """`load_class_list` for the content of a file; logs in a line what it was taken for.

    A value that the file gives to a class is not ignored by default, unless the name says so
    (`void`, `border`); where `ignore_labels` are given, that is a contradiction.
    Raises ValueError, which begins with `where`, for an empty, ambiguous or contradictory list.
    """
    classes, taken_for = _parse(content, where, ignore_labels)
    logger.info("%d classes of %s, %s", len(classes.names), where, taken_for)
    return classes


def is_name_of_ignored(name: str) -> bool:
    """Whether a name says that its pixels are no class, such as `void`."""
    return bool(_NAME_OF_IGNORED.fullmatch(name.lower()))


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
    kept = _with_names_of_their_own(kept)
    _check_distinct(kept)
    if not kept:
        raise ValueError(f"{where}: expected one class per line, found no class")
    among = {entry.place for entry in kept}
    left_out = [entry for entry in listed if entry.place not in among]
    if left_out:
        shown = [f"{entry.color or entry.value} {entry.name!r}" for entry in left_out]
        taken_for += f"; ignored: {shorten(shown)}"
    colors = _distinct_colors(kept, left_out)
    classes = ClassList(
        tuple(entry.name for entry in kept),
        tuple(entry.value for entry in kept if entry.value is not None),
        tuple(colors.get(entry.name) for entry in kept) if colors else (),
        tuple(entry.color for entry in left_out if entry.color) if colors else (),
        all(entry.value_is_given for entry in kept),
        _ignored_values(kept, left_out, ignore_labels),
        tuple(entry.synonyms for entry in kept) if any(e.synonyms for e in kept) else (),
        _things(kept),
    )
    return classes, taken_for


def _things(kept: Sequence[ListedClass]) -> tuple[int, ...] | None:
    """Class ids of the things; None unless the list says it of every class."""
    if any(entry.is_thing is None for entry in kept):
        return None
    return tuple(class_id for class_id, entry in enumerate(kept) if entry.is_thing)


def _is_ignored(entry: ListedClass, ignore_labels: Sequence[int]) -> bool:
    """Whether a line of an ignored value says so itself; ValueError where it contradicts."""
    if not entry.is_class:
        return True
    if entry.value is None:
        return is_name_of_ignored(entry.name)
    by_default = tuple(ignore_labels) == UNLESS_NAMED
    if entry.value not in (DEFAULT_IGNORED if by_default else ignore_labels):
        return False
    if not entry.value_is_given:
        raise ValueError(
            f"{entry.place}: class {entry.name!r} falls on label value {entry.value}, which is "
            "ignored; set ignore_labels to other values, or write 'integer<TAB>name' lines"
        )
    if is_name_of_ignored(entry.name):
        return True
    if by_default:
        return False
    if _NAME_OF_THE_REST.fullmatch(entry.name.lower()):
        return True
    raise ValueError(
        f"{entry.place}: label value {entry.value} is class {entry.name!r} here, but "
        f"ignore_labels {tuple(ignore_labels)} (--config.data.ignore_labels) leave it out; "
        "delete the line, or take the value out of ignore_labels"
    )


def _ignored_values(
    kept: Sequence[ListedClass], left_out: Sequence[ListedClass], ignore_labels: Sequence[int]
) -> tuple[int, ...]:
    """The values of unlabelled pixels, once the list is known."""
    ignored = DEFAULT_IGNORED if tuple(ignore_labels) == UNLESS_NAMED else ignore_labels
    ignored = {*ignored, *(entry.value for entry in left_out if entry.value is not None)}
    return tuple(sorted(ignored - {entry.value for entry in kept}))


def _with_names_of_their_own(listed: Sequence[ListedClass]) -> list[ListedClass]:
    """Classes of several names go by the first that does not begin another class.

    FC-CLIP's ADE20K-Full has `115:bag,bags` and `192:bag,traveling bag`.
    """
    first = Counter(entry.name for entry in listed)
    renamed = []
    for entry in listed:
        names = (entry.name, *entry.synonyms)
        if first[entry.name] > 1:
            own = next((name for name in names if name not in first), entry.name)
            entry = entry._replace(name=own, synonyms=tuple(n for n in names if n != own))
        renamed.append(entry)
    return renamed


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


def _distinct_colors(
    kept: Sequence[ListedClass], left_out: Sequence[ListedClass]
) -> dict[str, Color]:
    """The colour of every class by its name; empty where some have none.

    Where classes of a list of colours alone share one, that is an error; where the list has label
    values besides, its colours are of no use.
    """
    by_color: dict[Color | None, ListedClass] = {entry.color: entry for entry in left_out}
    for entry in kept:
        if entry.color is None:
            return {}
        if max(entry.color) > 255:
            raise ValueError(
                f"{entry.place}: expected red, green and blue from 0 to 255, found {entry.color}"
            )
        if first := by_color.get(entry.color):
            if entry.value is not None:
                return {}
            raise ValueError(
                f"{entry.place}: colour {entry.color} of class {entry.name!r} is that of "
                f"{first.name!r} ({first.place}), too; give every class its own colour"
            )
        by_color[entry.color] = entry
    return {entry.name: entry.color for entry in kept}
