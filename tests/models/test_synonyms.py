"""Classes of several names: against FC-CLIP's rule written out, a name and a class at a time."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.models.encoder import class_logits
from maft_jax.models.text_classifier import embed_synonyms
from maft_jax.runtime import tree_rules
from maft_jax.training import train_step
from tests.tiny_models import (
    CLIP_TRAINABLE,
    VISION,
    ip_clip,
    tiny_batch,
    tiny_spec,
    tiny_text,
    tiny_visual,
)

NAMES = ("person", "cat", "sky")
SYNONYMS = {"person": ("child", "Person", "man"), "sky": ("clouds",)}


def rows_of(names):
    """A direction for every name, whatever the list that it is in."""
    rows = [np.random.default_rng(list(name.encode())).normal(size=32) for name in names]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def test_class_scores_the_maximum_over_its_names():
    text = embed_synonyms(rows_of, NAMES, SYNONYMS)
    features = rows_of([f"proposal {i}" for i in range(14)]).reshape(2, 7, 32)
    ours = class_logits(ip_clip(VISION, 1), jax.device_put(features), jax.device_put(text))
    groups = [["person", "child", "man"], ["cat"], ["sky", "clouds"]]
    expected = np.empty((2, 7, 3))
    for place, names in enumerate(groups):
        of_names = [100 * features.astype(np.float64) @ row for row in rows_of(names)]
        expected[..., place] = np.max(of_names, axis=0)
    np.testing.assert_allclose(ours, expected, atol=1e-3, rtol=0)  # 1e-5 of logits / 100
    assert (expected.argmax(-1) != (100 * features @ rows_of(NAMES).T).argmax(-1)).any()


def test_every_name_is_embedded_once_and_repeats_fill_up():
    asked = []

    def embed(every):
        asked.append(list(every))
        return rows_of(every)

    text = embed_synonyms(embed, NAMES, SYNONYMS)
    assert asked == [["person", "child", "man", "cat", "sky", "clouds"]]
    assert text.shape == (3, 3, 32)
    np.testing.assert_array_equal(text[1], rows_of(["cat"] * 3))
    np.testing.assert_array_equal(text[2], rows_of(["sky", "clouds", "sky"]))


def test_names_of_several_classes_are_told_and_equal_classes_refused(caplog):
    with caplog.at_level(logging.WARNING):
        embed_synonyms(rows_of, ["animal", "cat"], {"animal": ["Cat", "dog"]})
    assert "1 names are those of several classes" in caplog.text
    assert "'Cat' (animal, cat)" in caplog.text
    with pytest.raises(ValueError, match=r"'cat' and 'kitty' have the same names, 'kitty', 'cat'"):
        embed_synonyms(rows_of, ["cat", "kitty"], {"cat": ["kitty"], "kitty": ["CAT"]})
    with pytest.raises(ValueError, match=r"class names: 'Cat' comes twice, as names 1 and 2"):
        embed_synonyms(rows_of, ["cat", "Cat"], {"cat": ["kitty"]})
    with pytest.raises(ValueError, match=r"synonyms: expected a list of texts, got 'kitty'"):
        embed_synonyms(rows_of, ["cat", "dog"], {"cat": "kitty"})


@pytest.mark.slow
@pytest.mark.parametrize("further", ["repeats", "others"])
def test_training_reads_the_maximum(further):
    spec, visual, text = tiny_spec(), tiny_visual(), tiny_text()
    trainable = tree_rules.select(CLIP_TRAINABLE, visual, where="test")
    batch = tiny_batch(2)
    step = jax.jit(lambda text: train_step.gradients(spec, trainable, visual, text, batch))
    of_one, losses = step(text)
    several = jnp.stack([text, text if further == "repeats" else jnp.roll(text, 1, -1)], axis=1)
    of_several, others = step(several)
    distances = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))), of_one, of_several
    )
    if further == "repeats":
        assert max(jax.tree.leaves(distances)) < 2e-5
        np.testing.assert_allclose(others["loss"], losses["loss"], rtol=1e-6)
    else:
        assert abs(others["loss"] - losses["loss"]) > 1e-4
