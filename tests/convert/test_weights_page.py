"""What docs/weights.md tells people to type and to paste works."""

import pathlib
import re

import jax
import numpy as np
import pytest
import torch

from maft_jax.benchmarks.pytorch.openai_clip import random_clip
from maft_jax.convert.formats import FORMATS, ClipWeights, write_weights
from maft_jax.convert.openai import to_openai
from maft_jax.models.clip import ClipConfig, random_parameters
from maft_jax.models.text.clip_text import TextConfig, TextTransformer
from maft_jax.models.towers.clip_vit import VisionConfig, VisionTransformer
from tests.torch_reference.torchvision_operators import declare_missing_operators

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "weights.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
CONFIG = ClipConfig(
    VisionConfig(width=128, layers=2, patch_size=16, image_size=48, embed_dim=24),
    TextConfig(width=64, layers=1, vocab_size=60, context_length=9, embed_dim=24),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with what the page's commands write, the parameters, and embeddings of ours."""
    declare_missing_operators()
    folder = tmp_path_factory.mktemp("page")
    parameters = jax.tree.map(np.asarray, random_parameters(CONFIG))
    command = r"convert_weights runs/first (\S+) --to=(\w+)$"
    commands = re.findall(command, PAGE, re.MULTILINE)
    assert len(commands) == 3
    for name, format_name in commands:
        write_weights(ClipWeights.of(CONFIG, parameters), folder / name, format_name)
    return folder, parameters


def run(source: str, names: dict) -> dict:
    exec(compile(source, "docs/weights.md", "exec"), names)
    return names


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, (3, 9)).astype(np.int32)
    tokens[:, -1] = 59
    return rng.normal(size=(2, 48, 48, 3)).astype(np.float32), tokens


def normalised(features) -> np.ndarray:
    return torch.nn.functional.normalize(features, dim=-1).detach().numpy()


def assert_computes_as_ours(parameters, encode_image, encode_text):
    images, tokens = inputs()
    for tower, name, given, found in (
        (
            VisionTransformer(CONFIG.vision),
            "visual",
            images,
            encode_image(torch.from_numpy(images).permute(0, 3, 1, 2)),
        ),
        (
            TextTransformer(CONFIG.text),
            "text",
            tokens,
            encode_text(torch.from_numpy(tokens).long()),
        ),
    ):
        expected = jax.jit(tower.apply)({"params": parameters[name]}, given)
        np.testing.assert_allclose(normalised(found), expected, atol=1e-5, rtol=0, err_msg=name)


def test_page_has_the_four_snippets():
    assert [re.search(r"import (\w+)", snippet)[1] for snippet in SNIPPETS] == [
        "torch",
        "open_clip",
        "CLIPModel",
        "maft_jax",
    ]


@pytest.mark.slow
def test_snippet_for_pytorch(exported, monkeypatch):
    folder, parameters = exported
    monkeypatch.chdir(folder)
    sizes = {"vision_width": 128, "vision_layers": 2, "patch_size": 16, "image_size": 48}
    text = {"text_width": 64, "text_layers": 1, "context_length": 9, "vocab_size": 60}
    model = random_clip(9, **sizes, **text, embed_dim=24)
    run(SNIPPETS[0], {"model": model})
    assert_computes_as_ours(parameters, model.encode_image, model.encode_text)


def test_snippet_for_open_clip(exported, monkeypatch):
    folder, parameters = exported
    monkeypatch.chdir(folder)
    model = run(SNIPPETS[1], {})["model"].eval()
    assert_computes_as_ours(parameters, model.encode_image, model.encode_text)


def test_snippet_for_transformers(exported, monkeypatch):
    folder, parameters = exported
    monkeypatch.chdir(folder)
    model = run(SNIPPETS[2], {})["model"].eval()
    assert_computes_as_ours(
        parameters,
        lambda images: model.visual_projection(model.vision_model(images).pooler_output),
        lambda tokens: model.text_projection(model.text_model(tokens).pooler_output),
    )


def test_snippet_for_ourselves(exported, monkeypatch):
    folder, parameters = exported
    monkeypatch.chdir(folder)
    clip = run(SNIPPETS[3], {})["clip"]
    found, expected = to_openai(clip.parameters), to_openai(parameters)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_table_names_every_format():
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert set(FORMATS) <= named
