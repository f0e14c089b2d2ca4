"""Whether the label maps of a data set show the classes that its class list names."""

from collections import Counter
from collections.abc import Collection

import numpy as np

from input_pipeline.examples import IGNORE
from input_pipeline.label_maps.interface import UNKNOWN
from input_pipeline.layouts.base import LayoutSource
from input_pipeline.records.label_counts import list_names

_MAX_LISTED = 10


def check_several_classes(source: LayoutSource, unseen: Collection[str] = ()) -> None:
    """Refuses a data set whose label maps show fewer than two classes besides the unseen ones.

    Label maps are read until two classes were found, which usually takes one or two of them.
    Unreadable ones, and values without a class, are left to those who read all examples.

    Raises:
        ValueError: says which label values there are, and what they mean.
    """
    names = source.class_names
    to_learn = {i for i, name in enumerate(names) if name not in unseen}
    if len(to_learn) < 2:
        left = list_names([names[i] for i in to_learn]) or "none"
        raise ValueError(
            f"config.data.classes: only {left} is left to learn of {len(names)} classes; two are "
            "needed: list the others, too (the rest of a picture may be the class background), or "
            "leave fewer out by config.data.unseen_classes"
        )
    pixels: Counter[int] = Counter()
    for index in range(len(source)):
        try:
            values = source.label_values(index)
        except ValueError:
            continue
        found, counts = np.unique(values, return_counts=True)
        pixels.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        meanings = {source.class_of(value) for value in pixels}
        if UNKNOWN in meanings or len(meanings & to_learn) > 1:
            return
    if pixels:
        raise ValueError(_describe(source, pixels, unseen))


def _describe(source: LayoutSource, pixels: Counter[int], unseen: Collection[str]) -> str:
    names = {value: _name(source, value) for value in sorted(pixels)}
    found = [
        f"{source.describe_value(value)} ({name or 'ignored'}, "
        f"{100 * pixels[value] / pixels.total():.1f} %)"
        for value, name in names.items()
    ]
    found_names = {*names.values(), *unseen}
    absent = [name for name in source.class_names if name not in found_names]
    message = (
        f"{source.label_place(0)} and the {len(source) - 1} other label maps: no pixel shows "
        f"{list_names(absent)}; every pixel is {' or '.join(found[:_MAX_LISTED])}"
    )
    ignored = [value for value, name in names.items() if name is None]
    if not ignored:
        return (
            f"{message}. At least two classes must be shown that config.data.unseen_classes does "
            "not leave out: correct the label maps, or write 'value<TAB>name' lines as classes"
        )
    if source.advice_for_ignored:
        return f"{message}. {source.advice_for_ignored}"
    names |= zip(ignored, absent, strict=False)
    lines = ", ".join(f"'{value}<TAB>{name}'" for value, name in names.items() if name)
    return (
        f"{message}. If pixels of value {' or '.join(map(str, ignored))} should be learnt, as in "
        f"masks of 0 and 255, write {lines} as lines of the class list, or set ignore_labels "
        "(--config.data.ignore_labels) to other values"
    )


def _name(source: LayoutSource, value: int) -> str | None:
    class_id = source.class_of(value)
    return None if class_id == IGNORE else source.class_names[class_id]
