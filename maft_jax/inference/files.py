"""Which images to segment, under which names, and what is written about each of them."""

import glob
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from input_pipeline.examples import IGNORE
from input_pipeline.image_files import IMAGE_SUFFIXES
from input_pipeline.layouts.base import describe_left_out, shorten
from maft_jax.inference.interchange.coco import encode_panoptic_png
from maft_jax.inference.object_description import describe_objects
from maft_jax.inference.object_overlay import object_overlay
from maft_jax.inference.overlay import overlay, segment_colors
from maft_jax.inference.result import Segmentation, class_regions
from maft_jax.inference.segment_masks import ObjectResult
from maft_jax.inference.segments import PanopticSegmentation
from maft_jax.runtime import stop_requests
from maft_jax.runtime.atomic_files import atomic_write_bytes, clear_leftovers
from maft_jax.runtime.json_files import read_json

_PICTURES = {
    *(ending for ending in Image.registered_extensions() if ending != ".pdf"),
    *(".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
}
"""Endings of what a person would call an image, whether or not it can be read."""
_OURS = ("_overlay", "_labels", "_panoptic")
"""What the names of pictures end with that are written about an image."""
_MOST_CLASSES_OF_8_BITS = 255

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """An image to segment."""

    path: Path
    example_id: str
    """Its path below the folder that was given, without ending: what external proposals go by."""
    name: str
    """What the names of the files about it begin with; no other image has it."""


def find_images(places: Sequence[str]) -> tuple[list[ImageFile], list[str]]:
    """Images of files, folders and patterns such as photos/**/*.jpg, each once, and problems.

    A problem says which place led to no image, or which pictures in a folder are of kinds that are
    not read. In folders and below, hidden files are left out, and so is what `write_prediction`
    put there; other files, which are no pictures, are logged.
    """
    found: dict[Path, str] = {}
    problems = []
    for place in places:
        root, paths, others = _look(place)
        pictures = [path for path in others if path.suffix.lower() in _PICTURES]
        if pictures:
            problems.append(f"{place}: left out {describe_left_out(pictures)}")
        if len(others) > len(pictures):
            rest = [path for path in others if path not in pictures]
            logger.info(
                "%s: left out %d files that are no images: %s", place, len(rest), shorten(rest)
            )
        for path in paths:
            example_id = path.relative_to(root).with_suffix("").as_posix()
            found.setdefault(Path(os.path.abspath(path)), example_id)
        if not paths and not pictures:
            expected = "an image, a folder with images or a pattern"
            problem = "no such file or folder, and no file of this pattern"
            if os.path.isdir(place):
                problem = f"no image ({' '.join(IMAGE_SUFFIXES)}) in this folder or below"
            problems.append(f"{place}: expected {expected}, found {problem}")
    names = _distinct_names(found)
    return [ImageFile(path, found[path], names[path]) for path in found], problems


def _finished(count: int, total: int) -> str:
    return f"{count} of {total} images are finished, and all of their files are whole"


class Interrupted(Exception):
    """By Ctrl-C or SIGTERM; `exit_code` is 128 + the signal's number."""

    def __init__(self, signal_number: int, finished: int, total: int):
        super().__init__(f"stopped: {_finished(finished, total)}")
        self.exit_code = 128 + signal_number


def predict_images(
    segment: Callable[[Path, str], Segmentation | ObjectResult],
    images: Sequence[ImageFile],
    folder: str | os.PathLike,
    provenance: Mapping,
    **options,
) -> list[str]:
    """Segments and writes images one after the other, with progress; returns what went wrong.

    Args:
        segment: of a path and an example id; its ValueErrors are about this image alone.
        options: of `write_prediction`.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came. Files of finished images are whole.
        OSError: a file could not be written, likewise.
    """
    problems: list[str] = []
    done = 0
    for parent in {(Path(folder) / image.name).parent for image in images}:
        clear_leftovers(parent)
    for image in tqdm(images, unit="image", disable=None):
        if (stopped := stop_requests.requested()) is not None:
            raise Interrupted(stopped, done, len(images))
        try:
            result = segment(image.path, image.example_id)
        except ValueError as error:
            named = str(image.path) in str(error)
            problems.append(str(error) if named else f"{image.path}: {error}")
            continue
        height, width = result.image.shape[:2]
        about = {"path": str(image.path), "width": width, "height": height}
        try:
            write_prediction(result, folder, image.name, {"image": about, **provenance}, **options)
        except OSError as error:
            raise OSError(f"{error}; {_finished(done, len(images))}") from error
        done += 1
    return problems


def write_prediction(
    result: Segmentation | ObjectResult,
    folder: str | os.PathLike,
    name: str,
    provenance: Mapping,
    *,
    opacity: float = 0.6,
    long_side: int | None = None,
    picture_format: str = "png",
) -> None:
    """Writes <name>_overlay.png (or .jpg), a map and then <name>.json into a folder.

    The map is <name>_labels.png, of a panoptic result <name>_panoptic.png, and of instances, which
    may overlap, none. Each file appears whole or not at all. `name` may contain folders, which are
    created. `provenance` goes into the JSON file in front of what the result says. Pictures that
    only the JSON of an earlier prediction names are removed.
    """
    start = epath.Path(folder) / name
    start.parent.mkdir(parents=True, exist_ok=True)
    picture = draw(result, opacity, long_side)
    files = {"overlay": f"{start.name}_overlay.{picture_format}"}
    atomic_write_bytes(start.parent / files["overlay"], _encoded(picture, picture_format))
    if isinstance(result, Segmentation):
        files["labels"] = f"{start.name}_labels.png"
        atomic_write_bytes(start.parent / files["labels"], encode_labels(result))
        described = describe(result)
    else:
        described = describe_objects(result)
        if isinstance(result, PanopticSegmentation):
            files["panoptic"] = f"{start.name}_panoptic.png"
            ids = encode_panoptic_png(result.segment_map)
            atomic_write_bytes(start.parent / files["panoptic"], ids)
    content = encode_json({**provenance, "files": files, **described})
    earlier = _pictures_of(start)
    atomic_write_bytes(start.parent / f"{start.name}.json", content)
    for picture_name in earlier - set(files.values()):
        (start.parent / picture_name).unlink(missing_ok=True)


def _pictures_of(start: epath.Path) -> set[str]:
    """Names of the pictures that the JSON file of an earlier prediction says it came with."""
    path = start.parent / f"{start.name}.json"
    try:
        named = read_json(path).get("files") if path.exists() else None
    except ValueError:  # a file of somebody else's, which is replaced
        named = None
    ours = {f"{start.name}{what}.{kind}" for what in _OURS for kind in ("png", "jpg")}
    names = named.values() if isinstance(named, dict) else ()
    return ours & {name for name in names if isinstance(name, str)}


def draw(
    result: Segmentation | ObjectResult, opacity: float, long_side: int | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The overlay of a result of any kind; arguments are those of `overlay.overlay`."""
    if isinstance(result, Segmentation):
        return overlay(result, opacity, long_side=long_side)
    return object_overlay(result, opacity, long_side=long_side)


def encode_json(content: Mapping) -> bytes:
    """A JSON file; letters that no text can hold become question marks."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return text.encode("utf-8", "replace") + b"\n"


def encode_labels(segmentation: Segmentation) -> bytes:
    """The label map as PNG: a palette of the overlay's colours, 255 = no class.

    Of more than 255 classes 16 bits without a palette, 65535 = no class.
    """
    labels = segmentation.label_map
    if len(segmentation.class_names) > _MOST_CLASSES_OF_8_BITS:
        return _encoded(labels.astype(np.uint16), "png")  # of IGNORE, -1, all bits are ones
    image = Image.fromarray(labels.astype(np.uint8), "P")
    palette = np.zeros((256, 3), np.uint8)
    for index, color in segment_colors(segmentation).items():
        palette[index] = color
    image.putpalette(palette.tobytes())
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def describe(segmentation: Segmentation) -> dict:
    """The classes in the picture, largest first, and what is needed to read the label map."""
    colors = segment_colors(segmentation)
    unlabelled = segmentation.label_map == IGNORE
    background = unlabelled & (segmentation.score > 0)
    wide = len(segmentation.class_names) > _MOST_CLASSES_OF_8_BITS
    classes = [
        {
            "name": region.name,
            "index": region.index,
            "color": "#{:02x}{:02x}{:02x}".format(*colors[region.index]),
            "pixels": region.num_pixels,
            "share": round(region.share, 6),
            "mean_score": round(region.mean_score, 4),
            "box": list(region.box),
        }
        for region in class_regions(segmentation)
    ]
    return {
        "task": "semantic",
        "classes": classes,
        "no_class": {
            "pixels": int(unlabelled.sum()),
            "share": round(float(unlabelled.mean()), 6),
            "background_pixels": int(background.sum()),
        },
        "label_map": {
            "bits": 16 if wide else 8,
            "no_class": 65535 if wide else 255,
            "note": "values are places in class_names, from 0"
            + ("; 16 bits, too many classes for a palette" if wide else ""),
        },
        "class_names": list(segmentation.class_names),
        "background": list(segmentation.background),
        "num_proposals": len(segmentation.proposals),
    }


def _encoded(array: np.ndarray, picture_format: str) -> bytes:
    content = io.BytesIO()
    if picture_format == "jpg":
        Image.fromarray(array).save(content, "jpeg", quality=92, subsampling=0)
    else:
        Image.fromarray(array).save(content, "png")
    return content.getvalue()


def _look(place: str) -> tuple[Path, list[Path], list[Path]]:
    """The folder that examples' ids are relative to, the images, and what else is there."""
    path = Path(place)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if _is_offered(p, path))
        images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
        return path, images, [p for p in files if p.suffix.lower() not in IMAGE_SUFFIXES]
    if path.exists():
        return path.parent, [path], []
    if not glob.has_magic(place):
        return path.parent, [], []
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    matches = sorted(Path(p) for p in glob.glob(place, recursive=True))
    return Path(*parts[:fixed]), [p for p in matches if p.is_file() and not _is_ours(p)], []


def _is_offered(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.is_file() and not _is_ours(path)


def _is_ours(path: Path) -> bool:
    """Whether it lies beside the JSON file that was written with it, or is that file."""
    if path.suffix == ".json":
        pictures = [f"{path.stem}{ending}.png" for ending in _OURS]
        return any(
            path.with_name(name).exists() for name in (*pictures, f"{path.stem}_overlay.jpg")
        )
    for ending in _OURS:
        if path.stem.endswith(ending):
            return path.with_name(f"{path.stem.removesuffix(ending)}.json").exists()
    return False


def _distinct_names(found: Mapping[Path, str]) -> dict[Path, str]:
    """The id where it is the only one; else as much of the path as it takes, with its ending."""
    count = Counter(example_id.casefold() for example_id in found.values())
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path, name in found.items():
        if count[name.casefold()] > 1:
            alike = [p.parent for p, other in found.items() if other.casefold() == name.casefold()]
            if len(set(alike)) > 1:
                name = path.relative_to(os.path.commonpath(alike)).with_suffix("").as_posix()
            if sum(p == path.parent for p in alike) > 1:
                name = f"{name}_{path.suffix[1:]}"
        number, wanted = 2, name
        while name.casefold() in taken:
            name, number = f"{wanted}_{number}", number + 1
        taken.add(name.casefold())
        names[path] = name
    return names
