"""Label maps drawn in the colours of a class list, as CVAT, Cityscapes and VOC's viewers have them.

A list of colours alone (CVAT's labelmap.txt) says nothing of indices, so that all label maps are
read by their colours, palette images, too. With a list of label values and colours, colour images
are, and others are label maps of indices.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from input_pipeline.class_list_formats.listed_class import Color
from input_pipeline.class_lists import ClassList
from input_pipeline.examples import IGNORE
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import is_color_image, read_color_map
from input_pipeline.label_maps.data_folder import DataFolder, LabelledImages, one_file_per_image
from input_pipeline.label_maps.interface import UNKNOWN, LabelMap, UnknownLabels
from input_pipeline.label_maps.packed_json import digest

_MAX_LISTED = 10


def open_color_maps(folder: DataFolder) -> LabelledImages | None:
    """Label maps of colours named like their images; None where the class list has no colours."""
    classes = folder.class_list
    if not classes.colors:
        return None
    labels = one_file_per_image(folder, ("color",))
    first = labels[0]
    if classes.label_values and not is_color_image(folder.tree.read(first), first):
        return None
    return LabelledImages(folder.paths, classes.names, ColorMaps(folder.tree, labels, classes))


class ColorMaps:
    """LabelMaps of a file each; values are red * 65536 + green * 256 + blue."""

    advice_for_ignored = (
        "Colours that should be learnt need an entry of the class list whose name is that of the "
        "class (not void, ignored or the like)"
    )

    def __init__(self, tree: FileTree, paths: Sequence[str], classes: ClassList):
        self._tree, self._paths = tree, tuple(paths)
        self._num_classes = len(classes.names)
        ids = {_packed(color): i for i, color in enumerate(classes.colors)}
        ids |= {_packed(color): IGNORE for color in classes.ignored_colors}
        self._class_of = dict(sorted(ids.items()))
        self._labelling = digest("colours", classes.names, self._class_of)

    def read(self, index: int) -> LabelMap:
        """The colours of the file."""
        pixels = read_color_map(self._tree.read(self._paths[index]), self.place(index))
        red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
        return LabelMap(red << 16 | green << 8 | blue)

    def class_of(self, value: int) -> int:
        """Class id of a colour, IGNORE or UNKNOWN."""
        return self._class_of.get(value, UNKNOWN)

    def class_ids(self, values: Int32[np.ndarray, "h w"], where: str) -> Int32[np.ndarray, "h w"]:
        """Class ids or IGNORE."""
        colors = np.array(list(self._class_of), np.int32)
        classes = np.array(list(self._class_of.values()), np.int32)
        nearest = np.minimum(np.searchsorted(colors, values), len(colors) - 1)
        ids = np.where(colors[nearest] == values, classes[nearest], np.int32(UNKNOWN))
        if (ids == UNKNOWN).any():
            raise self._unknown(values, ids, where)
        return ids

    def _unknown(
        self, values: Int32[np.ndarray, "h w"], ids: Int32[np.ndarray, "h w"], where: str
    ) -> UnknownLabels:
        unknown, counts = np.unique(values[ids == UNKNOWN], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        pixels = {self.describe(int(unknown[i])): int(counts[i]) for i in order}
        shown = "; ".join(list(pixels)[:_MAX_LISTED])
        more = f" and {len(pixels) - _MAX_LISTED} more" if len(pixels) > _MAX_LISTED else ""
        return UnknownLabels(
            where,
            f"the class list ({self._num_classes} classes) has no {shown}{more}; "
            f"{counts.sum():,} of {values.size:,} pixels have them; add them to the list, those to "
            "be ignored by the name void. Many colours that are nearly those of the list come from "
            "resizing with interpolation, or from JPEG: make such label maps anew",
            pixels,
        )

    def describe(self, value: int) -> str:
        """Red, green and blue."""
        return f"colour {value >> 16},{value >> 8 & 255},{value & 255}"

    def place(self, index: int) -> str:
        """The file."""
        return self._tree.locate(self._paths[index])

    def signature(self, index: int) -> str:
        """The stamp of the file, and what the colours mean."""
        return f"{self._tree.stamp(self._paths[index])}|{self._labelling}"


def _packed(color: Color) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue
