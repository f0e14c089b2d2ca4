"""What the page's buttons do, without gradio: names and a picture in, a viewer's data out."""

import dataclasses
import functools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from input_pipeline.examples import PreparedExample
from input_pipeline.sample_folder import draw_scene
from maft_jax.inference.clip import Clip
from maft_jax.inference.files import draw, encode_json, encode_labels
from maft_jax.inference.object_description import describe_objects
from maft_jax.inference.segment_masks import ObjectResult
from maft_jax.inference.segment_rules import RULES, find_things
from maft_jax.inference.segmentation import ImageSegmenter, Segmentation
from maft_jax.inference.vocabulary import (
    check_names,
    read_names,
    read_pasted_list,
    things_of_list,
)
from maft_jax.proposals.generator import ProposalGenerator

TASKS = ("semantic", "panoptic", "instance")
_RULES = dataclasses.replace(RULES["maft_plus"], instance_threshold=0.5)
"""Of instances; each proposal is one of several classes, most of them at low scores."""
_KEPT = 4
"""Vocabularies whose embeddings, and pictures whose proposals, stay in memory."""
_RESULTS_KEPT = 32
"""Folders of downloads that stay on the disk."""
_EXAMPLE_SIZE = (480, 360)
_EXAMPLE_SEEDS = ((7, 23), (7, 3), (7, 5), (7, 2))


@dataclass(frozen=True, eq=False)
class Result:
    """One picture with its classes or objects."""

    segmentation: Segmentation | ObjectResult
    name: str
    """Of the picture's file, without its ending."""
    seconds: float


class PageSession:
    """Segments for the page, one picture at a time.

    Text embeddings and proposals are kept, so that another picture with the same names, or other
    names for the same picture, costs only what is new.

    Args:
        folder: for examples and downloads, of which the newest few stay.
        generator_of: makes what makes the proposals, of all names; by default superpixels.
    """

    def __init__(
        self,
        clip: Clip,
        folder: str | os.PathLike,
        generator_of: Callable[[Sequence[str]], ProposalGenerator] | None = None,
    ):
        self.folder = Path(folder)
        # On the device once, not once for each vocabulary.
        visual = jax.device_put(clip.parameters["visual"])
        clip = dataclasses.replace(clip, parameters=clip.parameters | {"visual": visual})
        make_segmenter = functools.partial(_make_segmenter, clip, generator_of)
        self._segmenter = functools.lru_cache(_KEPT)(make_segmenter)
        self._prepared: dict[Hashable, PreparedExample] = {}
        self._one_at_a_time = threading.Lock()

    def segment(
        self,
        picture: str | None,
        classes: str | None,
        background: str | None,
        num_proposals: int,
        task: str = TASKS[0],
        things: str | None = None,
    ) -> Result:
        """Segments the file `picture` with the names of `read_classes` and `read_field`.

        Args:
            task: one of TASKS.
            things: of panoptic and instance: names of the classes with countable objects; where it
                is empty, those of a list that says it, else all.

        Raises:
            ValueError: there is no picture or it cannot be read, or the names cannot be used.
        """
        if not picture:
            raise ValueError("There is no picture yet: drop one, or click on an example.")
        if task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
        names, synonyms = read_classes(classes or "")
        others = read_field(background or "", "background")
        if not names:
            raise ValueError("There are no classes yet: type names with commas between them.")
        given = read_field(things or "", "things")
        of_task = find_things(given, names) if given else things_of_list(classes or "")
        with self._one_at_a_time:
            start = time.monotonic()
            segmenter = self._segmenter(names, others, num_proposals, tuple(synonyms.items()))
            prepared = self._prepare(segmenter, picture)
            if task == "semantic":
                segmentation = segmenter.segment_prepared(prepared)
            elif task == "panoptic":
                segmentation = segmenter.panoptic(prepared, things=of_task)
            else:
                segmentation = segmenter.instances(prepared, things=of_task, rules=_RULES)
            return Result(segmentation, Path(picture).stem, time.monotonic() - start)

    def write_overlay(self, result: Result | None, opacity: float) -> str:
        """Path of a PNG file in a new folder; ValueError where there is no result."""
        path = self._new_path(result, "overlay.png")
        Image.fromarray(draw(result.segmentation, opacity)).save(path)
        return str(path)

    def write_labels(self, result: Result | None) -> str:
        """Path of a file in a new folder: the label map as PNG, or objects as JSON.

        `encode_labels` says what the PNG's values are, `describe_objects` what the JSON has.

        Raises:
            ValueError: there is no result.
        """
        if result is not None and not isinstance(result.segmentation, Segmentation):
            path = self._new_path(result, "objects.json")
            path.write_bytes(encode_json(describe_objects(result.segmentation)))
            return str(path)
        path = self._new_path(result, "labels.png")
        path.write_bytes(encode_labels(result.segmentation))
        return str(path)

    def draw_examples(self) -> list[str]:
        """Paths of a few pictures of input_pipeline/sample_folder.py."""
        folder = self.folder / "examples"
        folder.mkdir(parents=True)
        paths = []
        for number, seed in enumerate(_EXAMPLE_SEEDS, start=1):
            picture, _ = draw_scene(np.random.default_rng(seed), _EXAMPLE_SIZE)
            paths.append(str(folder / f"example_{number}.png"))
            picture.save(paths[-1])
        return paths

    def _prepare(self, segmenter: ImageSegmenter, picture: str) -> PreparedExample:
        """The picture with its proposals, which other names share if they share the generator."""
        key = (picture, segmenter.num_proposals, segmenter.generator)
        try:
            prepared = self._prepared.pop(key, None) or segmenter.prepare(picture)
        except ValueError as error:  # names a folder that nobody knows
            raise ValueError(str(error).replace(picture, Path(picture).name)) from error
        self._prepared[key] = prepared
        if len(self._prepared) > _KEPT:
            del self._prepared[next(iter(self._prepared))]
        return prepared

    def _new_path(self, result: Result | None, what: str) -> Path:
        if result is None:
            raise ValueError("There is no result yet: segment a picture first.")
        parent = self.folder / "results"
        parent.mkdir(parents=True, exist_ok=True)
        oldest_first = sorted(parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in oldest_first[: 1 - _RESULTS_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=parent)) / f"{result.name}_{what}"


def read_field(text: str, what: str) -> tuple[str, ...]:
    """The names of a text field: one a line, or `vocabulary.read_names` of its only line.

    An empty field has none. Raises ValueError where a name is empty or comes twice.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ()
    return read_names(lines[0], what) if len(lines) == 1 else check_names(lines, what)


def read_classes(text: str) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """`read_field`, and further names of classes where the lines are `number:name,synonym`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (
        read_pasted_list(lines, "classes") if len(lines) > 1 else (read_field(text, "classes"), {})
    )


def _make_segmenter(clip: Clip, generator_of, names, others, num_proposals, synonyms=()):
    return ImageSegmenter(
        clip,
        names,
        background=others,
        synonyms=dict(synonyms),
        generator=generator_of((*names, *others)) if generator_of else None,
        num_proposals=num_proposals,
    )
