"""Pictures with captions in memory: what the tiny CLIP is trained on, and quizzed with."""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from input_pipeline.permutation import example_index
from input_pipeline.shapes_world.captions import Caption, describe
from input_pipeline.shapes_world.scenes import draw_scene
from maft_jax.models.text.tokenizer import tokenize
from maft_jax.proposals.worker_processes import run_tasks

_CAPTIONS_PER_PICTURE = 4
_TRAINING_SEED, _QUIZ_SEED = 1_000_000, 2_000_000
"""Added to the seed, apart from all worlds that pictures with label maps are drawn from."""
_CHUNK = 100
_SECONDS_BETWEEN_REPORTS = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionPairs:
    """Pictures, several tokenized captions of each, and a number for what each shows."""

    images: UInt8[np.ndarray, "n h w 3"]
    tokens: Int32[np.ndarray, "n captions length"]
    """No longer than the longest caption: the text tower is causal, so that padding is not read."""
    content: Int32[np.ndarray, "n captions"]
    """Equal where captions name the same things, whatever their words and pictures."""

    def batch(
        self, step: int, batch_size: int, seed: int, num_captions: int = 1
    ) -> dict[str, np.ndarray]:
        """Batch number `step` (from 0) of the endless stream of this seed; some pictures mirrored.

        Keys are images and, of `num_captions` different captions of each, tokens [k, b, length]
        and content [k, b].
        """
        positions = step * batch_size + np.arange(batch_size)
        chosen = example_index(positions, len(self.images), seed)
        rng = np.random.RandomState([seed, step])
        mirrored: Bool[np.ndarray, " b"] = rng.randint(2, size=batch_size).astype(bool)
        images = self.images[chosen]
        images[mirrored] = images[mirrored, :, ::-1]
        first = rng.randint(self.tokens.shape[1], size=batch_size)
        wording = (first + np.arange(num_captions)[:, None]) % self.tokens.shape[1]
        return {
            "images": images,
            "tokens": self.tokens[chosen, wording],
            "content": self.content[chosen, wording],
        }


@dataclass(frozen=True)
class Quiz:
    """Pictures of one object on a background, to see whether CLIP knows the names."""

    images: UInt8[np.ndarray, "n h w 3"]
    objects: Int32[np.ndarray, " n"]
    """Class ids."""


def draw_pairs(num_pictures: int, seed: int) -> CaptionPairs:
    """Draws training pictures and writes their captions, on all cores."""
    drawn = list(_drawn(_draw_pair, seed + _TRAINING_SEED, num_pictures))
    captions = [caption for _, captions in drawn for caption in captions]
    tokens = tokenize([caption.text for caption in captions])
    longest = int((tokens != 0).sum(axis=1).max())
    numbers: dict[tuple[int, ...], int] = {}
    content = [numbers.setdefault(caption.class_ids, len(numbers)) for caption in captions]
    return CaptionPairs(
        np.stack([image for image, _ in drawn]),
        tokens[:, :longest].reshape(num_pictures, _CAPTIONS_PER_PICTURE, longest),
        np.array(content, np.int32).reshape(num_pictures, _CAPTIONS_PER_PICTURE),
    )


def draw_quiz(num_pictures: int, seed: int) -> Quiz:
    """Draws pictures that no CLIP of this seed is trained on."""
    scenes = [draw_scene(seed + _QUIZ_SEED, number, 1) for number in range(num_pictures)]
    return Quiz(
        np.stack([scene.image for scene in scenes]),
        np.array([scene.objects[0][0] for scene in scenes], np.int32),
    )


def _draw_pair(seed: int, number: int) -> tuple[UInt8[np.ndarray, "h w 3"], list[Caption]]:
    scene = draw_scene(seed, number)
    rng = np.random.RandomState([seed, number, 1])
    return scene.image, [describe(scene, rng) for _ in range(_CAPTIONS_PER_PICTURE)]


def _drawn(draw: Callable, seed: int, count: int) -> Iterator:
    """What `draw(seed, number)` gives for every number, in order, with progress."""
    started = reported = time.monotonic()

    def report(done: int) -> None:
        nonlocal reported
        now = time.monotonic()
        if done and now - reported > _SECONDS_BETWEEN_REPORTS:
            left = (now - started) / done * (count - done)
            logger.info("drawn %d of %d pictures, %.0f s left", done, count, left)
            reported = now

    starts = range(0, count, _CHUNK)
    work = functools.partial(_draw_chunk, functools.partial(draw, seed), count)
    with contextlib.closing(run_tasks(work, starts, os.cpu_count() or 1, report)) as results:
        chunks = dict(results)
    for start in starts:
        yield from chunks[start]


def _draw_chunk(draw: Callable, count: int, start: int, on_picture: Callable[[], None]) -> list:
    chunk = []
    for number in range(start, min(start + _CHUNK, count)):
        chunk.append(draw(number))
        on_picture()
    return chunk
