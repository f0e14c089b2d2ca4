"""COCO's instances: polygons and run lengths in one JSON, as many tools export them."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.label_maps.coco_document import (
    Categories,
    Classes,
    CocoImage,
    category_of,
    image_rows,
    official_ids,
    read_categories,
    read_classes,
    read_images,
)
from input_pipeline.label_maps.data_folder import DataFolder, LabelledImages, logger
from input_pipeline.label_maps.interface import LabelMap, ObjectMask
from input_pipeline.label_maps.packed_json import digest
from input_pipeline.label_maps.regions import Region, RegionMaps, paint
from input_pipeline.run_lengths import (
    count_pixels,
    decode_segmentation,
    encode_segmentation,
    require_pycocotools,
)

_KEPT = ("id", "category_id", "iscrowd", "segmentation", "area")


def open_coco_instances(folder: DataFolder, content: Any) -> LabelledImages | None:
    """The images of the JSON that are there; None where it is another one."""
    match content:
        case {"images": list(), "annotations": list() as annotations}:
            if any(isinstance(row, dict) and "segments_info" in row for row in annotations):
                return None
        case _:
            return None
    categories = read_categories(folder, content)
    by_image = _by_image(annotations, categories, folder.where())
    rows = image_rows(content, folder.where())
    names = {row["id"]: row["file_name"] for row in rows}
    used = defaultdict(list)
    for image_id, of_image in by_image.items():
        for row in of_image:
            used[row["category_id"]].append(names.get(image_id, image_id))
    classes = read_classes(folder, categories, used)
    images = read_images(folder, rows, by_image)
    if empty := sum(1 for row in rows if not by_image.get(row["id"])):
        logger.info("%s: %d images have no region", folder.where(), empty)
    labels = CocoInstanceMaps(folder.where(), images, classes)
    paths = tuple(image.path for image in images)
    return LabelledImages(paths, classes.names, labels, official_ids(images, classes))


class CocoInstanceMaps(RegionMaps):
    """LabelMaps, and ObjectMasks, of the annotations of COCO's JSON."""

    def __init__(self, where: str, images: Sequence[CocoImage], classes: Classes):
        super().__init__(classes.names)
        self._where, self._images, self._classes = where, tuple(images), classes
        self._of_category = dict(classes.of_category)
        self._labelling = digest("coco instances", classes.names, sorted(self._of_category.items()))

    def read(self, index: int) -> LabelMap:
        """The image's regions, painted by the rules of `regions`."""
        image = self._images[index]
        regions = [self._region(row, image, self.place(index)) for row in image.annotations]
        return paint(image.size, regions, self.rest)

    def _region(self, row: Mapping, image: CocoImage, where: str) -> Region:
        place = f"{where}, annotation {row.get('id')}"
        try:
            mask = decode_segmentation(row["segmentation"], image.size)
        except ValueError as error:
            raise ValueError(f"{place}: {error}; correct or remove it") from error
        _check_size(mask.shape, image.size, place)
        return Region(self._of_category[row["category_id"]], mask, bool(row.get("iscrowd")))

    def objects(self, index: int) -> list[ObjectMask]:
        """The image's annotations as pycocotools makes masks of them; nothing is cut or joined."""
        image = self._images[index]
        return [self._object(row, image, self.place(index)) for row in image.annotations]

    def _object(self, row: Mapping, image: CocoImage, where: str) -> ObjectMask:
        place = f"{where}, annotation {row.get('id')}"
        try:
            runs = encode_segmentation(row["segmentation"], image.size)
            area = _area(row["area"]) if "area" in row else count_pixels(runs)
        except ValueError as error:
            raise ValueError(f"{place}: {error}; correct or remove it") from error
        _check_size(tuple(runs["size"]), image.size, place)
        class_id = self._of_category[row["category_id"]]
        return ObjectMask(class_id, runs, area, bool(row.get("iscrowd")))

    def object_signature(self, index: int) -> str:
        """As `signature`, and of the areas."""
        areas = [row.get("area") for row in self._images[index].annotations]
        return digest(self.signature(index), areas)

    def of_images(self, indices: Sequence[int]) -> "CocoInstanceMaps":
        """The same of some of the images, in this order."""
        images = [self._images[index] for index in indices]
        return CocoInstanceMaps(self._where, images, self._classes)

    def place(self, index: int) -> str:
        """The JSON and the image's name in it."""
        return f"{self._where}: image {self._images[index].file_name!r}"

    def signature(self, index: int) -> str:
        """Digest of the image's annotations, and what categories mean."""
        return f"{self._images[index].digest}|{self._labelling}"


def _check_size(size: tuple[int, int], expected: tuple[int, int], place: str) -> None:
    if size != expected:
        raise ValueError(
            f"{place}: expected run lengths of the size of the image (height x width), "
            f"{expected[0]} x {expected[1]}, got {size[0]} x {size[1]}"
        )


def _area(area: object) -> float:
    if type(area) not in (int, float) or not 0 <= area < math.inf:
        raise ValueError(f"area: expected a number of pixels, got {area!r:.40}")
    return float(area)


def _by_image(
    annotations: Sequence[object], categories: Categories, where: str
) -> dict[Any, list[dict]]:
    """Annotations with a region, by image id; those without are counted in a warning."""
    by_image, empty, polygons = defaultdict(list), [], None
    for i, row in enumerate(annotations):
        place = f"{where}: annotations[{i}]"
        if not isinstance(row, dict) or not isinstance(row.get("image_id"), int | str):
            raise ValueError(
                f"{place}: expected an annotation with image_id, category_id and segmentation, "
                f"found {row!r:.120}; correct or remove it"
            )
        category_of(row, categories, place)
        segmentation = row.get("segmentation")
        if isinstance(segmentation, list):
            segmentation = [part for part in segmentation if not _is_line(part)]
            polygons = polygons or (segmentation and place)
        if not segmentation:
            empty.append(row.get("id", i))
            continue
        kept = {key: row[key] for key in _KEPT if key in row}
        by_image[row["image_id"]].append(kept | {"segmentation": segmentation})
    if empty and len(empty) == len(annotations):
        raise ValueError(
            f"{where}: none of its {len(annotations)} annotations has a segmentation (boxes alone "
            "are no label maps); export polygons or masks"
        )
    if empty:
        logger.warning(
            "%s: %d of %d annotations have no segmentation, or one of no area, and are no regions, "
            "such as annotation %s",
            where,
            len(empty),
            len(annotations),
            empty[0],
        )
    if polygons:
        require_pycocotools(polygons)
    return by_image


def _is_line(polygon: object) -> bool:
    """Whether it has fewer than three points, as two clicks of an annotator leave it."""
    return isinstance(polygon, list) and len(polygon) < 6
