"""Label maps whose names are not those of their images, but end otherwise: `photo_mask.png`."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

_WORDS = ("mask", "masks", "label", "labels", "seg", "segmentation", "gt", "annotation")
_SIGNS = ("_", "-", ".")
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
    endings = [Ending("", sign + word) for word in _WORDS for sign in _SIGNS]
    endings += [
        Ending(_OF_CITYSCAPES, start + kind) for start in _GROUND_TRUTHS for kind in of_cityscapes
    ]
    return [
        ending
        for ending in endings
        if all(image.endswith(ending.of_image) for image in images)
        and any(ending.label_of(image) in labels for image in images)
    ]
