"""FC-CLIP's ensemble against its official code, and which classes it takes for seen."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from maft_jax.inference import geometric_ensemble
from tests.golden_files import golden


def ensemble_of(function):
    arrays = golden("fcclip/ensemble")
    tower = jax.nn.softmax(arrays["out_vocabulary_logits"][:, :-1])  # its void column plays no part
    exponents = float(arrays["alpha"]), float(arrays["beta"])
    logits, seen = (jax.device_put(arrays[name]) for name in ("in_vocabulary_logits", "seen"))
    return np.asarray(function(tower, logits, seen, exponents)), arrays


def test_log_probabilities_are_those_of_the_official_code():
    ours, arrays = ensemble_of(geometric_ensemble.log_probabilities)
    expected = arrays["ensemble_log_probability"]
    np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())
    assert arrays["seen"].any() and not arrays["seen"].all()


def test_label_map_is_that_of_the_official_code():
    ours, arrays = ensemble_of(geometric_ensemble.probabilities)
    masks = torch.tensor(arrays["mask_logits_f16"].astype(np.float32))[None]
    (height, width), size = arrays["image_size"], tuple(arrays["original_size"].tolist())
    masks = F.interpolate(masks, tuple(arrays["padded_size"].tolist()), mode="bilinear")
    masks = F.interpolate(masks[..., :height, :width], size, mode="bilinear")[0].sigmoid()
    scores = torch.einsum("nc,nhw->chw", torch.tensor(ours), masks).numpy()
    expected = arrays["semantic_scores_every_9th_row_f16"].astype(np.float32)
    float16 = {"rtol": 2**-10, "atol": 2**-24}
    np.testing.assert_allclose(scores[:, ::9], expected, **float16)
    different = scores.argmax(axis=0) != arrays["semantic_argmax"]
    assert different.mean() <= 1e-4


def test_exponents_of_one_are_the_tower_alone_times_that_there_is_an_object():
    tower = jax.nn.softmax(jnp.array([[3.0, 1.0, 0.5]]))
    logits = jnp.array([[0.0, 5.0, 1.0, 2.0]])
    seen = jnp.array([True, False, False])
    ours = geometric_ensemble.probabilities(tower, logits, seen, (1.0, 1.0))
    nothing = jax.nn.softmax(logits)[:, 3:]
    np.testing.assert_allclose(ours, tower * (1 - nothing), atol=1e-7)


def test_probabilities_too_small_for_float32_do_not_become_nan():
    tower = jnp.array([[1.0, 0.0, 0.0]])
    logits = jnp.array([[-400.0, 0.0, 300.0, 0.0]])
    seen = jnp.array([True, False, True])
    for exponents in ((0.4, 0.8), (0.0, 1.0)):
        ours = geometric_ensemble.probabilities(tower, logits, seen, exponents)
        assert np.isfinite(ours).all() and ours.sum() <= 1.0001


def test_class_is_seen_if_one_of_its_names_is_letter_by_letter_one_of_training():
    classes = [
        ("person", "child", "girl"),
        ("dog", "puppy"),
        ("tree", "bush"),
        ("sky",),
        ("road", "street"),
        ("wooden table",),
    ]
    trained = [("person",), ("sky", "clouds"), ("car",), ("street",), ("Dog",)]
    seen = geometric_ensemble.seen_by_name(classes, trained)
    assert seen.tolist() == [True, False, False, True, True, False]
