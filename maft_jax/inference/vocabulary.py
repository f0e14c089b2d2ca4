"""Class names that a person gives: in one line, as a file, or as a built-in list."""

import csv
import difflib
import re
from collections.abc import Mapping, Sequence

from input_pipeline.class_lists import BUILT_IN, ClassList, load_class_list, parse_class_list
from input_pipeline.dataset_specs import SPECS
from maft_jax.models.text_classifier import check_distinct, checked_texts, find_shared

_OF_SEVERAL_NAMES = re.compile(r"\s*\d+\s*:")


def parse_names(text: str, what: str = "classes") -> tuple[str, ...]:
    """Names between commas; "double quotes" keep a comma inside a name.

    Raises:
        ValueError: a name is empty or comes twice, or quotes do not close; begins with `what`.
    """
    if "\n" in text or "\r" in text:
        raise ValueError(f"{what}: expected one line of names, got several; a file holds those")
    if not text.strip():
        return check_names((), what)
    try:
        (names,) = csv.reader([text], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise ValueError(
            f"{what}: {error} in {text!r}; a name with a comma is written in double quotes, such "
            'as "salt, pepper", cat'
        ) from error
    return check_names(names, what)


def read_names(text: str, what: str = "classes") -> tuple[str, ...]:
    """The built-in class list of this name, else `parse_names`.

    Raises:
        ValueError: as `parse_names`.
    """
    if text.strip() in BUILT_IN:
        return load_class_list(text.strip(), ignore_labels=()).names
    names = parse_names(text, what)
    close = difflib.get_close_matches(names[0], BUILT_IN)
    if len(names) == 1 and "_" in names[0] and close:
        raise ValueError(
            f"{what}: there is no built-in list {names[0]!r}; did you mean {' or '.join(close)}? "
            "A class of that name is given with a space, no underscore"
        )
    return names


def things_of_list(text: str) -> frozenset[int] | None:
    """Indices of the classes with countable objects; None where nothing says which they are.

    Args:
        text: a built-in list's name, or the lines of a list that `read_pasted_list` parses.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(map(_OF_SEVERAL_NAMES.match, lines)):
        things = parse_class_list("\n".join(lines).encode(), "classes", ignore_labels=()).things
        return None if things is None else frozenset(things)
    for spec in SPECS.values():
        if spec.class_list == text.strip() and spec.thing_ids is not None:
            return frozenset(spec.thing_ids)
    return None


def read_names_file(
    path: str, what: str = "classes_file"
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The names of a class list of any format, and further names of the classes that have some.

    Its label values are not looked at.

    Raises:
        ValueError: no such file, or a name is empty or comes twice.
    """
    return _names_and_synonyms(load_class_list(path, ignore_labels=()), what)


def read_pasted_list(
    lines: Sequence[str], what: str
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """As `read_names_file` of lines of `number:name,synonym`; else one name a line, as it is."""
    if all(map(_OF_SEVERAL_NAMES.match, lines)):
        classes = parse_class_list("\n".join(lines).encode(), what, ignore_labels=())
        return _names_and_synonyms(classes, what)
    return check_names(lines, what), {}


def _names_and_synonyms(
    classes: ClassList, what: str
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    names = check_names(classes.names, what)
    pairs = zip(names, classes.synonyms, strict=True) if classes.synonyms else ()
    return names, {name: further for name, further in pairs if further}


def check_names(names: Sequence[str], what: str = "classes") -> tuple[str, ...]:
    """The names without spaces around them.

    Raises:
        ValueError: there are none, one is empty or no text, or CLIP cannot tell two apart: it reads
            capitals as small letters, so that Cat is cat again.
    """
    names = tuple(" ".join(name.split()) for name in checked_texts(names, what))
    if not names:
        raise ValueError(f"{what}: expected at least one name, got none")
    for number, name in enumerate(names, start=1):
        if not name:
            raise ValueError(
                f"{what}: name {number} of {len(names)} is empty; is a comma too many?"
            )
    check_distinct(names, what)
    return names


def check_apart(
    classes: Sequence[str], background: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> None:
    """Raises ValueError where CLIP cannot tell a background name from a name of a class."""
    further = {
        name: of_class
        for of_class, names in (synonyms if background else {}).items()
        for name in checked_texts(names, "synonyms")
    }
    names = [*classes, *further]
    shared = find_shared(names, background)
    if shared is not None:
        one, other = names[shared[0]], background[shared[1]]
        what = "one of the classes" if shared[0] < len(classes) else f"a name of {further[one]!r}"
        raise ValueError(
            f"background: {other!r} is {what} as well: CLIP cannot tell it from {one!r}; drop one"
        )
