"""What all layouts share: pairs of an image file and a label file, read as examples."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from jaxtyping import Int32

from input_pipeline.class_lists import ClassList
from input_pipeline.dataset_specs import DatasetSpec, Download
from input_pipeline.examples import IGNORE, Example
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import HEIC_ADVICE, UNREAD_HEIC, read_image, read_label_map

UNKNOWN = -2
"""Entry of a class lookup for values that are neither a class nor ignored."""

_MAX_LISTED = 10

logger = logging.getLogger(__name__)


class MissingFiles(ValueError):
    """Parts of a data set are not there; `downloads` are the archives that would supply them."""

    def __init__(self, message: str, downloads: Sequence[Download] = ()):
        super().__init__(message)
        self.downloads = tuple(downloads)


class UnknownLabels(ValueError):
    """Label values of the file `where` are neither a class nor ignored; `pixels` counts each."""

    def __init__(self, where: str, reason: str, pixels: Mapping[int, int]):
        super().__init__(where, reason, pixels)
        self.where, self.pixels = where, pixels

    def __str__(self) -> str:
        return f"{self.where}: {self.args[1]}"


@dataclass(frozen=True)
class ExampleFiles:
    """Where one example comes from: paths in a FileTree."""

    example_id: str
    image: str
    label: str


class LayoutSource:
    """Examples (an `ExampleSource`) of image and label files in a tree; decoded on access only.

    `class_of_value[v]` is the class id of label value v, IGNORE or UNKNOWN; its last entry stands
    for all larger values, see `class_lookup`. `read_values` makes label values of a file's bytes
    and the name to use in messages; it must be a function of a module, to be picklable.
    `unknown_values_advice` tells the user what to do about label values that are UNKNOWN.
    """

    def __init__(
        self,
        name: str,
        tree: FileTree,
        files: Sequence[ExampleFiles],
        class_names: Sequence[str],
        class_of_value: Int32[np.ndarray, " v"],
        read_values: Callable[[bytes, str], Int32[np.ndarray, "h w"]] = read_label_map,
        unknown_values_advice: str = "expected the official label maps of this data set",
    ):
        self.name = name
        self.class_names = tuple(class_names)
        self.example_ids = tuple(entry.example_id for entry in files)
        self._tree = tree
        self._files = tuple(files)
        self._class_of_value = np.asarray(class_of_value, np.int32)
        self._read_values = read_values
        self._advice = unknown_values_advice
        meaning = repr((self.class_names, read_values.__module__, read_values.__qualname__))
        lookup = self._class_of_value.tobytes()
        self._labelling = hashlib.sha256(meaning.encode() + lookup).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        files = self._files[index]
        image_at, label_at = self._tree.locate(files.image), self._tree.locate(files.label)
        image = read_image(self._tree.read(files.image), image_at)
        values = self.label_values(index)
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
        return Example(files.example_id, image, self._to_class_ids(values, label_at))

    def label_values(self, index: int) -> Int32[np.ndarray, "h w"]:
        """The label map with the values of its file."""
        label = self._files[index].label
        return self._read_values(self._tree.read(label), self._tree.locate(label))

    def label_place(self, index: int) -> str:
        """The file of a label map, for messages."""
        return self._tree.locate(self._files[index].label)

    def class_of(self, value: int) -> int:
        """Class id of a label value, IGNORE or UNKNOWN."""
        last = len(self._class_of_value) - 1
        return int(self._class_of_value[value if 0 <= value <= last else last])

    def image_bytes(self, index: int) -> bytes:
        """The encoded image as it came."""
        return self._tree.read(self._files[index].image)

    def signature(self, index: int) -> str:
        """Stamps of both files, and of what the label values mean."""
        files = self._files[index]
        stamps = (self._tree.stamp(files.image), self._tree.stamp(files.label))
        return "|".join((*stamps, self._labelling))

    def _to_class_ids(
        self, values: Int32[np.ndarray, "h w"], where: str
    ) -> Int32[np.ndarray, "h w"]:
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
                f"({len(self.class_names)} classes, values {listed.min()} to {listed.max()}) nor "
                f"ignored (values {', '.join(map(str, ignored)) or 'none'}); {pixels.sum():,} of "
                f"{values.size:,} pixels have them; {self._advice}",
                dict(zip(unknown.tolist(), pixels.tolist(), strict=True)),
            )
        return ids


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


def shorten(items: Sequence[object]) -> str:
    """The first ten, with dots for the rest."""
    shown = ", ".join(map(str, items[:_MAX_LISTED]))
    return f"{shown}, ..." if len(items) > _MAX_LISTED else shown
