"""Captions of scenes, as people would write them: some of what is there, in any order."""

from dataclasses import dataclass

import numpy as np

from input_pipeline.shapes_world.scenes import Scene
from input_pipeline.shapes_world.vocabulary import CLASS_NAMES

_SENTENCES = (
    "a photo of {}.",
    "This is a photo of {}",
    "There is {} in the scene",
    "a photo of {} in the scene",
)
_SIZES = ((24, "small"), (31, "medium"), (1000, "large"))
"""Largest radius in pixels, and the word for it."""
_NAMES_SIZE = 4
"""One object in this many is described with its size."""


@dataclass(frozen=True)
class Caption:
    """A sentence, and the class ids of what it names, ascending."""

    text: str
    class_ids: tuple[int, ...]


def describe(scene: Scene, rng: np.random.RandomState) -> Caption:
    """One sentence that names some of the things in the scene, or all; each number is as likely.

    It follows that the same words fit other pictures, as captions from the web do.
    """
    radii = dict(scene.objects)
    things = [*radii, *scene.backgrounds]
    chosen = rng.permutation(len(things))[: 1 + rng.randint(len(things))]
    named = [things[index] for index in chosen]
    words = [_words(class_id, radii.get(class_id), rng) for class_id in named]
    listed = ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]
    text = _SENTENCES[rng.randint(len(_SENTENCES))].format(listed)
    return Caption(text, tuple(sorted(named)))


def _words(class_id: int, radius: int | None, rng: np.random.RandomState) -> str:
    """`radius` is None for backgrounds."""
    name = CLASS_NAMES[class_id]
    if radius is None:
        return name
    if rng.randint(_NAMES_SIZE):
        return f"a {name}"
    return f"a {next(word for most, word in _SIZES if radius <= most)} {name}"
