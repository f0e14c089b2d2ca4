import re

import numpy as np
import pytest

from input_pipeline.shapes_world.captions import describe
from input_pipeline.shapes_world.scenes import Scene, draw_scene
from input_pipeline.shapes_world.vocabulary import CLASS_NAMES, OBJECTS
from maft_jax.models.text.tokenizer import tokenize

FRAME = re.compile(
    r"a photo of (.*) in the scene|a photo of (.*)\.|This is a photo of (.*)|"
    r"There is (.*) in the scene"
)
THING = re.compile(r"(?:a (?:(small|medium|large) )?)?(.+)")


@pytest.fixture(scope="module")
def captioned():
    drawn = [(number, draw_scene(2, number)) for number in range(150)]
    return [(scene, describe(scene, np.random.RandomState(number))) for number, scene in drawn]


def things_of(text):
    """(size or None, name) of everything that a caption names."""
    listed = next(group for group in FRAME.fullmatch(text).groups() if group is not None)
    return [THING.fullmatch(words).groups() for words in re.split(", | and ", listed)]


def test_text_names_its_class_ids_once_each(captioned):
    for scene, caption in captioned:
        named = [CLASS_NAMES.index(name) for _, name in things_of(caption.text)]
        assert tuple(sorted(named)) == caption.class_ids
        assert len(set(named)) == len(named) > 0
        assert set(named) <= {c for c, _ in scene.objects} | set(scene.backgrounds)


def test_objects_have_an_article_and_sometimes_their_size_and_backgrounds_none(captioned):
    num_sizes = num_objects = 0
    for scene, caption in captioned:
        for size, name in things_of(caption.text):
            if name not in OBJECTS:
                assert size is None and f"a {name}" not in caption.text
                continue
            num_objects += 1
            num_sizes += size is not None
            assert f"a {size} {name}" in caption.text or f"a {name}" in caption.text
            words = {size_of(r) for c, r in scene.objects if CLASS_NAMES[c] == name}
            assert size is None or size in words
    assert 0.15 < num_sizes / num_objects < 0.35


def size_of(radius):
    return "small" if radius <= 24 else "medium" if radius <= 31 else "large"


def test_captions_of_one_scene_name_from_one_thing_to_all_in_any_order():
    scenes = (draw_scene(0, number) for number in range(50))
    scene = next(scene for scene in scenes if len({c for c, _ in scene.objects}) == 3)
    rng = np.random.RandomState(0)
    captions = [describe(scene, rng) for _ in range(400)]
    things = len(scene.objects) + len(scene.backgrounds)
    counts = np.bincount([len(caption.class_ids) for caption in captions], minlength=things + 1)
    assert counts[0] == 0 and counts[1:].min() > 50
    assert len({tuple(name for _, name in things_of(c.text)) for c in captions}) > 30


def test_a_caption_follows_from_the_random_numbers_alone():
    scene = draw_scene(0, 0)
    texts = [describe(scene, np.random.RandomState([1, 2, 1])).text for _ in range(2)]
    assert texts[0] == texts[1]


def test_captions_fit_into_the_context_of_clip(captioned):
    tokenize([caption.text for _, caption in captioned])
    longest = [CLASS_NAMES.index(f"speckled {color} shape") for color in ("red", "blue", "white")]
    fullest = Scene(
        image=np.zeros((2, 2, 3), np.uint8),
        label_map=np.zeros((2, 2), np.uint8),
        instance_map=np.zeros((2, 2), np.uint8),
        objects=tuple((class_id, 30) for class_id in longest),
        backgrounds=(36, 37),
    )
    rng = np.random.RandomState(0)
    tokens = tokenize([describe(fullest, rng).text for _ in range(200)])
    assert (tokens != 0).sum(axis=1).max() <= 40
