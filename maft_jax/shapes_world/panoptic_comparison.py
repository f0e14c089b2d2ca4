"""Panoptic quality of the frozen and the tuned CLIP on the same masks of a world, and pictures."""

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from scipy.ndimage import find_objects

from input_pipeline.dataset_specs import SPECS
from input_pipeline.examples import Example
from input_pipeline.shapes_world.scenes import Scene
from input_pipeline.shapes_world.splits import draw_split
from maft_jax.config import Config
from maft_jax.evaluators.panoptic_quality import (
    LabelledSegments,
    PanopticMetrics,
    PanopticTotal,
    count_segments,
    panoptic_metrics,
)
from maft_jax.inference.clip import load
from maft_jax.inference.object_overlay import object_overlay
from maft_jax.inference.segmentation import ImageSegmenter
from maft_jax.inference.segments import PanopticSegmentation, Segment
from maft_jax.pictures.sheets import write_text
from maft_jax.proposals.generators import make_generator
from maft_jax.proposals.kept_proposals import keep_best
from maft_jax.runtime import stop_requests
from maft_jax.runtime.atomic_files import atomic_write_bytes, save_picture
from maft_jax.runtime.json_files import read_json
from maft_jax.runtime.tree_rules import fingerprint

NUMBERS, PICTURE = "panoptic.json", "panoptic.png"
COLUMNS = ("image", "objects", "frozen", "tuned")
_NUM_IMAGES = 100
_NUM_PICTURES = 4
_SHOWN_SIZE, _GAP, _TITLE_HEIGHT, _TITLE_BACKGROUND = 300, 4, 22, 40
_OPACITY = 0.75
_SPEC = SPECS["shapes_world"]
_THINGS = frozenset(_SPEC.thing_ids)

logger = logging.getLogger(__name__)


def compare_panoptic(config: Config, workdir: pathlib.Path) -> str:
    """Writes NUMBERS and PICTURE of the first validation scenes into `workdir`; returns a table.

    Both towers classify the same masks, those of `config.proposals`. What an earlier call found
    with the same weights is not computed again.

    Args:
        config: of the run in `workdir`, on the world of seed `config.seed`.

    Raises:
        Stopped: a signal came; nothing is written.
    """
    masking = {
        "mask_start_layer": config.model.mask_start_layer,
        "image_size": config.model.image_size,
    }
    clips = {"frozen": load(config.model.pretrained, **masking), "tuned": load(workdir)}
    identity = {name: fingerprint(clip.parameters) for name, clip in clips.items()}
    identity |= {"num_images": _NUM_IMAGES}
    kept = read_json(workdir / NUMBERS) if (workdir / NUMBERS).exists() else {}
    if kept.get("of") != identity:
        logger.info("looking for objects in %d pictures", _NUM_IMAGES)
        names = _SPEC.classes.names
        segmenters = {
            name: ImageSegmenter(clip, names, num_proposals=config.proposals.num_proposals)
            for name, clip in clips.items()
        }
        numbers = _measure(config, segmenters, workdir)
        kept = {"of": identity, "pq": numbers}
        content = json.dumps(kept, indent=1, allow_nan=False).encode() + b"\n"
        atomic_write_bytes(epath.Path(workdir / NUMBERS), content)
    return _table(kept["pq"])


def _measure(
    config: Config, segmenters: Mapping[str, ImageSegmenter], workdir: pathlib.Path
) -> dict[str, dict[str, float | None]]:
    names = _SPEC.classes.names
    generator = make_generator(config.proposals, names)
    totals = {name: PanopticTotal(len(names)) for name in segmenters}
    rows = []
    for drawn in draw_split(config.seed, "val", _NUM_IMAGES):
        stop_requests.check()
        truth, scene = true_objects(drawn.scene), drawn.scene
        example = Example(drawn.example_id, scene.image, scene.label_map.astype(np.int32))
        most = config.proposals.num_proposals
        masks = keep_best(generator(example, most), scene.image.shape[:2], most).masks
        there = LabelledSegments.of(truth.segment_map, truth.segments)
        found = {}
        for name, segmenter in segmenters.items():
            found[name] = segmenter.panoptic(scene.image, masks, things=_THINGS)
            predicted = LabelledSegments.of(found[name].segment_map, found[name].segments)
            totals[name].add(count_segments(predicted, there, len(names)))
        if len(rows) < _NUM_PICTURES:
            rows.append([scene.image, truth, *found.values()])
    save_picture(epath.Path(workdir / PICTURE), draw_rows(rows))
    unseen = [names.index(name) for name in config.data.unseen_classes]
    return {
        name: _numbers(panoptic_metrics(total.counts, _THINGS, unseen))
        for name, total in totals.items()
    }


def true_objects(scene: Scene) -> PanopticSegmentation:
    """What is in a scene: each object, and each background."""
    backgrounds = np.unique(scene.label_map[scene.instance_map == 0])
    segment_map = scene.instance_map.astype(np.int32)
    for number, index in enumerate(backgrounds, start=len(scene.objects) + 1):
        segment_map[(scene.instance_map == 0) & (scene.label_map == index)] = number
    classes = [index for index, _ in scene.objects] + backgrounds.tolist()
    segments = []
    for number, (index, place) in enumerate(
        zip(classes, find_objects(segment_map, max_label=len(classes)), strict=True), start=1
    ):
        rows, columns = place
        box = columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
        name, pixels = _SPEC.classes.names[index], int((segment_map == number).sum())
        segments.append(Segment(number, index, name, index in _THINGS, 1.0, pixels, box))
    names = _SPEC.classes.names
    return PanopticSegmentation(scene.image, names, _THINGS, segment_map, tuple(segments))


def draw_rows(
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"] | PanopticSegmentation]],
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Pictures and results, a row of COLUMNS for each scene, below their titles."""
    band = np.full((_TITLE_HEIGHT, _SHOWN_SIZE, 3), _TITLE_BACKGROUND, np.uint8)
    middle = (_SHOWN_SIZE // 2, _TITLE_HEIGHT // 2)
    lines = [[write_text(band, {title: middle}) for title in COLUMNS]]
    for image, *results in rows:
        nothing = PanopticSegmentation(
            image, (), frozenset(), np.zeros(image.shape[:2], np.int32), ()
        )
        lines.append(
            [
                object_overlay(result, _OPACITY, legend=False, long_side=_SHOWN_SIZE)
                for result in (nothing, *results)
            ]
        )
    return _joined([_joined(line, axis=1) for line in lines], axis=0)


def _joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    gap = np.full_like(np.take(parts[0], range(_GAP), axis=axis), 255)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=axis)


def _numbers(metrics: PanopticMetrics) -> dict[str, float | None]:
    """PQ by part; None of a part of which there is no segment."""
    parts = ("every", "things", "stuff", "seen", "unseen")
    found = {part: getattr(metrics, part) for part in parts}
    return {part: quality.pq if quality.num_classes else None for part, quality in found.items()}


def _table(numbers: Mapping[str, Mapping[str, float | None]]) -> str:
    parts = list(numbers["frozen"])
    lines = [f"panoptic quality of {_NUM_IMAGES} pictures, {PICTURE} shows {_NUM_PICTURES}"]
    lines.append(" " * 8 + "".join(f"{part:>8}" for part in ("all", *parts[1:])))
    for name, values in numbers.items():
        shown = ["-" if values[part] is None else f"{100 * values[part]:.2f}" for part in parts]
        lines.append(f"{name:<8}" + "".join(f"{text:>8}" for text in shown))
    return "\n".join(lines)
