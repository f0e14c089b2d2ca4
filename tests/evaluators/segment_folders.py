"""Folders in COCO's panoptic format with drawn scenes, and what an evaluation asks of them."""

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

from maft_jax.evaluators.evaluation import Evaluation
from maft_jax.evaluators.segment_evaluation import SegmentEvaluation
from maft_jax.resolved_config import ResolvedConfig
from tests.evaluators.small_evaluations import write_telling_weights

CLASSES = "1\tcat\tthing\n2\tsky\tstuff\n5\tdog\tthing\n"
SIZES = [(96, 128), (128, 96), (96, 96), (96, 128), (128, 128)]


def write_panoptic_folder(folder: pathlib.Path, num_images: int = 5) -> pathlib.Path:
    """Images of boxes on a sky, with crowds and void, and the boxes uncut as COCO's instances."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations/panoptic").mkdir(parents=True)
    images, annotations, instances = [], [], []
    for number in range(num_images):
        height, width = SIZES[number % len(SIZES)]
        ids = np.full((height, width), 1000 + number)
        ids[: height // 6] = 0
        segments = [{"id": 1000 + number, "category_id": 2, "iscrowd": 0}]
        for i in range(4):
            y, x = rng.integers(10, 60, 2).tolist()
            number_of_it = 7 + 300 * i
            ids[y : y + 30, x : x + 30] = number_of_it
            instances.append(instance_row(number, len(instances) + 1, i, (y, x), (height, width)))
            segments.append(
                {"id": number_of_it, "category_id": [1, 5][i % 2], "iscrowd": int(i == 3)}
            )
        segments = [segment for segment in segments if (ids == segment["id"]).any()]
        pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"annotations/panoptic/{number}.png")
        colors = np.stack([ids % 251, ids * 7 % 251, ids * 13 % 251], axis=-1)
        Image.fromarray(colors.astype(np.uint8)).save(folder / f"images/{number}.png")
        name = {"file_name": f"{number}.png", "height": height, "width": width}
        images.append({"id": number, **name})
        annotations.append(
            {"image_id": number, "file_name": f"{number}.png", "segments_info": segments}
        )
    categories = [{"id": i, "name": n} for i, n in ((1, "cat"), (2, "sky"), (5, "dog"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations/panoptic.json").write_text(json.dumps(content))
    images = [image | {"id": 100 - image["id"]} for image in images]
    content |= {"images": images, "annotations": instances}
    (folder / "annotations/instances.json").write_text(json.dumps(content))
    (folder / "classes.txt").write_text(CLASSES)
    return folder


def instance_row(image: int, number: int, i: int, corner, size) -> dict:
    """The whole box, of an area that is not that of its pixels; a crowd in run lengths."""
    (y, x), (height, width) = corner, size
    bottom, right = min(y + 30, height), min(x + 30, width)
    corners = [x, y, right, y, right, bottom, x, bottom]
    row = {"id": number, "image_id": 100 - image, "category_id": [1, 5][i % 2]}
    row |= {"iscrowd": int(i == 3), "area": [950.0, 1100.5][number % 2], "segmentation": [corners]}
    if i == 3:
        mask = np.zeros((height, width), bool)
        mask[y:bottom, x:right] = True
        edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=False))
        counts = np.diff(edges, prepend=0, append=mask.size).tolist()
        row["segmentation"] = {"size": [height, width], "counts": counts}
    return row


def segment_settings(folder: pathlib.Path, num_images: int = 5) -> dict:
    """Settings that point to weights, such a folder and an empty cache."""
    write_panoptic_folder(folder / "data", num_images)
    return {
        "model.pretrained": str(write_telling_weights(folder / "clip.safetensors")),
        "evaluation.roots.folder": str(folder / "data"),
        "data.annotations": "annotations/panoptic.json",
        "data.cache_dir": str(folder / "cache"),
        "proposals.generator": "ground_truth",
        "proposals.num_proposals": 8,
        "evaluation.short_side": 96,
        "evaluation.task": "panoptic",
        "evaluation.segment_rules": "fcclip",
    }


def of_task(task: str, evaluation: Evaluation, config: ResolvedConfig) -> SegmentEvaluation:
    """Evaluates segments or objects, with what `evaluation` has set up."""
    section = dataclasses.replace(config.evaluation, task=task)
    return SegmentEvaluation(evaluation, dataclasses.replace(config, evaluation=section))


def written_files(folder: pathlib.Path) -> dict[str, bytes]:
    """Those of results, by name."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    written = (path for path in paths if "_results" in str(path) or "_pictures" in str(path))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in written}
