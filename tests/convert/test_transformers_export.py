"""Folders for transformers are complete: its processors and pipelines run on them offline."""

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

import maft_jax
from maft_jax.convert.conversion import image_tower
from maft_jax.convert.formats import read_weights, write_weights
from maft_jax.models.text.tokenizer import tokenize
from tests.convert.library_models import declare_missing_operators

declare_missing_operators()


@pytest.fixture(scope="module")
def clip():
    return maft_jax.load("random:tiny")


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "clip"
    clip.save(path)
    return str(path)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_processor_has_the_tokens_of_ours_and_clips_pixels(folder):
    processor = transformers.AutoProcessor.from_pretrained(folder)
    texts = ["a photo of a Cat.", "it's 42 wall-other!", "caf\u00e9   au lait"]
    theirs = processor.tokenizer(texts, padding="max_length")["input_ids"]
    for row, expected in zip(theirs, tokenize(texts), strict=True):
        length = np.argmax(expected) + 1
        assert row[:length] == expected[:length].tolist() and len(row) == 77
    image = Image.new("RGB", (120, 80), (255, 0, 51))
    pixels = processor.image_processor(image, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 96, 96)
    expected = [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258]
    expected.append((0.2 - 0.40821073) / 0.27577711)
    np.testing.assert_allclose(pixels[0, :, 40, 40], expected, atol=1e-5)


def test_zero_shot_pipeline_computes_what_we_do(clip, folder):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (80, 120, 3), dtype=np.uint8))
    labels = ["cat", "dog", "sofa"]
    pipe = transformers.pipeline("zero-shot-image-classification", model=folder)
    found = pipe(image, candidate_labels=labels, hypothesis_template="a photo of a {}.")
    pixels = pipe.image_processor(image, return_tensors="np")["pixel_values"]
    features = clip.encode_image(pixels.transpose(0, 2, 3, 1).astype(np.float32))
    text = clip.encode_text(labels, ["a photo of a {}."])
    scores = jax.nn.softmax(np.exp(clip.parameters["logit_scale"]) * features @ text.T)[0]
    theirs = {entry["label"]: entry["score"] for entry in found}
    np.testing.assert_allclose([theirs[label] for label in labels], scores, atol=1e-4)


def test_an_image_tower_alone_has_its_pixels_and_no_tokens(folder, tmp_path):
    write_weights(image_tower(read_weights(folder)), tmp_path / "tower", "transformers")
    names = {path.name for path in (tmp_path / "tower").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "tower")
    assert processor.crop_size["height"] == 96
