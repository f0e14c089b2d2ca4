"""A data set kept as a folder of images beside a folder of label maps."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from input_pipeline.class_lists import BUILT_IN, ClassList, load_class_list
from input_pipeline.examples import IGNORE, Example
from input_pipeline.image_files import read_image, read_label_map

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MAX_LISTED = 10
_UNKNOWN = -2


class FolderSource:
    """Examples of `root/images/**`, labelled by `root/annotations/<same path>.png`.

    `classes` is a file (relative to `root` or absolute) or the name of a built-in class list.
    `ignore_labels` are the values of unlabelled pixels in the label maps: 255 in most data sets,
    0 in ADE20K, 0 and 255 in VOC without its background class. Files are decoded on access only;
    the constructor checks what names and class lists can tell.
    """

    def __init__(
        self,
        root: str | Path,
        images: str = "images",
        annotations: str = "annotations",
        classes: str | Path = "classes.txt",
        ignore_labels: Sequence[int] = (255,),
    ):
        self._root = Path(root)
        self._ignore_labels = tuple(ignore_labels)
        self._image_dir = _existing_folder(self._root / images)
        self._label_dir = _existing_folder(self._root / annotations)
        self._classes = _load_classes(self._root, classes, self._ignore_labels)
        self._image_paths = _find_images(self._image_dir)
        self.example_ids = tuple(path.with_suffix("").as_posix() for path in self._image_paths)
        self._check_label_files()
        self.class_names = self._classes.names
        self._class_of_value = _class_lookup(self._classes, self._ignore_labels)
        self._labelling = hashlib.sha256(
            repr((self._classes, self._ignore_labels)).encode()
        ).hexdigest()

    def __len__(self) -> int:
        return len(self._image_paths)

    def __getitem__(self, index: int) -> Example:
        image_path, label_path = self._paths(index)
        image, values = read_image(image_path), read_label_map(label_path)
        height, width = image.shape[:2]
        if min(height, width) < 2:
            raise ValueError(
                f"{image_path}: expected at least 2x2 pixels, got {width}x{height}; remove the "
                "image and its label map"
            )
        if values.shape != (height, width):
            raise ValueError(
                f"{label_path}: expected the size of its image {image_path}, {width}x{height} "
                f"(after EXIF rotation), got {values.shape[1]}x{values.shape[0]}; save the label "
                "map at the size of the upright image"
            )
        return Example(self.example_ids[index], image, self._to_class_ids(values, label_path))

    def signature(self, index: int) -> str:
        """Path, size and modification time of both files, and the class list they are read by."""
        files = (
            f"{path.relative_to(self._root).as_posix()}:{status.st_size}:{status.st_mtime_ns}"
            for path in self._paths(index)
            for status in [os.stat(path)]
        )
        return "|".join((*files, self._labelling))

    def _paths(self, index: int) -> tuple[Path, Path]:
        relative = self._image_paths[index]
        return self._image_dir / relative, self._label_dir / relative.with_suffix(".png")

    def _to_class_ids(
        self, values: Int32[np.ndarray, "h w"], path: Path
    ) -> Int32[np.ndarray, "h w"]:
        last = len(self._class_of_value) - 1
        ids = self._class_of_value[np.where((values < 0) | (values > last), last, values)]
        unknown = np.unique(values[ids == _UNKNOWN])
        if unknown.size:
            shown = ", ".join(map(str, unknown[:_MAX_LISTED]))
            more = ", ..." if unknown.size > _MAX_LISTED else ""
            listed = self._classes.label_values
            raise ValueError(
                f"{path}: label values {shown}{more} are neither in the class list "
                f"({len(listed)} classes, values {min(listed)} to {max(listed)}) nor ignored "
                f"(ignore_labels {', '.join(map(str, self._ignore_labels))}); add the missing "
                "classes to the class list, or set ignore_labels to the values of unlabelled pixels"
            )
        return ids

    def _check_label_files(self) -> None:
        first_of_id: dict[str, Path] = {}
        for example_id, path in zip(self.example_ids, self._image_paths, strict=True):
            first = first_of_id.setdefault(example_id, path)
            if first is not path:
                raise ValueError(
                    f"{self._image_dir}: {first} and {path} would share the label map "
                    f"{example_id}.png; rename or remove one of the images"
                )
        labels = (self._paths(index)[1] for index in range(len(self)))
        missing = [str(path) for path in labels if not path.is_file()]
        if missing:
            raise ValueError(
                f"{self._image_dir}: {len(missing)} of {len(self)} images have no label map. "
                f"Expected, but missing: {', '.join(missing[:_MAX_LISTED])}"
                f"{', ...' if len(missing) > _MAX_LISTED else ''}. Add the label maps or remove "
                "the images"
            )


def _existing_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path}: expected a folder, there is none")
    return path


def _find_images(folder: Path) -> list[Path]:
    found = (
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    paths = sorted(found, key=lambda path: path.as_posix())
    if not paths:
        raise ValueError(
            f"{folder}: expected images ({' '.join(IMAGE_SUFFIXES)}) in this folder or below, "
            "found none"
        )
    return paths


def _load_classes(root: Path, classes: str | Path, ignore_labels: tuple[int, ...]) -> ClassList:
    in_root = root / classes
    built_in = str(classes) in BUILT_IN and not in_root.exists()
    return load_class_list(classes if built_in else in_root, ignore_labels)


def _class_lookup(class_list: ClassList, ignore_labels: tuple[int, ...]) -> Int32[np.ndarray, "v"]:
    """Class id of every label value; the last entry stands for all larger values."""
    size = max(*class_list.label_values, *ignore_labels) + 2
    lookup = np.full(size, _UNKNOWN, np.int32)
    lookup[list(class_list.label_values)] = np.arange(len(class_list.names))
    lookup[list(ignore_labels)] = IGNORE
    return lookup
