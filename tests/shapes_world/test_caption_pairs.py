"""Pictures and captions in memory, against scenes and captions that are drawn again here."""

import dataclasses

import numpy as np
import pytest

from input_pipeline.shapes_world.captions import describe
from input_pipeline.shapes_world.scenes import SIZE, draw_scene
from maft_jax.models.text.tokenizer import tokenize
from maft_jax.shapes_world.caption_pairs import CaptionPairs, draw_quiz

START, END = 49406, 49407
BATCH = 20


@pytest.fixture(scope="module")
def pairs(drawn_pairs):
    return drawn_pairs[0]


@pytest.fixture(scope="module")
def expected(drawn_pairs):
    """(image, its four captions) of every picture of the worlds that CLIP is trained on."""
    _, (num_pictures, seed) = drawn_pairs
    pictures = []
    for number in range(num_pictures):
        scene = draw_scene(1_000_000 + seed, number)
        rng = np.random.RandomState([1_000_000 + seed, number, 1])
        pictures.append((scene.image, [describe(scene, rng) for _ in range(4)]))
    return pictures


@pytest.fixture(scope="module")
def positions(expected):
    """{bytes of a picture or of its mirror image: (its number, whether mirrored)}."""
    found = {image.tobytes(): (number, False) for number, (image, _) in enumerate(expected)}
    mirrored = {
        image[:, ::-1].tobytes(): (number, True) for number, (image, _) in enumerate(expected)
    }
    assert len(found | mirrored) == 2 * len(expected)
    return found | mirrored


def numbers_of(batch, positions):
    """Numbers of the pictures, and which are mirrored."""
    return zip(*(positions[image.tobytes()] for image in batch["images"]), strict=True)


def test_pictures_are_scenes_in_the_order_of_their_numbers(pairs, expected):
    assert pairs.images.dtype == np.uint8
    np.testing.assert_array_equal(pairs.images, np.stack([image for image, _ in expected]))


def test_tokens_are_those_of_four_captions_and_the_longest_fits(pairs, expected):
    for tokens, (_, captions) in zip(pairs.tokens, expected, strict=True):
        whole = tokenize([caption.text for caption in captions])
        np.testing.assert_array_equal(tokens, whole[:, : tokens.shape[1]])
        assert not whole[:, tokens.shape[1] :].any()
    rows = pairs.tokens.reshape(-1, pairs.tokens.shape[-1])
    assert (rows[:, 0] == START).all() and ((rows == END).sum(axis=1) == 1).all()
    assert (rows[:, -1] == END).any(), "there is no column of padding alone"


def test_contents_are_equal_where_the_same_classes_are_named_and_only_there(pairs, expected):
    ids = [caption.class_ids for _, captions in expected for caption in captions]
    content = pairs.content.ravel().tolist()
    assert len(set(ids)) == len(set(content)) == len(set(zip(ids, content, strict=True)))
    assert len(set(content)) < len(content), "some captions name the same things"


def test_a_batch_is_a_pure_function_of_step_and_seed(pairs):
    before = pairs.images.copy()
    first, again = (pairs.batch(2, BATCH, seed=1) for _ in range(2))
    assert set(first) == {"images", "tokens", "content"}
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        for other in (pairs.batch(3, BATCH, seed=1), pairs.batch(2, BATCH, seed=2)):
            assert not np.array_equal(values, other[name])
    first["images"][:] = 0
    np.testing.assert_array_equal(pairs.images, before)


def test_every_epoch_shows_every_picture_once_in_another_order(pairs, positions):
    orders = []
    for epoch in range(3):
        order = []
        for step in range(5 * epoch, 5 * epoch + 5):
            numbers, _ = numbers_of(pairs.batch(step, BATCH, seed=0), positions)
            order += numbers
        assert sorted(order) == list(range(100))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_batches_that_do_not_divide_an_epoch_go_on_into_the_next(pairs, positions):
    seen = []
    for step in range(5):
        numbers, _ = numbers_of(pairs.batch(step, 60, seed=0), positions)
        seen += numbers
    assert [sorted(seen[i : i + 100]) for i in (0, 100, 200)] == [list(range(100))] * 3


def test_tokens_and_contents_of_a_batch_are_of_its_pictures(pairs, positions, expected):
    wordings, mirrors = [], []
    for step in range(10):
        batch = pairs.batch(step, BATCH, seed=4)
        numbers, mirrored = numbers_of(batch, positions)
        mirrors += mirrored
        (words,), (contents,) = batch["tokens"], batch["content"]
        for number, tokens, content in zip(numbers, words, contents, strict=True):
            texts = [caption.text for caption in expected[number][1]]
            same = (tokenize(texts)[:, : len(tokens)] == tokens).all(axis=1)
            assert content in pairs.content[number][same]
            wordings.append(int(same.argmax()))
    assert np.bincount(wordings, minlength=4).min() > 20
    assert 0.4 < np.mean(mirrors) < 0.6


def test_several_captions_of_a_picture_are_different_ones_and_the_first_is_as_without_them(pairs):
    one, four = (pairs.batch(3, BATCH, 4, num_captions) for num_captions in (1, 4))
    np.testing.assert_array_equal(four["images"], one["images"])
    np.testing.assert_array_equal(four["tokens"][0], one["tokens"][0])
    longest = pairs.tokens.shape[-1]
    for picture in range(BATCH):
        [place] = [
            place
            for place, tokens in enumerate(pairs.tokens)
            if {*map(bytes, tokens)} == {*map(bytes, four["tokens"][:, picture])}
        ][:1]
        order = [bytes(row) for row in four["tokens"][:, picture].reshape(4, longest)]
        assert sorted(order) == sorted(map(bytes, pairs.tokens[place]))
        assert sorted(four["content"][:, picture]) == sorted(pairs.content[place])


def test_mirrored_pictures_are_mirrored_from_side_to_side():
    """Whole pictures, told apart by their corners, so that none is turned or upside down."""
    images = np.zeros((2, 3, 3, 3), np.uint8)
    images[:, 0, 0], images[:, 2, 0] = 1, 2
    pairs = CaptionPairs(images, np.ones((2, 1, 4), np.int32), np.zeros((2, 1), np.int32))
    drawn = pairs.batch(0, 2000, seed=0)["images"]
    straight = (drawn == images[0]).all(axis=(1, 2, 3))
    mirrored = (drawn == images[0][:, ::-1]).all(axis=(1, 2, 3))
    assert (straight ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.05


def test_quiz_shows_one_object_each_and_says_which():
    quiz = draw_quiz(10, seed=3)
    assert quiz.images.shape == (10, SIZE, SIZE, 3) and quiz.images.dtype == np.uint8
    for number in range(10):
        scene = draw_scene(2_000_003, number, max_objects=1)
        np.testing.assert_array_equal(quiz.images[number], scene.image)
        assert [class_id for class_id, _ in scene.objects] == [quiz.objects[number]]
        assert quiz.objects[number] in scene.label_map


def test_quiz_is_of_pictures_that_are_not_in_the_training(pairs, positions):
    quiz = draw_quiz(100, seed=3)
    assert not {image.tobytes() for image in quiz.images} & set(positions)
    assert {field.name for field in dataclasses.fields(quiz)} == {"images", "objects"}
