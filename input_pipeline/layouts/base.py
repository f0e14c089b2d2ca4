"""What all layouts share: pairs of an image file and a label file, read as examples."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Int32

from input_pipeline.class_lists import ClassList
from input_pipeline.dataset_specs import DatasetSpec, Download
from input_pipeline.examples import Example
from input_pipeline.file_names import shorten
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import HEIC_ADVICE, UNREAD_HEIC, read_image, read_label_map
from input_pipeline.label_maps.index_maps import IndexMaps
from input_pipeline.label_maps.interface import LabelMaps, ObjectMasks, OfficialIds

logger = logging.getLogger(__name__)


class MissingFiles(ValueError):
    """Parts of a data set are not there; `downloads` are the archives that would supply them."""

    def __init__(self, message: str, downloads: Sequence[Download] = ()):
        super().__init__(message)
        self.downloads = tuple(downloads)


@dataclass(frozen=True)
class ExampleFiles:
    """Where one example comes from: paths in a FileTree."""

    example_id: str
    image: str
    label: str


class LayoutSource:
    """Examples (an `ExampleSource`) of images in a tree and their label maps; decoded on access.

    `images` are paths in the tree, `labels` what builds their label maps, by index, `synonyms` the
    further names of classes that have some. `ids` are those of official files; by default images
    go by the ids of examples, and classes count from 1. `open_objects`, which must be picklable,
    reads the masks of objects where they lie in other files than the labels.
    """

    def __init__(
        self,
        name: str,
        tree: FileTree,
        example_ids: Sequence[str],
        images: Sequence[str],
        class_names: Sequence[str],
        labels: LabelMaps,
        synonyms: Mapping[str, tuple[str, ...]] | None = None,
        ids: OfficialIds | None = None,
        open_objects: Callable[[], ObjectMasks] | None = None,
    ):
        self.name = name
        self.class_names = tuple(class_names)
        self.synonyms = dict(synonyms or {})
        self.example_ids = tuple(example_ids)
        self._tree = tree
        self._images = tuple(images)
        self._labels = labels
        self._open_objects = open_objects
        counted = tuple(range(1, len(self.class_names) + 1))
        self.ids = ids or OfficialIds(self.example_ids, counted)
        self.things: tuple[int, ...] | None = None
        """Class ids with countable objects, where the source's own class list says it."""

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        image_at, label_at = self._tree.locate(self._images[index]), self.label_place(index)
        image = read_image(self.image_bytes(index), image_at)
        values, instances = self._labels.read(index)
        height, width = image.shape[:2]
        if min(height, width) < 2:
            raise ValueError(
                f"{image_at}: expected at least 2x2 pixels, got {width}x{height}; remove the "
                "image and its label map"
            )
        if values.shape != (height, width):
            raise ValueError(
                f"{label_at}: expected the size of its image {image_at}, {width}x{height} "
                f"(after EXIF rotation), got {values.shape[1]}x{values.shape[0]}; save the label "
                "map at the size of the upright image"
            )
        label_map = self._labels.class_ids(values, label_at)
        return Example(self.example_ids[index], image, label_map, instances=instances)

    def labels(
        self, index: int
    ) -> tuple[Int32[np.ndarray, "h w"], Int32[np.ndarray, "h w"] | None]:
        """Class ids or IGNORE, and the instances where they are known; the image is not read."""
        values, instances = self._labels.read(index)
        return self._labels.class_ids(values, self.label_place(index)), instances

    def object_masks(self) -> ObjectMasks | None:
        """The masks of objects, by index; None where label maps alone have them, or nothing.

        Raises:
            ValueError: a file of them is damaged, or lacks an example.
        """
        if self._open_objects is not None:
            return self._open_objects()
        return self._labels if isinstance(self._labels, ObjectMasks) else None

    def label_values(self, index: int) -> Int32[np.ndarray, "h w"]:
        """The label map with the values of its source."""
        return self._labels.read(index).values

    def label_place(self, index: int) -> str:
        """Where a label map comes from, for messages."""
        return self._labels.place(index)

    def class_of(self, value: int) -> int:
        """Class id of a label value, IGNORE or UNKNOWN."""
        return self._labels.class_of(value)

    def describe_value(self, value: int) -> str:
        """A label value as messages show it."""
        return self._labels.describe(value)

    @property
    def advice_for_ignored(self) -> str | None:
        """What makes ignored pixels learnt; None where label values in the class list do."""
        return self._labels.advice_for_ignored

    def image_name(self, index: int) -> str:
        """The example's id with the ending of the image's file."""
        return self.example_ids[index] + PurePath(self._images[index]).suffix

    def image_bytes(self, index: int) -> bytes:
        """The encoded image as it came."""
        return self._tree.read(self._images[index])

    def signature(self, index: int) -> str:
        """Stamps of image and label map, and of what the label values mean."""
        return f"{self._tree.stamp(self._images[index])}|{self.label_signature(index)}"

    def label_signature(self, index: int) -> str:
        """Of the label map alone."""
        return self._labels.signature(index)


def index_source(
    name: str,
    tree: FileTree,
    files: Sequence[ExampleFiles],
    class_names: Sequence[str],
    class_of_value: Int32[np.ndarray, " v"],
    read_values: Callable[[bytes, str], Int32[np.ndarray, "h w"]] = read_label_map,
    **more: Any,
) -> LayoutSource:
    """The examples of a published data set, whose label maps are `IndexMaps`.

    `more` is what `LayoutSource` takes besides.
    """
    paths = [entry.label for entry in files]
    labels = IndexMaps(tree, paths, class_names, class_of_value, read_values)
    examples = [entry.example_id for entry in files]
    images = [entry.image for entry in files]
    return LayoutSource(name, tree, examples, images, class_names, labels, **more)


def contiguous(classes: ClassList) -> ClassList:
    """The same classes where label files hold class ids, as conversion scripts write them."""
    return ClassList(classes.names, tuple(range(len(classes.names))))


def stems(tree: FileTree, folder: str, suffix: str) -> list[str]:
    """Sorted names, less the suffix, of the files directly in a folder that end in it."""
    start = len(folder) + 1
    names = (name[start:] for name in tree.names(folder) if name.endswith(suffix))
    return [name.removesuffix(suffix) for name in names if "/" not in name]


def first_with(tree: FileTree, folders: Iterable[str], suffix: str) -> str | None:
    """The first of the folders that holds files with this suffix."""
    return next((folder for folder in folders if stems(tree, folder, suffix)), None)


def read_split(tree: FileTree, path: str) -> list[str]:
    """Ids of a split file: the file name, less folder and suffix, that each line begins with."""
    try:
        lines = tree.read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{tree.locate(path)}: expected a text file of ids, {error}") from None
    first = (line.split()[0] for line in lines if line.strip())
    ids = [word.rpartition("/")[2].removesuffix(".jpg").removesuffix(".png") for word in first]
    if not ids:
        raise ValueError(f"{tree.locate(path)}: expected one id per line, the file is empty")
    return ids


def pair_files(
    tree: FileTree,
    example_ids: Sequence[str],
    image: Callable[[str], str],
    label: Callable[[str], str],
    listed_in: str,
) -> list[ExampleFiles]:
    """Files of the given examples, in order; `image` and `label` make their paths of the id.

    Raises ValueError for files that are missing and for ids given twice; `listed_in` says in
    these messages where the ids come from.
    """
    if twice := [name for name, count in Counter(example_ids).items() if count > 1]:
        raise ValueError(f"{tree.where}: {listed_in}: listed more than once: {shorten(twice)}")
    files = [ExampleFiles(name, image(name), label(name)) for name in example_ids]
    for what, paths in (
        ("image", [entry.image for entry in files]),
        ("label map", [entry.label for entry in files]),
    ):
        folders = {path.rpartition("/")[0] for path in paths}
        present = {name for folder in folders for name in tree.names(folder)}
        if missing := [path for path in paths if path not in present]:
            raise ValueError(
                f"{tree.where}: {len(missing)} of the {len(paths)} examples of {listed_in} have "
                f"no {what}. Expected, but missing: {shorten(missing)}. Looked in "
                f"{tree.describe()}"
            )
    return files


def missing_files(
    spec: DatasetSpec, tree: FileTree, parts: Mapping[str, Sequence[str]]
) -> MissingFiles:
    """The error that says what to put where; `parts` are the accepted places of what is missing.

    The keys are those of `spec.downloads` where the part can be downloaded.
    """
    lines = [f"{tree.where}: {spec.title} is not complete; looked in {tree.describe()}"]
    downloads = []
    for part, places in parts.items():
        lines.append(f"  missing: {part}; expected in {' or '.join(places)}")
        if download := spec.downloads.get(part):
            downloads.append(download)
            lines.append(
                f"    download {download} and put {download.file_name} into {tree.where} as it "
                "is, or extract it there"
            )
    if spec.obtaining:
        lines.append(f"  {spec.obtaining}")
    return MissingFiles("\n".join(lines), downloads)


def report_count(spec: DatasetSpec, split: str, num_examples: int) -> None:
    """Logs a number of examples that is none of the official ones."""
    official = spec.num_images[split]
    if num_examples not in official:
        logger.warning(
            "%s %s: %d examples found, the whole data set has %s",
            spec.name,
            split,
            num_examples,
            " or ".join(map(str, official)),
        )


def describe_left_out(paths: Sequence[PurePath]) -> str:
    """How many files of which endings are not read as images, with examples."""
    endings = Counter(path.suffix.lower() or "no ending" for path in paths)
    counted = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    advice = "save as PNG or JPEG what should be read"
    if set(UNREAD_HEIC) & endings.keys():
        advice = f"{advice}, or {HEIC_ADVICE}"
    return (
        f"{len(paths)} files of kinds that are not read as images ({counted}), such as "
        f"{shorten(paths)}; {advice}"
    )
