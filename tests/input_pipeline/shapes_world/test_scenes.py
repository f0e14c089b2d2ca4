import hashlib
from itertools import combinations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from skimage.color import rgb2hsv

from input_pipeline.shapes_world import scenes
from input_pipeline.shapes_world.scenes import SIZE, draw_scene
from input_pipeline.shapes_world.vocabulary import BACKGROUNDS, CLASS_NAMES, OBJECTS

pytestmark = pytest.mark.slow

# SHA-256 of the bytes of image and label map. The weights in the repository, and what is measured
# with them, are of a world with these pixels.
DIGESTS = {
    (0, 0): "30e7b29efa5b21920604f05f15cbe857cec97be5a716254f1a5a384448335427",
    (0, 1): "e9732fa0a1383e866174e6fa6962384f26942c4bb0dd93d8cfce78001a40507f",
    (0, 1_000_000): "4c1d3be0c9f7062239c6c761b4f8709547d43a96446a5fe24b768d03e8884c99",
    (3, 17): "cd76418e07d434628503c11ef41704afc64ffa8adf9d22ce59cda8ec47494bad",
    (2**32 - 1, 5): "2d5ca7cdcc29ffe313d5fc08820b4d4a2c19ab0554f01f248bf5953a16801ebd",
}
HUES = {"red": 0, "yellow": 50, "green": 130, "blue": 230, "purple": 285}
"""In degrees."""
INNER = np.pad(np.ones((SIZE - 8, SIZE - 8), bool), 4)
"""Pixels that are not at the edge of the picture."""


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
    assert named == [("checked purple shape", 41), ("checked purple shape", 31)]
    assert [CLASS_NAMES[class_id] for class_id in scene.backgrounds] == ["water", "stone"]


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
    np.testing.assert_allclose(counts, [0, 0.4, 0.4, 0.2], atol=0.08)
    assert 0.4 < np.mean([len(scene.backgrounds) == 2 for scene in many]) < 0.6
    radii = [radius for scene in many for _, radius in scene.objects]
    assert (min(radii), max(radii)) == (22, 42)


def test_no_background_of_a_scene_is_all_but_hidden(many):
    for scene in many:
        areas = np.bincount(scene.label_map.ravel(), minlength=42)
        assert areas[list(scene.backgrounds)].min() > 0.1 * SIZE**2


def test_at_least_60_percent_of_every_object_is_visible(monkeypatch):
    attempts = []

    def recorded(rng):
        attempts.append(draw_object(rng))
        return attempts[-1]

    draw_object = scenes._draw_object
    monkeypatch.setattr(scenes, "_draw_object", recorded)
    num_refused, visible = 0, []
    for number in range(150):
        attempts.clear()
        scene = draw_scene(4, number)
        accepted = accepted_of(attempts, scene)
        num_refused += len(attempts) - len(accepted)
        for index, new in enumerate(accepted):
            later = [other.inside for other in accepted[index + 1 :]]
            left = new.inside & ~np.any([np.zeros_like(new.inside), *later], axis=0)
            visible.append(left.sum() / new.inside.sum())
    assert min(visible) >= 0.6 and sum(share < 0.8 for share in visible) > 5
    assert num_refused > 10


def accepted_of(attempts, scene):
    """Those of the objects that make the labels of the scene when painted one after another."""
    for chosen in combinations(attempts, len(scene.objects)):
        labels = scene.label_map.copy()
        for new in chosen:
            labels[new.inside] = new.class_id
        if tuple((new.class_id, new.radius) for new in chosen) == scene.objects and np.array_equal(
            labels, scene.label_map
        ):
            return chosen
    raise AssertionError("no choice of objects makes this label map")


@pytest.fixture(scope="module")
def objects():
    """Objects before light and noise, each with its outline."""
    inside_shape, outlines = scenes.inside_shape, []

    def recorded(shape, down, right):
        outlines.append(shape)
        return inside_shape(shape, down, right)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "inside_shape", recorded)
        drawn = [scenes._draw_object(np.random.RandomState(number)) for number in range(600)]
    return list(zip(outlines, drawn, strict=True))


def test_every_outline_has_every_pattern_and_every_colour(objects):
    """So that no class can be told by its outline."""
    patterns, colors = np.zeros((2, 6, 6), int)
    for outline, drawn in objects:
        pattern, color = divmod(drawn.class_id, 6)
        patterns[outline, pattern] += 1
        colors[outline, color] += 1
    assert patterns.min() >= 5 and colors.min() >= 5


def test_rims_are_three_pixels_wide_and_dark(objects):
    """By scipy's distances, of objects that are wholly in the picture."""
    whole = [drawn for _, drawn in objects if not drawn.inside[~INNER].any()]
    assert len(whole) > 50
    for drawn in whole:
        from_border = distance_transform_edt(drawn.inside)
        rim = drawn.inside & (drawn.pixels == (20, 20, 25)).all(axis=-1)
        assert not rim[from_border > 3].any()
        assert rim[drawn.inside & (from_border < 2)].mean() > 0.95
        assert rim[drawn.inside & (from_border <= 3)].mean() > 0.75


def test_picture_edges_are_no_rims(objects):
    """Where an object leaves the picture, its pattern goes on to the last pixel."""
    cut = [drawn for _, drawn in objects if drawn.inside[:6, 57:71].all()]
    assert len(cut) >= 3
    for drawn in cut:
        assert (drawn.pixels[:2, 61:67] != (20, 20, 25)).any(axis=-1).all()


def test_rims_are_dark_in_the_picture_too():
    scene = draw_scene(0, 0, max_objects=1)
    inside = scene.label_map == scene.objects[0][0]
    border = inside & (distance_transform_edt(inside) < 2)
    assert np.mean(scene.image[border].max(axis=-1) < 40) > 0.97


def test_plain_objects_have_one_colour_before_light_and_noise_and_others_two(objects):
    for _, drawn in objects:
        colors = np.unique(drawn.pixels[drawn.inside], axis=0).tolist()
        assert [20, 20, 25] in colors
        assert len(colors) == (2 if CLASS_NAMES[drawn.class_id].startswith("plain") else 3)


def test_colours_of_objects_are_seen_in_the_picture(many):
    """On a third of their pixels and more, whatever the light, the noise, rims and ink."""
    for scene in many:
        for class_id, _ in scene.objects:
            pixels = scene.image[scene.label_map == class_id]
            names = color_names(pixels[pixels.max(axis=-1) > 60])
            assert np.mean(names == CLASS_NAMES[class_id].split()[1]) > 1 / 3


def color_names(pixels):
    hue, saturation, _ = np.moveaxis(rgb2hsv(pixels), -1, 0)
    turns = (360 * hue[:, None] - list(HUES.values()) + 180) % 360 - 180
    return np.where(saturation < 0.2, "white", np.array(list(HUES))[np.abs(turns).argmin(axis=1)])


def test_patterns_of_objects_are_seen_in_the_picture(many):
    """Where no rim is, plain objects vary with the light alone."""
    for scene in many:
        if len(scene.objects) != 1:
            continue
        inside = scene.label_map == scene.objects[0][0]
        pixels = scene.image[inside & (distance_transform_edt(inside) > 4)].astype(float)
        if CLASS_NAMES[scene.objects[0][0]].startswith("plain"):
            assert pixels.std(axis=0).max() < 20
        else:
            assert pixels.std(axis=0).max() > 25


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
