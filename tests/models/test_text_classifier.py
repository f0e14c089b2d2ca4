"""Names and templates to classifier rows: the order of averaging, the cache."""

import logging
import os

import jax
import numpy as np
import pytest
import torch

from input_pipeline.class_lists import BUILT_IN, load_class_list
from maft_jax.benchmarks.pytorch.openai_clip import random_clip
from maft_jax.models import text_classifier
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.text import clip_text
from maft_jax.models.text.tokenizer import tokenize
from maft_jax.models.text_classifier import (
    cached_class_embeddings,
    check_distinct,
    cleaning,
    embed_classes,
)
from maft_jax.runtime.sealed_files import write_sealed
from tests.in_memory_weights import from_openai

CONFIG = CLIP_SIZES["tiny"].text
TEMPLATES = ("a photo of a {}.", "There is {} in the scene", "{}")


@pytest.fixture(scope="module")
def parameters() -> dict:
    text = random_parameters(CLIP_SIZES["tiny"])["text"]
    # larger than at initialisation, so that prompts differ
    return jax.tree.map(lambda x: np.asarray(4 * x if x.ndim > 1 else x), text)


def test_templates_are_normalised_averaged_and_normalised_again():
    sizes = {"vision_width": 64, "vision_layers": 1, "patch_size": 16, "image_size": 32}
    clip = random_clip(0, **sizes, text_width=64, text_layers=2, embed_dim=24).eval()
    with torch.no_grad():
        clip.text_projection *= torch.linspace(0.1, 10, 24)  # lengths differ between prompts
    tensors = {name: tensor.numpy() for name, tensor in clip.state_dict().items()}
    config, converted = from_openai(tensors, source="random_clip")
    names = ["cat", "wall-other", "a large, red bus"]
    ours = embed_classes(config.text, converted["text"], names, TEMPLATES)

    prompts = [template.replace("{}", name) for name in names for template in TEMPLATES]
    with torch.no_grad():
        raw = clip.encode_text(torch.from_numpy(tokenize(prompts)).long()).numpy()
    raw = raw.astype(np.float64).reshape(3, 3, 24)
    expected = np.stack([sum(row / np.sqrt(row @ row) for row in rows) / len(rows) for rows in raw])
    expected /= np.sqrt((expected**2).sum(1, keepdims=True))
    np.testing.assert_allclose(ours, expected, atol=2e-6, rtol=0)
    assert ours.dtype == np.float32
    other_order = raw.mean(1) / np.linalg.norm(raw.mean(1), axis=1, keepdims=True)
    assert np.abs(other_order - expected).max() > 1e-4, "the order shows"


@pytest.mark.slow
def test_many_names_equal_the_same_in_smaller_pieces(parameters):
    names = [f"thing {i}" for i in range(300)]
    whole = embed_classes(CONFIG, parameters, names, ["{}"])
    assert whole.shape == (300, CONFIG.embed_dim)
    pieces = [embed_classes(CONFIG, parameters, names[i : i + 100], ["{}"]) for i in (0, 100, 200)]
    np.testing.assert_allclose(whole, np.concatenate(pieces), atol=1e-5, rtol=0)


def test_names_are_used_as_they_are_even_with_braces(parameters):
    rows = embed_classes(CONFIG, parameters, ["{}", "{x}", "cat/dog"], ["a {}", "{0} {}"])
    assert rows.shape == (3, CONFIG.embed_dim) and np.isfinite(rows).all()


def test_name_that_is_too_long_is_named(parameters):
    name = "very " * 80 + "long name"
    with pytest.raises(ValueError, match=r"class name 'very very .*long name': text of 8\d tokens"):
        embed_classes(CONFIG, parameters, ["cat", name], TEMPLATES)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ("cat", TEMPLATES, "expected a list of class names .*got 'cat'"),
        (["cat"], "a photo of a {}.", "list of templates, got .*'a photo of a {}.'"),
        ([], TEMPLATES, r"expected a list of class names .*got \[\]"),
        (["cat"], [], r"expected a list .*got \['cat'\], \[\]"),
        (["cat"], ["a photo"], r"templates: expected one \{\} in 'a photo'"),
        (["cat"], ["{} and {}"], r"templates: expected one \{\} in '\{\} and \{\}'"),
    ],
)
def test_what_is_no_list_of_names_or_templates_is_refused(parameters, names, templates, message):
    with pytest.raises(ValueError, match=message):
        embed_classes(CONFIG, parameters, names, templates)


@pytest.fixture
def counted(monkeypatch):
    """Names that reached the tower, one list per call."""
    calls = []

    def embed(config, parameters, names, templates):
        calls.append(list(names))
        return embed_classes(config, parameters, names, templates)

    monkeypatch.setattr("maft_jax.models.text_classifier.embed_classes", embed)
    return calls


def cache_files(folder) -> list:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_second_call_reads_the_cache(parameters, tmp_path, counted):
    names = ["cat", "dog"]
    first = cached_class_embeddings(CONFIG, parameters, names, TEMPLATES, tmp_path / "new")
    second = cached_class_embeddings(CONFIG, parameters, names, TEMPLATES, tmp_path / "new")
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(first, embed_classes(CONFIG, parameters, names, TEMPLATES))
    assert counted == [["cat", "dog"]]
    assert len(cache_files(tmp_path)) == 1


def test_other_names_order_templates_and_weights_have_their_own_files(
    parameters, tmp_path, counted
):
    others = parameters | {"proj": parameters["proj"] + np.float32(1e-6)}
    cases = [
        (parameters, ["cat", "dog"], TEMPLATES),
        (parameters, ["dog", "cat"], TEMPLATES),
        (parameters, ["cat,dog"], TEMPLATES),
        (parameters, ["cat", "dog"], TEMPLATES[:2]),
        (others, ["cat", "dog"], TEMPLATES),
    ]
    for number, (weights, names, templates) in enumerate(cases, start=1):
        rows = cached_class_embeddings(CONFIG, weights, names, templates, tmp_path)
        assert rows.shape == (len(names), CONFIG.embed_dim)
        assert len(counted) == len(cache_files(tmp_path)) == number


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "text", "other shape", "pickle", "bit", "zeros", "unsealed"]
)
def test_corrupt_cache_file_is_computed_again(parameters, tmp_path, counted, caplog, damage):
    names = ["cat", "dog"]
    expected = cached_class_embeddings(CONFIG, parameters, names, TEMPLATES, tmp_path)
    (path,) = cache_files(tmp_path)
    content = path.read_bytes()
    corrupt = {
        "empty": b"",
        "truncated": content[:-7],
        "text": b"not an array",
        "bit": content[:150] + bytes([content[150] ^ 64]) + content[151:],
        "zeros": content[:140] + bytes(40) + content[180:],
        "unsealed": content[:-32],  # as versions wrote them that had no digest
    }.get(damage)
    if corrupt is not None:
        path.write_bytes(corrupt)
    else:
        other = np.zeros((3, 2), np.float32) if damage == "other shape" else np.array([{}, None])
        np.save(path, other, allow_pickle=True)
    with caplog.at_level(logging.WARNING):
        again = cached_class_embeddings(CONFIG, parameters, names, TEMPLATES, tmp_path)
    np.testing.assert_array_equal(again, expected)
    assert path.read_bytes() == content and len(counted) == 2
    assert f"{path} is corrupt" in caplog.text


def test_what_a_killed_writer_left_is_removed_by_the_next_one(parameters, tmp_path):
    folder = tmp_path / "text_embeddings"
    folder.mkdir()
    (folder / ".0123.npy.89abcdef").write_bytes(b"half")
    cached_class_embeddings(CONFIG, parameters, ["a"], ["{}"], tmp_path)
    assert [path.suffix for path in folder.iterdir()] == [".npy"]


def test_failing_write_leaves_nothing_behind(parameters, tmp_path, monkeypatch):
    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        cached_class_embeddings(CONFIG, parameters, ["cat"], TEMPLATES, tmp_path)
    assert cache_files(tmp_path) == []


KEY_OF_VERSION_0_1 = "c9dad2780cca05f89b4e5bca"


def test_files_have_the_names_of_version_0_1_where_cleaning_changes_nothing(tmp_path, counted):
    parameters = {"proj": np.zeros(3, np.float32)}
    rows = np.ones((1, CONFIG.embed_dim), np.float32)
    (tmp_path / "text_embeddings").mkdir()
    path = tmp_path / "text_embeddings" / f"{KEY_OF_VERSION_0_1}.npy"
    np.save(path, rows)
    write_sealed(path, path.read_bytes(), f"{KEY_OF_VERSION_0_1} {rows.shape}".encode())
    read = cached_class_embeddings(CONFIG, parameters, ["Cat "], TEMPLATES, tmp_path)
    np.testing.assert_array_equal(read, rows)
    assert counted == []


def test_names_that_are_cleaned_have_other_files_than_before():
    assert cleaning(["Cat ", "wall-other"], TEMPLATES) == {}
    assert cleaning(["cat", "men\u2019s shoes"], TEMPLATES)
    assert cleaning(["cat"], ["a photo of a {} &amp; more."])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Wall", "sky", "wall"], "'wall' comes twice, as names 1 and 3: CLIP cannot tell 'Wall'"),
        (["salt &amp; pepper", "salt & pepper"], "cannot tell 'salt &amp; pepper' from 'salt & pe"),
        (["a\u00a0cat", "a cat"], "comes twice"),
    ],
)
def test_names_that_clip_cannot_tell_apart_are_refused_before_anything_is_embedded(
    parameters, tmp_path, monkeypatch, names, message
):
    monkeypatch.setattr(text_classifier, "embed_classes", None)
    with pytest.raises(ValueError, match=message):
        cached_class_embeddings(CONFIG, parameters, names, ["a {}"], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", 3], r"classes: expected texts, got 3 \(int\) as number 2 of 2; put quotes aro"),
        ([None], r"expected texts, got None \(NoneType\)"),
        (7, "classes: expected a list of texts, got 7"),
        ("cat", "classes: expected a list of texts, got 'cat'"),
    ],
)
def test_names_that_are_no_texts_are_refused_by_their_number(names, message):
    with pytest.raises(ValueError, match=message):
        check_distinct(names, "classes")


def test_no_built_in_list_has_names_that_clip_cannot_tell_apart():
    for name in BUILT_IN:
        check_distinct(load_class_list(name, ignore_labels=()).names, name)


def test_long_lists_of_names_show_how_long_they_take(parameters, capsys, monkeypatch):
    monkeypatch.setattr(text_classifier, "_SECONDS_OF_SILENCE", 1e-9)
    names = [f"thing {number}" for number in range(200)]
    embed_classes(CONFIG, parameters, names, ["a {}", "the {}"])
    shown = capsys.readouterr().err
    assert "embedding 200 names in 2 prompts" in shown and "2/2 [" in shown


def test_short_lists_of_names_show_nothing(parameters, capsys):
    embed_classes(CONFIG, parameters, ["cat", "dog"], ["a {}"])
    assert capsys.readouterr().err == ""


def test_positions_after_the_end_of_all_texts_do_not_change_embeddings(parameters, monkeypatch):
    short = ["cat", "a cat and a dog on the sofa"]
    long = [*short, "a " * 30]
    found = {}
    for lengths in ((16, 32, 48), ()):
        monkeypatch.setattr(clip_text, "_LENGTHS", lengths)
        for texts in (short, long):
            rows = CONFIG.encode(parameters, CONFIG.tokenize(texts))
            found[lengths, len(texts)] = np.asarray(rows)[:2]
    first, *others = found.values()
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5, rtol=0)  # as all features


def test_positions_are_as_many_as_the_longest_text_needs():
    for words, expected in ((1, 16), (14, 16), (15, 32), (46, 48), (47, 77), (75, 77)):
        tokens = CONFIG.tokenize(["cat", "a " * words])
        assert clip_text._without_padding(tokens).shape == (2, expected)
