"""Proposals that any other tool made, read from its files: docs/proposals.md has the formats."""

import csv
import hashlib
import logging
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from input_pipeline.examples import Example
from input_pipeline.image_files import opened_image
from input_pipeline.limits import MAX_UNPACKED_BYTES, check_limit
from input_pipeline.run_lengths import decode_segmentation, segmentation_size
from maft_jax.convert.numpy_archive import open_numpy_archive
from maft_jax.proposals.annotation_index import index_annotations
from maft_jax.proposals.generator import MaskStack, Proposals
from maft_jax.runtime.json_files import read_json

logger = logging.getLogger(__name__)

_ENDINGS = (".npz", ".json", ".png")
_TABLE_OF_SAM = "metadata.csv"
_NPZ_NAMES = ("masks", "scores", "class_logits")
_LARGEST_NUMBER = float(np.finfo(np.float32).max)


class ExternalProposals:
    """The ProposalGenerator `external`: what was made elsewhere, of any resolution.

    `path` is a JSON file in COCO's layout, or a folder with one of these per example:
    `<example_id>.npz`, `<example_id>.json`, the folder `<example_id>/` of PNG masks, perhaps with
    scores.json or SAM's metadata.csv, or the index map `<example_id>.png`. Without scores, the
    order of the masks counts: 1, 1/2, 1/3, ...

    Raises:
        ValueError: at once if there is no such path; when called, if the example's file is missing,
            corrupt, or its masks have another shape than the image.
    """

    name = "external"

    def __init__(self, path: str):
        if not path:
            raise ValueError(
                "config.proposals.path: generator=external needs the JSON file or the folder of "
                "the masks (--config.proposals.path=masks)"
            )
        self.path = Path(path)
        if self.path.is_file() and self.path.suffix == ".json":
            self.fingerprint = f"external 1, {_hash_file(self.path)}"
        elif self.path.is_dir():
            self.fingerprint = f"external 1, {_hash_names(self.path)}"
        else:
            problem = "another file" if self.path.exists() else "nothing there"
            raise ValueError(
                f"config.proposals.path={path}: expected a .json file or a folder, got {problem}"
            )

    def __call__(self, example: Example, num_proposals: int) -> Proposals:
        """The example's proposals; those of run lengths and PNG files cut to the best ones."""
        if self.path.is_file():
            index = index_annotations(self.path, self.fingerprint)
            annotations, row = index.annotations_of(example.example_id)
            where = f"{self.path}, image of example {example.example_id!r}"
            return _read_annotations(annotations, row, example, num_proposals, where)
        path = self._find(example.example_id)
        if path.suffix == ".json" and path.is_file():
            annotations = _annotations_of_file(path)
            return _read_annotations(annotations, {}, example, num_proposals, str(path))
        if path.suffix == ".npz" and path.is_file():
            return _read_npz(path, example)
        if path.is_dir():
            return _read_png_folder(path, example, num_proposals)
        return _read_index_map(path, example, num_proposals)

    def _find(self, example_id: str) -> Path:
        spelled = dict.fromkeys(
            (example_id, *(unicodedata.normalize(form, example_id) for form in ("NFC", "NFD")))
        )
        for name in spelled:  # accents composed or taken apart, as macOS has them
            candidates = [self.path / f"{name}{ending}" for ending in (*_ENDINGS, "")]
            if found := [path for path in candidates if path.exists()]:
                break
        if len(found) != 1:
            listed = ", ".join(str(path) for path in found or candidates)
            raise ValueError(
                f"{self.path}: expected one file or folder of proposals for example "
                f"{example_id!r}, got {len(found)}; {'found' if found else 'looked for'} {listed}"
            )
        return found[0]


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_names(folder: Path) -> str:
    """Of names, sizes and times: reading what may be a terabyte would cost hours per process.

    Times are whole seconds, which `cp -p`, `rsync -a` and `tar` keep.
    """
    digest = hashlib.sha256()
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.endswith(_ENDINGS) or name == _TABLE_OF_SAM:
                path = Path(root, name)
                stat = path.stat()
                entry = (path.relative_to(folder).as_posix(), stat.st_size, int(stat.st_mtime))
                digest.update(repr(entry).encode())
    return digest.hexdigest()


def _read_npz(path: Path, example: Example) -> Proposals:
    try:
        arrays = {name: tensor.read() for name, tensor in open_numpy_archive(path).items()}
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{path}: not a readable .npz file of plain arrays ({error})") from error
    if "masks" not in arrays or set(arrays) - set(_NPZ_NAMES):
        raise ValueError(f"{path}: expected masks and perhaps {_NPZ_NAMES[1:]}, got {list(arrays)}")
    masks = _check_masks(arrays["masks"], example, str(path))
    scores = _check_scores(arrays.get("scores"), len(masks), str(path))
    class_logits = arrays.get("class_logits")
    if class_logits is not None:
        if class_logits.ndim != 2 or len(class_logits) != len(masks):
            raise ValueError(
                f"{path}: class_logits: expected [{len(masks)}, classes], got {class_logits.shape}"
            )
        class_logits = _finite(class_logits, f"{path}: class_logits")
    return Proposals(masks, scores, class_logits)


def _read_annotations(
    annotations: list[dict], row: dict, example: Example, num_proposals: int, where: str
) -> Proposals:
    annotations = [a for a in annotations if not _is_empty(a.get("segmentation"))]
    height, width = example.image.shape[:2]
    polygon_size = _positive(row, "height", height, where), _positive(row, "width", width, where)
    given = [_annotation_score(annotation, where) for annotation in annotations]
    if len({score is None for score in given}) > 1:
        raise ValueError(f"{where}: expected a score in all annotations or in none")
    scores = _check_scores(None if None in given else np.array(given), len(given), where)
    best = np.argsort(-scores, kind="stable")[:num_proposals]
    masks = []
    for i in best:
        place = f"{where}, annotation {i}"
        segmentation = annotations[i].get("segmentation")
        try:
            check_aspect(segmentation_size(segmentation, polygon_size), example, place)
            masks.append(decode_segmentation(segmentation, polygon_size))
            if masks[0].size > height * width:  # larger than the image, which bounds others
                what = f"bytes of {len(best)} masks of {masks[0].shape}"
                check_limit(MAX_UNPACKED_BYTES, masks[0].size * len(best), what)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if where in message else f"{place}: {message}") from error
    return Proposals(_stack(masks, example, where), scores[best])


def _is_empty(segmentation: Any) -> bool:
    """Polygons without a point, as annotation tools leave them: no proposal."""
    return isinstance(segmentation, list) and not any(segmentation)


def _annotations_of_file(path: Path) -> list[dict]:
    content = read_json(path, (dict, list))
    annotations = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise ValueError(f'{path}: expected a list of annotations, or {{"annotations": [...]}}')
    return annotations


def _annotation_score(annotation: dict, where: str) -> float | None:
    """`score` as COCO's results have it, or `predicted_iou` as SAM writes it."""
    score = annotation.get("score", annotation.get("predicted_iou"))
    return None if score is None else _number(score, f"{where}: score")


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or abs(value) > _LARGEST_NUMBER:
        raise ValueError(f"{where}: expected a number, within float32, got {value!r:.80}")
    return float(value)


def _positive(row: dict, name: str, default: int, where: str) -> int:
    value = row.get(name, default)
    if type(value) not in (int, float) or not 0 < value < 2**31 or value != int(value):
        raise ValueError(f"{where}: {name}: expected a positive integer, got {value!r:.80}")
    return int(value)


def _read_png_folder(folder: Path, example: Example, num_proposals: int) -> Proposals:
    paths = sorted(folder.glob("*.png"), key=lambda path: _natural_key(path.name))
    given = _read_scores(folder / "scores.json", paths)
    if given is None:
        given = _read_table_of_sam(folder / _TABLE_OF_SAM, paths)
    scores = _check_scores(given, len(paths), str(folder))
    best = np.argsort(-scores, kind="stable")[:num_proposals]
    masks = []
    for i in best:
        values = _read_png(paths[i], ("1", "L"), "black and white, or 8-bit grey")
        check_aspect(values.shape, example, str(paths[i]))
        masks.append(values.astype(np.uint8) * (255 if values.max() <= 1 else 1))
    return Proposals(_stack(masks, example, str(folder)), scores[best])


def _read_scores(path: Path, png_paths: list[Path]) -> np.ndarray | None:
    if not path.exists():
        return None
    content = read_json(path, object)
    names = [png.name for png in png_paths]
    if isinstance(content, dict) and set(content) == set(names):
        content = [content[name] for name in names]
    numbers = isinstance(content, list) and all(type(score) in (int, float) for score in content)
    if not numbers or len(content) != len(names):
        raise ValueError(
            f"{path}: expected a list of {len(names)} scores in the order of the files, or an "
            "object with a score for the name of each PNG file"
        )
    return np.array([_number(score, str(path)) for score in content], np.float64)


def _read_table_of_sam(path: Path, png_paths: list[Path]) -> np.ndarray | None:
    """The column predicted_iou of what SAM's scripts write beside its masks, 0.png, 1.png, ..."""
    if not path.exists():
        return None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if not {"id", "predicted_iou"} <= set(table.fieldnames or ()):
                logger.warning("%s: no columns id and predicted_iou of SAM; not used", path)
                return None
            scores = {row["id"]: row["predicted_iou"] for row in table}
        return np.array([float(scores[png.stem]) for png in png_paths], np.float64)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{path}: expected id and a number predicted_iou for each of the {len(png_paths)} "
            f"masks 0.png, 1.png, ... beside it ({type(error).__name__}: {error})"
        ) from error


def _natural_key(name: str) -> list[Any]:
    """10.png after 9.png."""
    parts = re.split(r"([0-9]+)", name)
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part for i, part in enumerate(parts)
    ]


def _read_index_map(path: Path, example: Example, num_proposals: int) -> Proposals:
    """One mask per value, 0 included, largest first; the score is the share of the image."""
    values = _read_png(path, ("1", "L", "P", "I", "I;16"), "an index map of one channel")
    check_aspect(values.shape, example, str(path))
    segments, pixels = np.unique(values, return_counts=True)
    best = np.argsort(-pixels, kind="stable")[:num_proposals]
    masks = np.stack([values == segments[i] for i in best])
    return Proposals(masks, (pixels[best] / values.size).astype(np.float32))


def _read_png(path: Path, modes: tuple[str, ...], meaning: str) -> np.ndarray:
    with opened_image(path, None, "a PNG file") as image:
        mode, values = image.mode, np.asarray(image)
    if mode not in modes:
        raise ValueError(f"{path}: expected {meaning} (mode {' or '.join(modes)}), got mode {mode}")
    return values


def _stack(masks: list[np.ndarray], example: Example, where: str) -> np.ndarray:
    if len({mask.shape for mask in masks}) > 1:
        sizes = sorted({mask.shape for mask in masks})
        raise ValueError(f"{where}: expected masks of one size, got {sizes}")
    if not masks:
        return np.zeros((0, *example.image.shape[:2]), bool)
    return np.stack(masks)


def _check_masks(masks: np.ndarray, example: Example, where: str) -> MaskStack:
    """Masks as bool, uint8 or float32, of which the image's aspect is known to be theirs."""
    if masks.ndim != 3:
        raise ValueError(f"{where}: masks: expected [n, h, w], got shape {masks.shape}")
    if len(masks) == 0:
        return np.zeros((0, *example.image.shape[:2]), bool)
    check_aspect(masks.shape[1:], example, where)
    if masks.dtype == bool:
        return masks
    if masks.dtype == np.uint8:
        # Many tools write 0 and 1, of which 255 is never meant to be the scale.
        return masks.astype(bool) if masks.max() <= 1 else masks
    if not np.issubdtype(masks.dtype, np.floating):
        raise ValueError(f"{where}: masks: expected bool, uint8 or float, got {masks.dtype}")
    masks = _finite(masks, f"{where}: masks")
    if masks.min() < 0 or masks.max() > 1:
        raise ValueError(
            f"{where}: masks: expected probabilities in [0, 1], got {masks.min():.4g} to "
            f"{masks.max():.4g}; logits need a sigmoid first"
        )
    return masks


def check_aspect(mask_size: tuple[int, ...], example: Example, where: str) -> None:
    """Refuses masks of another image: their sides must be the image's times one factor.

    Both sides may be rounded up, down or to the nearest.

    Raises:
        ValueError: names both sizes, and begins with `where`.
    """
    image_size = example.image.shape[:2]
    for below, above in ((0, 1), (1, 0), (0.5, 0.5)):
        sides = list(zip(mask_size, image_size, strict=True))
        smallest = max((mask - below) / image for mask, image in sides)
        largest = min((mask + above) / image for mask, image in sides)
        if smallest <= largest and min(mask_size) > 0:
            return
    raise ValueError(
        f"{where}: masks of {mask_size[0]} x {mask_size[1]} (height x width) do not cover the "
        f"image of {image_size[0]} x {image_size[1]}: expected the same ratio of sides; crop "
        "padding away, and resize what was stretched"
    )


def _check_scores(
    scores: np.ndarray | None, num_masks: int, where: str
) -> Float32[np.ndarray, " n"]:
    if scores is None:
        return 1 / np.arange(1, num_masks + 1, dtype=np.float32)
    if scores.shape != (num_masks,):
        raise ValueError(f"{where}: scores: expected [{num_masks}], got shape {scores.shape}")
    return _finite(scores, f"{where}: scores")


def _finite(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{where}: expected numbers, got {values.dtype}")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: expected finite numbers, got NaN or infinity")
    return values
