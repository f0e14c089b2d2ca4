"""Which kind of label maps a folder of images has, told by its content."""

import contextlib
import gc
import json
import logging
from collections.abc import Iterator
from typing import Any

from input_pipeline.file_names import shorten
from input_pipeline.label_maps.coco_instances import open_coco_instances
from input_pipeline.label_maps.coco_panoptic import open_coco_panoptic
from input_pipeline.label_maps.color_maps import open_color_maps
from input_pipeline.label_maps.data_folder import DataFolder, LabelledImages, one_file_per_image
from input_pipeline.label_maps.index_maps import IndexMaps, class_lookup
from input_pipeline.label_maps.label_studio import open_label_studio
from input_pipeline.label_maps.masks_per_class import open_masks_per_class

JSON_SUFFIX = ".json"
_BYTES_OF_SECONDS = 10_000_000

_KINDS_OF_JSON = (open_coco_instances, open_coco_panoptic, open_label_studio)
_KINDS_OF_FOLDERS = (open_masks_per_class, open_color_maps)

logger = logging.getLogger(__name__)


def open_label_maps(folder: DataFolder) -> LabelledImages:
    """The images that have label maps, and these.

    `annotations` is a JSON, which is told by its content, or a folder: of masks by class where no
    file is named like an image, of label maps of colours where the class list has colours, else of
    label maps of indices.
    Raises ValueError, which names file and entry, for what contradicts itself.
    """
    if folder.annotations.lower().endswith(JSON_SUFFIX):
        with _garbage_collection_paused():
            return _open_json(folder)
    found = (open_kind(folder) for open_kind in _KINDS_OF_FOLDERS)
    labelled = next((labelled for labelled in found if labelled is not None), None)
    return labelled or _open_index_maps(folder)


def _open_json(folder: DataFolder) -> LabelledImages:
    content = _read_json(folder)
    found = (open_kind(folder, content) for open_kind in _KINDS_OF_JSON)
    labelled = next((labelled for labelled in found if labelled is not None), None)
    if labelled is None:
        raise ValueError(
            f"{folder.where()}: expected a JSON of COCO (images, annotations with segmentation or "
            "segments_info, categories) or of Label Studio (a list of tasks), found "
            f"{_describe(content)}; export it in one of these formats"
        )
    return labelled


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Half the time of reading a large JSON is the search for garbage, of which it makes none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _open_index_maps(folder: DataFolder) -> LabelledImages:
    classes = folder.class_list
    labels = IndexMaps(
        folder.tree,
        one_file_per_image(folder, ("labelIds", "labelTrainIds")),
        classes.names,
        class_lookup(classes, classes.ignored_values),
        advice=(
            "add the missing classes to the class list ('value<TAB>name' lines), or set "
            "ignore_labels to the values of unlabelled pixels"
        ),
    )
    return LabelledImages(folder.paths, classes.names, labels)


def _read_json(folder: DataFolder) -> Any:
    content = [folder.tree.read(folder.annotations)]
    if len(content[0]) > _BYTES_OF_SECONDS:
        logger.info("reading %s, %.0f MB of JSON", folder.where(), len(content[0]) / 1e6)
    try:
        return json.loads(content.pop())  # which then frees the bytes while it reads their text
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{folder.where()}: expected a JSON, but {error}; export it again"
        ) from error


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"an object with {shorten(list(content)) or 'nothing in it'}"
    if isinstance(content, list):
        return f"a list of {len(content)}, first {content[0]!r:.60}" if content else "an empty list"
    return f"{content!r:.60}"
