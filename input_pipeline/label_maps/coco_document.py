"""COCO's JSON: its images, categories as classes, and annotations kept by image."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from input_pipeline.class_lists import ClassList, is_name_of_ignored, parse_class_list
from input_pipeline.examples import IGNORE
from input_pipeline.file_names import portable_path
from input_pipeline.label_maps.data_folder import DataFolder
from input_pipeline.label_maps.image_finder import find_images
from input_pipeline.label_maps.interface import OfficialIds
from input_pipeline.label_maps.packed_json import PackedJson, digest, pack
from input_pipeline.limits import MAX_PIXELS, check_limit


@dataclass(frozen=True)
class CocoImage:
    """An image of the JSON that is there; `packed` are its annotations."""

    image_id: int | str
    path: PurePosixPath
    file_name: str
    size: tuple[int, int]
    """Height and width."""
    packed: PackedJson

    @property
    def annotations(self) -> list[dict]:
        return self.packed.value

    @property
    def digest(self) -> str:
        return digest(self.size, self.packed.digest)


@dataclass(frozen=True)
class Classes:
    """Class names, and the class id (or IGNORE) of each category's id."""

    names: tuple[str, ...]
    of_category: Mapping[int, int]


@dataclass(frozen=True)
class Categories:
    """Names by id, and what the JSON makes of them where the user gave no class list."""

    names: Mapping[int, str]
    listed: ClassList


def read_categories(folder: DataFolder, content: Mapping) -> Categories:
    """The categories of the JSON. ValueError where there are none, or they are no classes."""
    where, rows = folder.where(), content.get("categories")
    if not isinstance(rows, list) or not rows:
        raise ValueError(
            f'{where}: expected "categories": [{{"id": 1, "name": "..."}}, ...], found '
            f"{rows!r:.60}; export the annotations with their categories"
        )
    ignored = () if folder.has_class_list() else folder.ignore_labels
    listed = parse_class_list(json.dumps({"categories": rows}).encode(), where, ignored)
    return Categories({int(row["id"]): row["name"].strip() for row in rows}, listed)


def read_classes(
    folder: DataFolder, categories: Categories, used: Mapping[int, Sequence[str]]
) -> Classes:
    """The classes of the list, if the user gave one, else of the JSON's categories.

    Categories are those classes of the list that have their names; where the list gives label
    values, these are the categories' ids. `used` names for each category the images of its
    annotations. Raises ValueError where list and JSON contradict each other.
    """
    where, listed = folder.where(), categories.listed
    if not folder.has_class_list():
        ids = dict(zip(listed.label_values, range(len(listed.names)), strict=True))
        of_category = {number: ids.get(number, IGNORE) for number in categories.names}
        return Classes(listed.names, of_category)
    classes = folder.class_list
    of_category, id_of = {}, _ids_by_name(classes)
    for number, name in categories.names.items():
        if name in id_of:
            of_category[number] = class_id = id_of[name]
            value = classes.label_values[class_id] if classes.label_values else number
            if classes.values_are_given and value != number:
                raise ValueError(
                    f"{where}: category {number} is {name!r}, which has label value {value} in the "
                    f"class list {folder.classes}; correct the number, or write the list with "
                    "names alone, one a line"
                )
        elif number in classes.ignored_values or is_name_of_ignored(name):
            of_category[number] = IGNORE
        elif number in used:
            raise ValueError(
                f"{where}: category {number}, {name!r}, is no class of {folder.classes}, but has "
                f"{len(used[number]):,} annotations, the first of them in {used[number][0]!r}; add "
                f"it to the list, or ignore it by config.data.ignore_labels=({number},)"
            )
    return Classes(classes.names, of_category)


def _ids_by_name(classes: ClassList) -> dict[str, int]:
    """Class ids by name; also by synonyms, but for those of several classes."""
    names = dict(zip(classes.names, range(len(classes.names)), strict=True))
    counts = Counter(name for names in classes.further_names.values() for name in names)
    of_synonyms = {
        synonym: names[name]
        for name, synonyms in classes.further_names.items()
        for synonym in synonyms
        if counts[synonym] == 1
    }
    return of_synonyms | names


def image_rows(content: Mapping, where: str) -> list[dict]:
    """The JSON's images, each with an id of its own, a name and a size."""
    rows = [_checked_row(row, f"{where}: images[{i}]") for i, row in enumerate(content["images"])]
    if twice := [number for number, count in Counter(r["id"] for r in rows).items() if count > 1]:
        raise ValueError(f"{where}: images: id {twice[0]!r} stands twice; give each its own")
    return rows


def read_images(
    folder: DataFolder, rows: Sequence[Mapping], annotations: Mapping[Any, Sequence[Mapping]]
) -> list[CocoImage]:
    """Of `image_rows` those that are there, ordered by path; `annotations` are by image id."""
    where = folder.where()
    known = {row["id"] for row in rows}
    if strangers := [number for number in annotations if number not in known]:
        raise ValueError(
            f"{where}: annotations of image_id {strangers[0]!r}, which is none of its "
            f"{len(rows)} images; add the image or remove them"
        )
    paths = find_images(folder, [row["file_name"] for row in rows], where)
    found = [
        CocoImage(
            row["id"],
            path,
            row["file_name"],
            (row["height"], row["width"]),
            _packed(annotations.get(row["id"], [])),
        )
        for row, path in zip(rows, paths, strict=True)
        if path is not None
    ]
    return sorted(found, key=lambda image: image.path.as_posix())


def _packed(annotations: Sequence[Mapping]) -> PackedJson:
    """The digest is without areas, which no label map depends on."""
    painted = [{key: row[key] for key in row if key != "area"} for row in annotations]
    return pack(annotations, told=painted)


def official_ids(images: Sequence[CocoImage], classes: Classes) -> OfficialIds:
    """Those of the JSON; of several categories of a class the first, of none one that is free."""
    first_of: dict[int, int] = {}
    for number, class_id in sorted(classes.of_category.items()):
        first_of.setdefault(class_id, number)
    free = itertools.count(max(classes.of_category, default=0) + 1)
    categories = (first_of[i] if i in first_of else next(free) for i in range(len(classes.names)))
    return OfficialIds(tuple(image.image_id for image in images), tuple(categories))


def category_of(row: Mapping, categories: Categories, where: str) -> int:
    """The category's id of an annotation or segment; ValueError where it is none of these."""
    number = row.get("category_id")
    if type(number) is not int or number not in categories.names:
        raise ValueError(
            f"{where}: category_id {number!r} is none of the {len(categories.names)} categories; "
            "add it to them or correct it"
        )
    return number


def _checked_row(row: object, where: str) -> dict:
    match row:
        case {
            "id": int() | str(),
            "file_name": str() as name,
            "height": int() as height,
            "width": int() as width,
        } if portable_path(name).name and height > 0 and width > 0:
            check_limit(MAX_PIXELS, height * width, f"{where}: {height} x {width} pixels")
            return row
    raise ValueError(
        f"{where}: expected an image with id, file_name, height and width, found {row!r:.120}; "
        "add what is missing"
    )
