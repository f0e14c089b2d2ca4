"""What every format gives: a class and where it stands."""

from typing import NamedTuple

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


class ListedClass(NamedTuple):
    """A class of a list. `place` is file and line, or entry, for messages.

    `value` is None where the list has colours alone. `value_is_given` is False where the value
    follows from the order of the list. `synonyms` are further names of the class.
    `is_class` is False where the list says that pixels of the value belong to none.
    """

    place: str
    value: int | None
    name: str
    value_is_given: bool = True
    color: Color | None = None
    synonyms: tuple[str, ...] = ()
    is_class: bool = True


WRITE_LINES = "write 'integer<TAB>name' lines, where the integer is the value in the label maps"
"""What works for every list."""
