import hashlib
from itertools import combinations

import numpy as np
import pytest

from input_pipeline.shapes_world import scenes
from input_pipeline.shapes_world.scenes import SIZE, draw_scene
from input_pipeline.shapes_world.vocabulary import BACKGROUNDS, CLASS_NAMES, OBJECTS

# SHA-256 of the bytes of image and label map. The weights in the repository, and what is measured
# with them, are of a world with these pixels.
DIGESTS = {
    (0, 0): "0d72a9a4040ae0145d1521b2c6d68e1bb1472fac65305737effb6856ebc524f4",
    (0, 1): "6cb0ee0abdfea193938c433da558d1a30f7582ae85b619d82a83c774a1ccc3c0",
    (0, 1_000_000): "c3885110986c325a5b8ad55b118560a46b1bd7881c59b1487320b32d12b07f10",
    (3, 17): "3c8fb63efc880d3fb5701a990b03947395db0b76db928efa5f0599f69e1fe757",
    (2**32 - 1, 5): "c09a2ab460346eb6358dc86ba9a87d669d6305591983712d5c5a53e94aa96491",
}
DOMINANT = {"red": [0], "green": [1], "blue": [2], "yellow": [0, 1]}
"""Channels in which a coloured object is brighter than in the others."""


@pytest.fixture(scope="module")
def many():
    return [draw_scene(0, number) for number in range(300)]


@pytest.mark.parametrize(("seed", "number"), DIGESTS)
def test_every_machine_draws_these_pixels(seed, number):
    scene = draw_scene(seed, number)
    assert scene.image.dtype == scene.label_map.dtype == np.uint8
    assert scene.image.shape == (SIZE, SIZE, 3) and scene.label_map.shape == (SIZE, SIZE)
    content = scene.image.tobytes() + scene.label_map.tobytes()
    assert hashlib.sha256(content).hexdigest() == DIGESTS[seed, number]


def test_digests_of_one_scene_are_of_what_it_says_it_shows():
    scene = draw_scene(0, 0)
    named = [(CLASS_NAMES[class_id], radius) for class_id, radius in scene.objects]
    assert named == [("yellow cross", 18), ("blue triangle", 30)]
    assert [CLASS_NAMES[class_id] for class_id in scene.backgrounds] == ["water"]


def test_scenes_of_other_numbers_and_seeds_are_others(many):
    drawn = [*many, *(draw_scene(1, number) for number in range(50))]
    assert len({scene.image.tobytes() for scene in drawn}) == 350
    assert len({scene.label_map.tobytes() for scene in drawn}) == 350


def test_every_class_is_in_several_of_300_scenes(many):
    present = np.array([np.bincount(s.label_map.ravel(), minlength=42) > 0 for s in many])
    assert present.shape == (300, 42)
    assert present.sum(axis=0).min() >= 5


def test_label_map_holds_what_the_scene_names_and_nothing_else(many):
    for scene in many:
        named = {class_id for class_id, _ in scene.objects} | set(scene.backgrounds)
        assert set(np.unique(scene.label_map)) == named
        assert all(class_id < len(OBJECTS) for class_id, _ in scene.objects)
        assert all(class_id >= len(OBJECTS) for class_id in scene.backgrounds)


def test_numbers_of_objects_and_backgrounds_vary_as_promised(many):
    counts = np.bincount([len(scene.objects) for scene in many], minlength=4) / len(many)
    np.testing.assert_allclose(counts, [0, 0.2, 0.4, 0.4], atol=0.08)
    assert 0.4 < np.mean([len(scene.backgrounds) == 2 for scene in many]) < 0.6
    radii = [radius for scene in many for _, radius in scene.objects]
    assert (min(radii), max(radii)) == (18, 38)


def test_no_background_of_a_scene_is_all_but_hidden(many):
    for scene in many:
        areas = np.bincount(scene.label_map.ravel(), minlength=42)
        assert areas[list(scene.backgrounds)].min() > 0.1 * SIZE**2


def test_at_least_half_of_every_object_is_visible(monkeypatch):
    attempts = []

    def recorded(rng):
        attempts.append(draw_object(rng))
        return attempts[-1]

    draw_object = scenes._draw_object
    monkeypatch.setattr(scenes, "_draw_object", recorded)
    num_refused = 0
    for number in range(150):
        attempts.clear()
        scene = draw_scene(4, number)
        accepted = accepted_of(attempts, scene)
        num_refused += len(attempts) - len(accepted)
        for index, (_, _, inside, _) in enumerate(accepted):
            later = [other for _, _, other, _ in accepted[index + 1 :]]
            visible = inside & ~np.any([np.zeros_like(inside), *later], axis=0)
            assert visible.sum() >= 0.5 * inside.sum() > 0
    assert num_refused > 10


def accepted_of(attempts, scene):
    """Those of the objects that make the labels of the scene when painted one after another."""
    for chosen in combinations(attempts, len(scene.objects)):
        labels = scene.label_map.copy()
        for class_id, _, inside, _ in chosen:
            labels[inside] = class_id
        if tuple((c, r) for c, r, _, _ in chosen) == scene.objects and np.array_equal(
            labels, scene.label_map
        ):
            return chosen
    raise AssertionError("no choice of objects makes this label map")


def test_coloured_objects_have_their_colour_and_patterned_ones_two(many):
    for scene in many:
        for class_id, _ in scene.objects:
            appearance = CLASS_NAMES[class_id].split()[0]
            pixels = scene.image[scene.label_map == class_id].astype(float)
            single = sum(other == class_id for other, _ in scene.objects) == 1
            if appearance in DOMINANT:
                channels = DOMINANT[appearance]
                mean = pixels.mean(axis=0)
                assert mean[channels].min() > np.delete(mean, channels).max() + 30
                assert not single or pixels.std(axis=0).max() < 30
            else:
                assert pixels.std(axis=0).max() > 40


def test_at_most_the_asked_number_of_objects_is_drawn():
    for number in range(20):
        assert len(draw_scene(0, number, max_objects=1).objects) == 1
        assert draw_scene(0, number, max_objects=0).objects == ()


def test_every_background_looks_the_same_wherever_its_label_is():
    """Mean colours of the textures, over many scenes, are apart from one another."""
    means = {name: [] for name in BACKGROUNDS}
    for number in range(150):
        scene = draw_scene(0, number, max_objects=0)
        for class_id in scene.backgrounds:
            pixels = scene.image[scene.label_map == class_id]
            means[CLASS_NAMES[class_id]].append(pixels.mean(axis=0))
    centers = np.array([np.mean(values, axis=0) for values in means.values()])
    for index, values in enumerate(means.values()):
        distances = np.linalg.norm(np.array(values)[:, None] - centers, axis=-1)
        assert (distances.argmin(axis=1) == index).mean() > 0.9
