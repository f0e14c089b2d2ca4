"""EVA-02 and TIPS train, resume with the same bits, and go back to the libraries they come from."""

import dataclasses

import jax
import numpy as np
import pytest

import maft_jax
from maft_jax.convert.class_token_embeddings import eva02_embeddings, tips_embeddings
from maft_jax.convert.formats import read_weights, write_weights
from maft_jax.runtime import tree_rules
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import make_data, read_metrics, small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("steps_compiled_once")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


EVA02, TIPS = "eva02_tiny-random", "tips_tiny-random"


@pytest.fixture(
    scope="module",
    params=[(EVA02, ""), (EVA02, "maskclippp"), (TIPS, "")],
    ids="_".join,
)
def run(request, data, tmp_path_factory):
    """Settings, final state and folder of a run that was never interrupted."""
    size, rule = request.param
    config = small_config(
        data,
        model__pretrained=f"random:{size}",
        model__mask_rule=rule,
        checkpointing__every_steps=2,
        **(
            {"optimizer__trainable": ("/attn/", "/ln_[12]/", "mask_logit_scale$")}
            if rule == "maskclippp"
            else {}
        ),
    )
    workdir = tmp_path_factory.mktemp("run")
    return config, train_and_evaluate(config, workdir), workdir


def test_what_is_tuned_changes_and_the_loss_is_finite(run):
    config, state, workdir = run
    tuned = tree_rules.flatten(state.trainable)
    frozen = ("mlp/", "embedding", "patch_")
    assert not any(part in path for path in tuned for part in frozen)
    if "eva02" in config.model.pretrained:
        assert "blocks_0/attn/out_proj/ln_heads/scale" in tuned
        is_soft = config.model.mask_rule == "maskclippp"
        assert ("blocks_3/mask_logit_scale" in tuned) == is_soft
    begun = tree_rules.flatten(maft_jax.load(config.model.pretrained).parameters["visual"])
    name = "blocks_3/attn/in_proj/kernel"
    assert np.abs(np.asarray(tuned[name]) - begun[name]).max() > 1e-6
    assert all(np.isfinite(x["loss"]) for x in read_metrics(workdir) if "loss" in x)


def test_it_resumes_with_the_same_bits(run, tmp_path, caplog):
    config, straight, _ = run
    train_and_evaluate(config, tmp_path / "resumed")
    (tmp_path / "resumed/checkpoints/6").rename(tmp_path / "forgotten")
    with caplog.at_level("INFO"):
        again = train_and_evaluate(config, tmp_path / "resumed")
    assert "resuming from the checkpoint of step" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, again, straight)


def test_another_way_to_read_masks_is_refused(run):
    config, _, workdir = run
    other = {"mask_rule": "maft" if config.model.mask_rule else "shared_patches"}
    if "tips" in config.model.pretrained:
        other = {"class_token": 1}
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, **other))
    with pytest.raises(ValueError, match=f"another way to read masks .*{next(iter(other))}="):
        train_and_evaluate(changed, workdir)


def test_its_file_is_the_run_and_the_library_computes_the_same(run, tmp_path):
    config, _, workdir = run
    of_run, of_file = maft_jax.load(workdir), maft_jax.load(workdir / "tuned.safetensors")
    assert of_file.mask_rule == of_run.mask_rule and of_file.config == of_run.config
    jax.tree.map(np.testing.assert_array_equal, of_file.parameters, of_run.parameters)
    read = eva02_embeddings
    if "tips" in config.model.pretrained:
        stated = read_weights(workdir / "tuned.safetensors", activation="gelu")
        write_weights(stated, tmp_path / "hub", "tips_hub")
        of_file, read = maft_jax.load(tmp_path / "hub"), tips_embeddings
    rng = np.random.default_rng(0)
    size = of_file.config.vision.image_size
    images = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    texts = ["a photo of a cat", "dog"]
    tokens = of_file.config.text.tokenize(texts)
    _, found = read(of_file.config, of_file.parameters, images, tokens)
    np.testing.assert_allclose(of_file.encode_image(images), found["images"], atol=2e-6)
    ours = of_file.encode_text(texts, ["{}"])
    np.testing.assert_allclose(ours, found["texts"], atol=2e-6)


def test_it_segments(run):
    clip = maft_jax.load(run[2])
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    result = maft_jax.segment(clip, image, ["cat", "dog"])
    assert result.label_map.shape == (48, 64)
