"""Weights of the real libraries: the same features and gradients, and back bit for bit."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from maft_jax.benchmarks.pytorch.openai_clip import clip_from_state_dict
from maft_jax.convert.formats import layout_of, read_weights, write_weights
from maft_jax.models.text.clip_text import TextTransformer
from maft_jax.models.towers.clip_vit import VisionTransformer
from maft_jax.runtime import tree_rules
from tests.convert import library_models
from tests.in_memory_weights import to_ours

MODELS = {
    "openai": library_models.openai,
    "open_clip gelu": library_models.open_clip,
    "open_clip quick_gelu": functools.partial(library_models.open_clip, quick_gelu=True),
    "open_clip custom text": functools.partial(library_models.open_clip, custom_text=True),
    "open_clip wide heads": functools.partial(
        library_models.open_clip,
        head_width=80,
        vision_width=160,
        mlp_ratio=4.3637,
        text_heads=2,
    ),
    "transformers": library_models.transformers_clip,
    "transformers gelu, in shards": functools.partial(
        library_models.transformers_clip,
        shards=True,
        vision={"hidden_act": "gelu"},
        text={"hidden_act": "gelu"},
    ),
    "transformers vision": library_models.transformers_vision,
}
FORMAT_OF = {
    name: name.split()[0] + ("_custom_text" if "custom text" in name else "") for name in MODELS
}
SLOW = ("open_clip quick_gelu", "open_clip wide heads", "transformers gelu, in shards")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS],
)
def case(request, tmp_path_factory):
    """Name, the library's model, and our view of the file that it wrote."""
    library = MODELS[request.param]()
    path = library.save(tmp_path_factory.mktemp("saved"))
    return request.param, library, read_weights(path)


def test_format_is_recognised_and_nothing_is_ignored(case):
    name, _, weights = case
    assert weights.format_name == FORMAT_OF[name]
    assert weights.ignored == {}
    assert len(weights.tensors) > 30
    activations = {weights.config.vision.activation}
    if weights.config.text is not None:
        activations.add(weights.config.text.activation)
    gelu = (name.startswith("open_clip") and "quick" not in name) or "gelu," in name
    assert activations == {"gelu" if gelu else "quick_gelu"}


def our_features(config, parameters, images, tokens):
    image = VisionTransformer(config.vision).apply({"params": parameters["visual"]}, images)
    if config.text is None:
        return image, None
    return image, TextTransformer(config.text).apply({"params": parameters["text"]}, tokens)


def our_score(parameters, config, images, tokens, weighting):
    """Weighted similarities of images and texts, or without texts a weighted embedding."""
    image, text = our_features(config, parameters, images, tokens)
    if text is None:
        return jnp.sum(image * weighting)
    return jnp.sum(jnp.exp(parameters["logit_scale"]) * (image @ text.T) * weighting)


@pytest.mark.slow
def test_features_and_gradients_are_the_librarys(case):
    _, library, weights = case
    images, tokens = library_models.inputs()
    normalize = functools.partial(torch.nn.functional.normalize, dim=-1)
    image = normalize(library.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2)))
    rng = np.random.default_rng(1)
    if library.encode_text is None:
        weighting = rng.normal(size=image.shape).astype(np.float32)
        score, text = (image * torch.from_numpy(weighting)).sum(), None
    else:
        text = normalize(library.encode_text(torch.from_numpy(tokens).long()))
        weighting = rng.normal(size=(len(images), len(tokens))).astype(np.float32)
        similarity = library.model.logit_scale.exp() * image @ text.T
        score = (similarity * torch.from_numpy(weighting)).sum()
    library.model.zero_grad()
    score.backward()
    gradients = {name: value.grad.numpy() for name, value in library.model.named_parameters()}

    config, parameters = weights.config, weights.parameters()
    ours = jax.jit(our_features, static_argnums=0)(config, parameters, images, tokens)
    for result, expected in zip(ours, (image, text), strict=True):
        if expected is not None:
            expected = expected.detach().numpy()
            np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)
            assert np.abs(expected[0] - expected[1]).max() > 0.05, "the inputs matter"

    format = layout_of(weights.format_name, weights.config)
    expected = to_ours(gradients, parameters, format.rules, source="gradients")
    expected = tree_rules.flatten(expected)
    ours = jax.jit(jax.grad(our_score), static_argnums=1)(
        parameters, config, images, tokens, weighting
    )
    for path, gradient in tree_rules.flatten(ours).items():
        largest = np.abs(expected[path]).max()
        assert largest > 0, path
        difference = np.abs(gradient - expected[path]).max()
        assert difference <= 1e-5 * largest, (path, difference / largest)


def assert_same_bits(state_dict, expected):
    assert set(state_dict) == set(expected)
    for name, tensor in expected.items():
        assert state_dict[name].dtype == tensor.dtype, name
        assert torch.equal(state_dict[name], tensor), name


def loaded_by_the_library(name, library, path):
    """A new model of the library, made of nothing but what we wrote."""
    if name == "openai":
        tensors = torch.load(path, weights_only=True)
        return clip_from_state_dict(tensors).eval()
    if name.startswith("open_clip"):
        import open_clip

        return open_clip.create_model(f"local-dir:{path}").eval()
    model, problems = type(library.model).from_pretrained(path, output_loading_info=True)
    assert not any(problems.values()), problems
    return model.eval()


def test_written_again_the_library_loads_the_same_bits_and_computes_the_same(case, tmp_path):
    """Heads and activations are in the settings, not in the tensors: so outputs are compared."""
    name, library, weights = case
    path = tmp_path / ("written.pt" if name == "openai" else "written")
    write_weights(weights, path, weights.format_name)
    model = loaded_by_the_library(name, library, path)
    assert_same_bits(model.state_dict(), library.tensors())
    images, tokens = library_models.inputs()
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        for original, encode, given in (
            (library.encode_image, "image", images),
            (library.encode_text, "text", torch.from_numpy(tokens).long()),
        ):
            if original is None:
                continue
            if name == "transformers vision":
                result = model(given).image_embeds
            elif name.startswith("transformers"):
                result = getattr(model, f"get_{encode}_features")(given).pooler_output
            else:
                result = getattr(model, f"encode_{encode}")(given)
            torch.testing.assert_close(result, original(given), atol=1e-6, rtol=0)


def test_what_we_wrote_is_read_as_the_same_architecture(case, tmp_path):
    name, _, weights = case
    path = tmp_path / ("written" if "transformers" in name else "written.safetensors")
    write_weights(weights, path, weights.format_name)
    again = read_weights(path)
    assert again.config == weights.config and again.format_name == weights.format_name
    before, after = (tree_rules.flatten(w.parameters()) for w in (weights, again))
    assert set(before) == set(after)
    for key, value in before.items():
        assert value.tobytes() == after[key].tobytes(), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["openai", "open_clip custom text", "transformers"])
def test_half_precision_is_read_exactly_and_written_back_as_it_was(name, dtype, tmp_path):
    library = MODELS[name]()
    library.model.to(dtype)
    expected = library.tensors()
    (tmp_path / "saved").mkdir()
    weights = read_weights(library.save(tmp_path / "saved"))
    format = layout_of(weights.format_name, weights.config)
    theirs = {name: value.float().numpy() for name, value in expected.items()}
    read = weights.parameters()
    for path, leaf in tree_rules.flatten(
        to_ours(theirs, read, format.rules, format.ignored, source="memory")
    ).items():
        found = tree_rules.flatten(read)[path]
        assert found.dtype == np.float32 and found.tobytes() == leaf.tobytes(), path
    if name == "transformers":
        write_weights(weights, tmp_path / "written", "transformers", dtype="source")
        model = transformers.CLIPModel.from_pretrained(tmp_path / "written")
        assert model.dtype == dtype
        loaded = model.state_dict()
        assert json.loads((tmp_path / "written/config.json").read_text())["dtype"] == (
            str(dtype).removeprefix("torch.")
        )
    else:
        write_weights(weights, tmp_path / "written.pt", weights.format_name, dtype="source")
        loaded = torch.load(tmp_path / "written.pt", weights_only=True)
    assert_same_bits(loaded, expected)
