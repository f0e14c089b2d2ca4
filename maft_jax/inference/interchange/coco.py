"""COCO's files: instances with run lengths, the panoptic format, and a data set's folder."""

import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from maft_jax.inference.segment_masks import ObjectResult, run_lengths_of, segments_of
from maft_jax.inference.segments import PanopticSegmentation, Segment
from maft_jax.runtime.atomic_files import atomic_folder

_LARGEST_ID = 2**24 - 1
_PNG = ".png"


def coco_document(
    results: Mapping[str, ObjectResult], category_ids: Sequence[int] | None = None
) -> dict:
    """The JSON of instances: images, categories, and annotations with run lengths and scores.

    CVAT ("COCO 1.0"), Roboflow, FiftyOne, supervision, Datumaro and pycocotools read it. Stuff of a
    panoptic result is an annotation as objects are.

    Args:
        results: by name of the image's file, with the same classes in all of them.
        category_ids: of the classes, in their order; by default 1, 2, 3, ...

    Raises:
        ValueError: results of different classes, or not one id for each class.
    """
    ids = _category_ids(results, category_ids)
    annotations: list[dict] = []
    for image_id, result in enumerate(results.values(), start=1):
        for segment, runs in zip(segments_of(result), run_lengths_of(result), strict=True):
            of_image = {"id": len(annotations) + 1, "image_id": image_id, "segmentation": runs}
            annotations.append(of_image | _object_row(segment, ids))
    names = _class_names(results)
    categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
    return {"images": _images(results), "categories": categories, "annotations": annotations}


def coco_panoptic_document(
    results: Mapping[str, PanopticSegmentation], category_ids: Sequence[int] | None = None
) -> dict:
    """The JSON of the panoptic format, whose PNGs `encode_panoptic_png` makes.

    Args and errors as of `coco_document`; besides, two images need names that differ in more than
    their endings, and lie below one folder, since their PNGs are called like them.
    """
    ids = _category_ids(results, category_ids)
    pngs = _png_names(results)
    annotations = [
        panoptic_annotation(image_id, png, result.segments, ids)
        for image_id, (result, png) in enumerate(zip(results.values(), pngs, strict=True), start=1)
    ]
    things = next(iter(results.values())).things if results else frozenset()
    categories = panoptic_categories(ids, _class_names(results), things)
    return {"images": _images(results), "categories": categories, "annotations": annotations}


def panoptic_annotation(
    image_id: int | str, png: str, segments: Sequence[Segment], category_ids: Sequence[int]
) -> dict:
    """What the panoptic format says of one image, whose ids are in the file `png`."""
    rows = [{"id": segment.id} | _object_row(segment, category_ids) for segment in segments]
    return {"image_id": image_id, "file_name": png, "segments_info": rows}


def panoptic_categories(
    category_ids: Sequence[int], class_names: Sequence[str], things: frozenset[int]
) -> list[dict]:
    """What the panoptic format says of the classes."""
    return [
        {"id": category_id, "name": name, "isthing": int(i in things)}
        for i, (category_id, name) in enumerate(zip(category_ids, class_names, strict=True))
    ]


def instance_results(
    image_id: int | str,
    instances: Sequence[Segment],
    run_lengths: Sequence[Mapping],
    category_ids: Sequence[int],
) -> list[dict]:
    """The objects of one image in the list that COCO's server and `pycocotools.loadRes` take.

    Without boxes: where there are some, `loadRes` takes their areas for those of the masks.
    """
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[instance.class_index],
            "segmentation": dict(runs),
            "score": instance.score,
        }
        for instance, runs in zip(instances, run_lengths, strict=True)
    ]


def _object_row(segment: Segment, category_ids: Sequence[int]) -> dict:
    return {
        "category_id": category_ids[segment.class_index],
        "area": segment.num_pixels,
        "bbox": list(segment.box),
        "iscrowd": 0,
        "score": segment.score,
    }


def encode_panoptic_png(segment_map: Int32[np.ndarray, "h w"]) -> bytes:
    """Ids of segments as colours, red + 256 green + 65536 blue, which is COCO's way.

    Raises:
        ValueError: an id has no colour.
    """
    if segment_map.size and not 0 <= segment_map.min() <= segment_map.max() <= _LARGEST_ID:
        raise ValueError(
            f"segment_map: expected ids from 0 to {_LARGEST_ID}, which colours can say, got "
            f"{segment_map.min()} to {segment_map.max()}"
        )
    colors = np.stack([segment_map >> shift & 255 for shift in (0, 8, 16)], axis=-1)
    content = io.BytesIO()
    Image.fromarray(colors.astype(np.uint8)).save(content, "png")
    return content.getvalue()


def decode_panoptic_png(colors: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
    """The ids that colours say: red + 256 green + 65536 blue."""
    return colors.astype(np.int32) @ np.array([1, 2**8, 2**16], np.int32)


def write_coco_dataset(
    results: Mapping[str, ObjectResult],
    folder: str | os.PathLike,
    category_ids: Sequence[int] | None = None,
) -> None:
    """Writes `data/` with the images as PNG and `labels.json`, as FiftyOne reads a COCO data set.

    The folder appears whole or not at all.

    Args: as of `coco_document`.

    Raises:
        ValueError: as `coco_document`, or names of images that differ in their endings alone, or
            lead out of the folder.
        OSError: the folder is there and not empty, or cannot be written.
    """
    named = dict(zip(_png_names(results), results.values(), strict=True))
    document = coco_document(named, category_ids)
    with atomic_folder(pathlib.Path(folder)) as aside:
        for name, result in named.items():
            path = aside / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(result.image).save(path)
        _write_json(aside / "labels.json", document)


def write_coco_panoptic(
    results: Mapping[str, PanopticSegmentation],
    folder: str | os.PathLike,
    category_ids: Sequence[int] | None = None,
) -> None:
    """Writes `panoptic.json` and `panoptic/` with its PNGs, as COCO's and other servers take them.

    The folder appears whole or not at all.

    Args and errors: as of `coco_panoptic_document`, and OSError as of `write_coco_dataset`.
    """
    document = coco_panoptic_document(results, category_ids)
    with atomic_folder(pathlib.Path(folder)) as aside:
        for name, result in zip(_png_names(results), results.values(), strict=True):
            path = aside / "panoptic" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_panoptic_png(result.segment_map))
        _write_json(aside / "panoptic.json", document)


def _write_json(path: pathlib.Path, document: dict) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _images(results: Mapping[str, ObjectResult]) -> list[dict]:
    return [
        {
            "id": i,
            "file_name": name,
            "width": result.image.shape[1],
            "height": result.image.shape[0],
        }
        for i, (name, result) in enumerate(results.items(), start=1)
    ]


def _class_names(results: Mapping[str, ObjectResult]) -> tuple[str, ...]:
    different = {result.class_names for result in results.values()}
    if len(different) > 1:
        raise ValueError(
            f"results: expected the same classes in all images, got {len(different)} lists of "
            "them; write a file for each list"
        )
    return next(iter(different), ())


def _category_ids(
    results: Mapping[str, ObjectResult], given: Sequence[int] | None
) -> Sequence[int]:
    names = _class_names(results)
    ids = range(1, len(names) + 1) if given is None else given
    if len(ids) != len(names) or len(set(ids)) != len(ids):
        raise ValueError(
            f"category_ids: expected one for each of {len(names)} classes, all different, got "
            f"{len(ids)}, of which {len(set(ids))} differ"
        )
    return ids


def _png_names(results: Mapping[str, ObjectResult]) -> list[str]:
    paths = [pathlib.PurePosixPath(name) for name in results]
    for path in paths:
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(
                f"results: expected names of files, perhaps in folders, below the one that is "
                f"written, got {str(path)!r}; give names such as 'photo.jpg', without the folder "
                "that images lie in"
            )
    names = [path.with_suffix(_PNG).as_posix() for path in paths]
    twice = (
        {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    )
    if twice:
        raise ValueError(
            f"results: {len(twice)} names would be those of several images, such as "
            f"{min(twice)!r}; give images names that differ in more than their endings"
        )
    return names
