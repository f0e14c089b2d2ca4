"""What builds the label map of an image: the interface that every kind of label maps follows."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

UNKNOWN = -2
"""Class id of values that are neither a class nor ignored."""


class LabelMap(NamedTuple):
    """A label map with the values of its source, and its instances where the source has them."""

    values: Int32[np.ndarray, "h w"]
    instances: Int32[np.ndarray, "h w"] | None = None
    """Numbers of instances from 1; 0 where there is none."""


class ObjectMask(NamedTuple):
    """An object with a mask of its own, which those of others may overlap."""

    class_id: int
    """Or IGNORE."""
    run_lengths: Mapping
    """COCO's {"size", "counts"}."""
    area: float
    """What its file says, which may be the area of polygons, else pixels."""
    is_crowd: bool = False


@runtime_checkable
class ObjectMasks(Protocol):
    """Objects by the index of their example, one mask each; read when asked for."""

    def objects(self, index: int) -> list[ObjectMask]:
        """Of an example, in their order. ValueError names file and entry of what is wrong."""
        ...

    def object_signature(self, index: int) -> str:
        """A string that changes when the objects may have changed; cheap, decodes nothing."""
        ...


class OfficialIds(NamedTuple):
    """What COCO's files about a data set call its images and classes."""

    images: tuple[int | str, ...]
    """By the index of their example."""
    categories: tuple[int, ...]
    """By class id."""


class LabelMaps(Protocol):
    """Label maps by the index of their example.

    Picklable, since worker processes read from it. A label map comes with the values that its
    source has (indices, packed colours), so that these can be counted and named before they are
    classes; kinds that know their classes by name give class ids and IGNORE at once.
    """

    advice_for_ignored: str | None
    """What makes ignored pixels learnt; None where label values in the class list do."""

    def read(self, index: int) -> LabelMap:
        """The label map of an example. ValueError names file and entry of what is wrong."""
        ...

    def class_of(self, value: int) -> int:
        """Class id of a value, IGNORE or UNKNOWN."""
        ...

    def class_ids(self, values: Int32[np.ndarray, "h w"], where: str) -> Int32[np.ndarray, "h w"]:
        """Class ids or IGNORE. UnknownLabels, which begins with `where`, for other values."""
        ...

    def describe(self, value: int) -> str:
        """A value as messages show it."""
        ...

    def place(self, index: int) -> str:
        """Where the label map comes from, for messages: a file, or an entry of one."""
        ...

    def signature(self, index: int) -> str:
        """A string that changes when the label map may have changed; cheap, decodes nothing."""
        ...


class UnknownLabels(ValueError):
    """Values of the label map `where` are neither a class nor ignored; `pixels` counts each.

    The keys of `pixels` are for messages: `label value 7`, `colour 0,0,142`.
    """

    def __init__(self, where: str, reason: str, pixels: Mapping[str, int]):
        super().__init__(where, reason, pixels)
        self.where, self.pixels = where, pixels

    def __str__(self) -> str:
        return f"{self.where}: {self.args[1]}"
