"""Label Studio's JSON (also JSON-MIN): brush strokes as packed run lengths, and polygons."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.class_lists import is_name_of_ignored
from input_pipeline.examples import IGNORE
from input_pipeline.file_names import shorten
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import read_image
from input_pipeline.label_maps.brush_run_lengths import decode_brush
from input_pipeline.label_maps.data_folder import DataFolder, LabelledImages, logger
from input_pipeline.label_maps.image_finder import find_images
from input_pipeline.label_maps.interface import LabelMap
from input_pipeline.label_maps.packed_json import PackedJson, digest, pack
from input_pipeline.label_maps.regions import Region, RegionMaps, paint
from input_pipeline.run_lengths import decode_segmentation, require_pycocotools

_LABELS = ("brushlabels", "polygonlabels", "labels")
_GEOMETRY = ("rle", "points", "x", "vertices")


class LabelledTask(NamedTuple):
    """A task with its image: the path in the tree, and regions as `_regions` has them, packed."""

    name: str
    image: str
    packed: PackedJson


def open_label_studio(folder: DataFolder, content: Any) -> LabelledImages | None:
    """The images of tasks that are annotated and there; None where the JSON is another one."""
    if not _is_label_studio(content):
        return None
    where = folder.where()
    names, regions, bare = [], [], []
    for i, task in enumerate(content):
        place = f"{where}: task {task.get('id', i)}"
        results = _results(task, place)
        if results is None:
            bare.append(task.get("id", i))
            continue
        names.append(_image_name(task, place))
        regions.append(list(_regions(results, place)))
    if bare:
        logger.warning("%s: %d tasks have no annotation: %s", where, len(bare), shorten(bare))
    if not names:
        raise ValueError(f"{where}: none of its {len(content)} tasks is annotated; annotate some")
    class_names, class_of = _classes(folder, names, regions)
    paths = find_images(folder, names, where)
    found = sorted(
        (path, name, pack(of_task))
        for path, name, of_task in zip(paths, names, regions, strict=True)
        if path is not None
    )
    tasks = [
        LabelledTask(name, PurePosixPath(folder.images, path).as_posix(), packed)
        for path, name, packed in found
    ]
    labels = LabelStudioMaps(folder.tree, where, tasks, class_names, class_of)
    return LabelledImages(tuple(path for path, *_ in found), class_names, labels)


class LabelStudioMaps(RegionMaps):
    """LabelMaps of the regions of tasks; `class_of` has the class id or IGNORE of each label."""

    def __init__(
        self,
        tree: FileTree,
        where: str,
        tasks: Sequence[LabelledTask],
        class_names: Sequence[str],
        class_of: Mapping[str, int],
    ):
        super().__init__(class_names)
        self._tree, self._where, self._tasks = tree, where, tuple(tasks)
        self._class_of = dict(class_of)

    def read(self, index: int) -> LabelMap:
        """The task's regions, painted by the rules of `regions`."""
        regions = self._tasks[index].packed.value
        if regions:
            size = tuple(regions[0]["size"])
        else:  # annotated as showing nothing
            image = self._tasks[index].image
            size = read_image(self._tree.read(image), self._tree.locate(image)).shape[:2]
        masks = [self._region(region, size, self.place(index)) for region in regions]
        return paint(size, masks, self.rest)

    def _region(self, region: Mapping, size: tuple[int, int], where: str) -> Region:
        place = f"{where}, region {region['id']!r}"
        try:
            if tuple(region["size"]) != size:
                raise ValueError(
                    f"expected the size of the task's first region (height x width), {size[0]} x "
                    f"{size[1]}, got {region['size'][0]} x {region['size'][1]}"
                )
            if "rle" in region:
                mask = decode_brush(region["rle"], size)
            else:
                mask = decode_segmentation([_pixels(region["points"], size)], size)
        except ValueError as error:
            raise ValueError(f"{place}: {error}; draw it again or remove it") from error
        return Region(self._class_of[region["label"]], mask)

    def place(self, index: int) -> str:
        """The JSON and the image's name in it."""
        return f"{self._where}: image {self._tasks[index].name!r}"

    def signature(self, index: int) -> str:
        """Of the task's regions, and what labels mean."""
        parts = (self._tasks[index].packed.digest, self.class_names, sorted(self._class_of.items()))
        return digest("label studio", *parts)


def _is_label_studio(content: object) -> bool:
    """Whether it is a list of tasks, or of JSON-MIN's rows with regions."""
    if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
        return False
    if any("data" in task for task in content):
        return all("annotations" in task or "completions" in task for task in content)
    return any(_is_list_of_results(value) for task in content for value in task.values())


def _is_list_of_results(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "original_width" in item for item in value)
    )


def _results(task: Mapping, where: str) -> list[dict] | None:
    """The results of the one annotation that counts; None where there is none."""
    if "data" not in task:
        return [item for value in task.values() if _is_list_of_results(value) for item in value]
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise ValueError(f"{where}: expected a list of annotations, found {annotations!r:.60}")
    annotations = [a for a in annotations if not a.get("was_cancelled")]
    chosen = [a for a in annotations if a.get("ground_truth")] or annotations
    if len(chosen) > 1:
        raise ValueError(
            f"{where}: has {len(chosen)} annotations (ids {shorten([a.get('id') for a in chosen])})"
            "; mark one as ground truth in Label Studio, or remove the others"
        )
    if not chosen:
        return None
    results = chosen[0].get("result")
    if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
        raise ValueError(f"{where}: expected a list of results, found {results!r:.60}")
    return results


def _image_name(task: Mapping, where: str) -> str:
    data = task.get("data", task)
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object data with the image, found {data!r:.60}")
    strings = {k: v for k, v in data.items() if isinstance(v, str)}
    if "image" in strings:
        return strings["image"]
    paths = [value for value in strings.values() if "/" in value or "\\" in value]
    if not paths and "data" in task:
        paths = list(strings.values())
    if len(paths) != 1:
        raise ValueError(
            f"{where}: expected the name of an image, called image, found {shorten(list(strings))}"
        )
    return paths[0]


def _regions(results: Sequence[Mapping], where: str) -> Iterator[dict]:
    """Label, size and run lengths or points of each region."""
    for item in results:
        if not isinstance(item.get("id"), str | int | None):
            raise ValueError(f"{where}: expected results with a text as id, got {item['id']!r:.60}")
    labels_of = {
        item.get("id"): labels for item in results if (labels := _labels(item.get("value", item)))
    }
    seen = set()
    for i, item in enumerate(results):
        value = item.get("value", item)
        number = item.get("id", i)
        if not isinstance(value, dict) or not any(key in value for key in _GEOMETRY):
            continue  # a choice, a rating, a text: of the image, not of a part of it
        if "id" in item and number in seen:
            continue  # the same stroke, once as what was painted and once as what it is called
        seen.add(number)
        place = f"{where}, region {number!r}"
        shape = next((key for key in ("rle", "points") if key in value), None)
        if shape is None:
            raise ValueError(
                f"{place}: is of type {item.get('type', 'unknown')!r}; brush strokes and polygons "
                "are read, remove or redraw others"
            )
        labels = _labels(value) or labels_of.get(item.get("id"), ())
        if len(labels) != 1 or not isinstance(labels[0], str):
            raise ValueError(f"{place}: expected one label, found {labels!r:.60}; give it one")
        if shape == "points":
            require_pycocotools(place)
        match item:
            case {"original_width": int() as width, "original_height": int() as height} if (
                min(width, height) > 0
            ):
                pass
            case _:
                raise ValueError(f"{place}: expected original_width and original_height in pixels")
        if item.get("image_rotation"):
            raise ValueError(
                f"{place}: was drawn on the image rotated by {item['image_rotation']} degrees; "
                "rotate the image file, and draw it again"
            )
        yield {"id": number, "label": labels[0], "size": (height, width), shape: value[shape]}


def _labels(value: object) -> Sequence[object]:
    """Names of labels in a result's value."""
    found = [value[key] for key in _LABELS if key in value] if isinstance(value, dict) else []
    return found[0] if found and isinstance(found[0], list) else ()


def _pixels(points: object, size: tuple[int, int]) -> list[float]:
    """A polygon in pixels, of points in percent of width and height."""
    try:
        percent = np.array(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise ValueError(f"points: expected [[x, y], ...] in percent, got {points!r:.60}") from None
    return (percent / 100 * size[::-1]).ravel().tolist()


def _classes(
    folder: DataFolder, names: Sequence[str], regions: Sequence[Sequence[Mapping]]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the class id or IGNORE of each label; labels in order without a list."""
    images_of = defaultdict(list)
    for name, of_task in zip(names, regions, strict=True):
        for region in of_task:
            images_of[region["label"]].append(name)
    if folder.has_class_list():
        class_names = folder.class_list.names
    else:
        class_names = tuple(sorted(label for label in images_of if not is_name_of_ignored(label)))
        logger.info("%d classes of %s, its labels", len(class_names), folder.where())
    class_of = {}
    for label, images in images_of.items():
        if label in class_names:
            class_of[label] = class_names.index(label)
        elif is_name_of_ignored(label):
            class_of[label] = IGNORE
        else:
            raise ValueError(
                f"{folder.where()}: label {label!r} is no class of {folder.classes}, but has "
                f"{len(images):,} regions, the first of them in {images[0]!r}; add it to the list"
            )
    return class_names, class_of
