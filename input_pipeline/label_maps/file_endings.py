"""Label maps whose names are not those of their images, but end otherwise: `photo_mask.png`."""

from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

_WORDS = ("mask", "masks", "label", "labels", "seg", "segmentation", "gt", "annotation")
_SIGNS = ("_", "-", ".")
_ENDINGS = tuple(sign + word for word in _WORDS for sign in _SIGNS)
_OF_CITYSCAPES = "_leftImg8bit"
_GROUND_TRUTHS = ("_gtFine_", "_gtCoarse_")


class Ending(NamedTuple):
    """What names of images end in, and what those of their label maps have in its place."""

    of_image: str
    of_label: str

    def label_of(self, image: str) -> str:
        """The name of an image's label map, both without `.png`."""
        return f"{image.removesuffix(self.of_image)}{self.of_label}"


SAME = Ending("", "")


def find_endings(
    images: Collection[str], labels: Collection[str], of_cityscapes: Sequence[str] = ()
) -> list[Ending]:
    """How the label maps of images are called, of which all names are given without their type.

    SAME where a label map is called like its image, else those of the known endings that are
    there. `of_cityscapes` are the last parts of names in Cityscapes that count: color, labelIds.
    """
    if any(image in labels for image in images):
        return [SAME]
    endings = [Ending("", ending) for ending in _ENDINGS]
    endings += [
        Ending(_OF_CITYSCAPES, start + kind) for start in _GROUND_TRUTHS for kind in of_cityscapes
    ]
    return [
        ending
        for ending in endings
        if all(image.endswith(ending.of_image) for image in images)
        and any(ending.label_of(image) in labels for image in images)
    ]


def without_label_maps(paths: Sequence[PurePosixPath]) -> tuple[PurePosixPath, ...]:
    """The images of a folder that has their label maps, too: `a.jpg` of `a.png` or `a_mask.png`."""
    pngs = [path for path in paths if path.suffix.lower() == ".png"]
    stems = {path.with_suffix("") for path in paths}
    of_others = {path.with_suffix("") for path in paths if path.suffix.lower() != ".png"}
    labels = {
        path
        for path in pngs
        if path.with_suffix("") in of_others
        or any(
            path.stem.endswith(ending) and path.with_name(path.stem.removesuffix(ending)) in stems
            for ending in _ENDINGS
        )
    }
    return tuple(path for path in paths if path not in labels)
