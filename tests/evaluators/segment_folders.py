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
    """Images of boxes on a sky, with crowds and void."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations/panoptic").mkdir(parents=True)
    images, annotations = [], []
    for number in range(num_images):
        height, width = SIZES[number % len(SIZES)]
        ids = np.full((height, width), 1000 + number)
        ids[: height // 6] = 0
        segments = [{"id": 1000 + number, "category_id": 2, "iscrowd": 0}]
        for i in range(4):
            y, x = rng.integers(10, 60, 2)
            number_of_it = 7 + 300 * i
            ids[y : y + 30, x : x + 30] = number_of_it
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
    (folder / "classes.txt").write_text(CLASSES)
    return folder


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
