"""What every format gives: a class and where it stands."""

from typing import NamedTuple

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


class ListedClass(NamedTuple):
    """A class of a list. `place` is file and line, or entry, for messages.

    `value` is None where the list has colours alone. `value_is_given` is False where the value
    follows from the order of the list. `synonyms` are further names of the class.
    `is_class` is False where the list says that pixels of the value belong to none. `is_thing` says
    whether the class has countable objects; None where the list does not.
    """

    place: str
    value: int | None
    name: str
    value_is_given: bool = True
    color: Color | None = None
    synonyms: tuple[str, ...] = ()
    is_class: bool = True
    is_thing: bool | None = None


THINGS = {"thing": True, "stuff": False, "1": True, "0": False, "true": True, "false": False}
"""What columns and entries say, in small letters, of whether a class has countable objects."""


def read_thing(text: str, place: str) -> bool:
    """What such a column or entry says.

    Raises:
        ValueError: neither a word for things nor one for stuff.
    """
    if text.lower() not in THINGS:
        raise ValueError(
            f"{place}: whether it is a thing: expected one of {', '.join(THINGS)}, found {text!r}; "
            "correct it"
        )
    return THINGS[text.lower()]


WRITE_LINES = "write 'integer<TAB>name' lines, where the integer is the value in the label maps"
"""What works for every list."""
