"""Label maps whose pixels are label values: grey levels, or the indices of a palette image."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from input_pipeline.class_lists import ClassList
from input_pipeline.examples import IGNORE
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import read_label_map
from input_pipeline.label_maps.interface import UNKNOWN, LabelMap, UnknownLabels

_MAX_LISTED = 10


class IndexMaps:
    """LabelMaps of a file each.

    `class_of_value[v]` is the class id of label value v, IGNORE or UNKNOWN; its last entry stands
    for all larger values, see `class_lookup`. `read_values` makes label values of a file's bytes
    and the name to use in messages; it must be a function of a module, to be picklable.
    `advice` tells the user what to do about label values that are UNKNOWN.
    """

    advice_for_ignored = None

    def __init__(
        self,
        tree: FileTree,
        paths: Sequence[str],
        class_names: Sequence[str],
        class_of_value: Int32[np.ndarray, " v"],
        read_values: Callable[[bytes, str], Int32[np.ndarray, "h w"]] = read_label_map,
        advice: str = "expected the official label maps of this data set",
    ):
        self._tree, self._paths = tree, tuple(paths)
        self._num_classes = len(class_names)
        self._class_of_value = np.asarray(class_of_value, np.int32)
        self._read_values = read_values
        self._advice = advice
        meaning = repr((tuple(class_names), read_values.__module__, read_values.__qualname__))
        lookup = self._class_of_value.tobytes()
        self._labelling = hashlib.sha256(meaning.encode() + lookup).hexdigest()

    def read(self, index: int) -> LabelMap:
        """The label values of the file."""
        return LabelMap(self._read_values(self._tree.read(self._paths[index]), self.place(index)))

    def class_of(self, value: int) -> int:
        """Class id of a label value, IGNORE or UNKNOWN."""
        last = len(self._class_of_value) - 1
        return int(self._class_of_value[value if 0 <= value <= last else last])

    def class_ids(self, values: Int32[np.ndarray, "h w"], where: str) -> Int32[np.ndarray, "h w"]:
        """Class ids or IGNORE."""
        last = len(self._class_of_value) - 1
        ids = self._class_of_value[np.where((values < 0) | (values > last), last, values)]
        unknown, pixels = np.unique(values[ids == UNKNOWN], return_counts=True)
        if unknown.size:
            shown = ", ".join(map(str, unknown[:_MAX_LISTED]))
            more = ", ..." if unknown.size > _MAX_LISTED else ""
            listed = np.flatnonzero(self._class_of_value >= 0)
            ignored = np.flatnonzero(self._class_of_value == IGNORE)
            raise UnknownLabels(
                where,
                f"label values {shown}{more} are neither in the class list "
                f"({self._num_classes} classes, values {listed.min()} to {listed.max()}) nor "
                f"ignored (values {', '.join(map(str, ignored)) or 'none'}); {pixels.sum():,} of "
                f"{values.size:,} pixels have them; {self._advice}",
                {
                    f"label value {value}": count
                    for value, count in zip(unknown.tolist(), pixels.tolist(), strict=True)
                },
            )
        return ids

    def describe(self, value: int) -> str:
        """The number."""
        return str(value)

    def place(self, index: int) -> str:
        """The file."""
        return self._tree.locate(self._paths[index])

    def signature(self, index: int) -> str:
        """The stamp of the file, and what the label values mean."""
        return f"{self._tree.stamp(self._paths[index])}|{self._labelling}"


def class_lookup(
    classes: ClassList, ignore_labels: Iterable[int] = (255,)
) -> Int32[np.ndarray, " v"]:
    """Class id of every label value; the last entry stands for all larger values.

    A value that the class list names is a class, whether ignored or not.
    """
    ignored = list(ignore_labels)
    lookup = np.full(max(*classes.label_values, *ignored) + 2, UNKNOWN, np.int32)
    lookup[ignored] = IGNORE
    lookup[list(classes.label_values)] = np.arange(len(classes.names))
    return lookup
