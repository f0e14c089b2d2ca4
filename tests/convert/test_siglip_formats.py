"""SigLIP's layouts: one set of weights, the libraries' own bits, tokenizers beside them."""

import dataclasses
import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from maft_jax.convert.conversion import choose_format, image_tower, with_text_of
from maft_jax.convert.formats import ClipWeights, default_format, read_weights, write_weights
from maft_jax.convert.open_clip_siglip import timm_activation
from maft_jax.convert.verification import verify
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.towers.siglip import SigLipVisionConfig
from maft_jax.runtime import tree_rules
from maft_jax.weights import open_weights
from tests.siglip_files import GOLDEN, unpacked

pytestmark = pytest.mark.slow

LAYOUTS = {
    "transformers": "transformers",
    "open_clip": "open_clip",
    "big_vision.npz": "big_vision",
    "big_vision_stacked.npz": "big_vision_stacked",
}


def zeros_of(config) -> ClipWeights:
    """Weights in memory of which only the names matter."""
    shapes = jax.eval_shape(lambda: random_parameters(config))
    return ClipWeights.of(config, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))


def assert_equal_parameters(one: ClipWeights, other: ClipWeights):
    one, other = (tree_rules.flatten(weights.parameters()) for weights in (one, other))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module")
def first():
    return read_weights(GOLDEN / "transformers")


@pytest.mark.parametrize("file, name", LAYOUTS.items())
def test_all_layouts_are_the_same_weights(first, file, name):
    weights = read_weights(GOLDEN / file)
    assert weights.format_name == name and not weights.ignored
    assert weights.config == first.config and weights.masking is None
    assert_equal_parameters(weights, first)


@pytest.mark.parametrize(
    "file, name",
    [
        ("transformers", "transformers"),
        ("big_vision_stacked.npz", "big_vision_stacked"),
        ("open_clip", "open_clip"),
        ("big_vision.npz", "big_vision"),
    ],
)
def test_a_round_trip_keeps_every_bit(file, name, tmp_path):
    weights = read_weights(GOLDEN / file)
    copy = tmp_path / (file if file.endswith(".npz") else "folder")
    write_weights(weights, copy, name, dtype="source")
    again = read_weights(copy)
    assert again.config == weights.config
    assert_equal_parameters(again, weights)
    if copy.suffix == ".npz":
        ours, theirs = np.load(copy), np.load(GOLDEN / file)
        assert sorted(ours) == sorted(theirs)
        for key in theirs:
            assert ours[key].dtype == theirs[key].dtype and ours[key].shape == theirs[key].shape
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_bfloat16_of_big_vision_is_read(first, tmp_path):
    arrays = np.load(GOLDEN / "big_vision_stacked.npz")
    halves = {key: arrays[key].astype(ml_dtypes.bfloat16).view("V2") for key in arrays}
    np.savez(tmp_path / "half.npz", **halves)
    weights = read_weights(tmp_path / "half.npz")
    bound = np.abs(first.parameters()["visual"]["patch_kernel"]) * 2**-8
    difference = weights.parameters()["visual"]["patch_kernel"]
    difference = np.abs(difference - first.parameters()["visual"]["patch_kernel"])
    assert (difference <= bound).all() and difference.any()


def test_big_vision_is_read_without_params_and_with_second_positions(first, tmp_path):
    for name in ("big_vision", "big_vision_stacked"):
        arrays = dict(np.load(GOLDEN / f"{name}.npz"))
        bare = {key.removeprefix("params/"): value for key, value in arrays.items()}
        np.savez(tmp_path / "bare.npz", **bare)
        weights = read_weights(tmp_path / "bare.npz")
        assert weights.format_name == name and not weights.ignored
        assert_equal_parameters(weights, first)
        positions = arrays["params/txt/pos_embedding"]
        arrays["params/txt/Encoder_0/pos_embedding"] = np.arange(positions.size, dtype=np.float32)
        arrays["params/txt/Encoder_0/pos_embedding"].shape = positions.shape
        np.savez(tmp_path / "two.npz", **arrays)
        found = read_weights(tmp_path / "two.npz").parameters()["text"]["position_embedding"]
        expected = np.float32(positions[0]) + arrays["params/txt/Encoder_0/pos_embedding"][0]
        np.testing.assert_array_equal(found, expected)


def test_settings_are_those_of_the_libraries(first, tmp_path):
    """But for what is nominal, or a default."""
    for name, file in (("transformers", "config.json"), ("open_clip", "open_clip_config.json")):
        write_weights(first, tmp_path / name, name)
        ours, theirs = (
            json.loads((folder / name / file).read_text()) for folder in (tmp_path, GOLDEN)
        )
        if name == "open_clip":
            ours, theirs = ours["model_cfg"], theirs["model_cfg"]
            ours["vision_cfg"].pop("timm_model_name"), theirs["vision_cfg"].pop("timm_model_name")
            assert int(40 * ours["text_cfg"].pop("mlp_ratio")) == 96
            theirs["text_cfg"].pop("mlp_ratio"), theirs["text_cfg"].pop("hf_tokenizer_name")
            assert ours == theirs
        else:
            assert ours["text_config"].items() <= theirs["text_config"].items()
            assert ours["vision_config"].items() <= theirs["vision_config"].items()


def test_naflex_is_refused_with_the_reason(tmp_path):
    shutil.copytree(GOLDEN / "transformers", tmp_path / "naflex")
    shutil.copy(GOLDEN / "naflex/config.json", tmp_path / "naflex/config.json")
    with pytest.raises(ValueError, match=r"'siglip2' is NaFlex, which reads .* no grid"):
        read_weights(tmp_path / "naflex")
    arrays = dict(np.load(GOLDEN / "big_vision_stacked.npz"))
    kernel = arrays["params/img/embedding/kernel"]
    arrays["params/img/embedding/kernel"] = kernel.reshape(-1, kernel.shape[-1])
    np.savez(tmp_path / "naflex.npz", **arrays)
    with pytest.raises(ValueError, match=r"NaFlex kind, which reads .* no grid"):
        read_weights(tmp_path / "naflex.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vision_config": {"vision_use_head": False}}, "expected the attention head"),
        ({"text_config": {"projection_size": 40}}, "text embeddings of 40 numbers; expected 48"),
        ({"vision_config": {"num_attention_heads": 7}}, "7 does not divide hidden_size 48"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act is 'relu'"),
        ({"model_type": "clip"}, "expected 'siglip' .SiglipModel, with both"),
    ],
)
def test_settings_of_other_models_are_refused(change, message, tmp_path):
    shutil.copytree(GOLDEN / "transformers", tmp_path / "folder")
    path = tmp_path / "folder/config.json"
    settings = json.loads(path.read_text())
    for name, value in change.items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "folder")


def test_open_clip_says_gelu_and_epsilon(tmp_path):
    shutil.copytree(GOLDEN / "open_clip", tmp_path / "folder")
    path = tmp_path / "folder/open_clip_config.json"
    settings = json.loads(path.read_text())
    settings["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base_patch16_siglip_256"
    del settings["model_cfg"]["text_cfg"]["act_kwargs"]
    path.write_text(json.dumps(settings))
    config = read_weights(path.parent).config
    assert (config.vision.activation, config.text.activation) == ("gelu", "gelu")
    stated = read_weights(path.parent, activation="gelu_tanh", head_width=6).config
    assert (stated.vision.activation, stated.text.activation) == ("gelu_tanh", "gelu_tanh")
    assert (stated.vision.head_width, stated.text.head_width) == (6, 10)
    settings["model_cfg"]["text_cfg"]["no_causal_mask"] = False
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no_causal_mask=False"):
        read_weights(path.parent)
    path.unlink()
    with pytest.raises(ValueError, match="which tells heads and activations"):
        read_weights(path.parent)


def test_formats_that_would_compute_something_else_are_refused(tmp_path):
    b16 = ClipWeights(CLIP_SIZES["siglip2-base-patch16-512"], {})
    alone = ClipWeights(dataclasses.replace(b16.config, text=None), {})
    with pytest.raises(ValueError, match="there is no text tower"):
        write_weights(alone, tmp_path / "x", "open_clip")
    exact = dataclasses.replace(b16.config.vision, activation="gelu")
    exact = ClipWeights(dataclasses.replace(b16.config, vision=exact), {})
    with pytest.raises(ValueError, match="it computes gelu_tanh and LayerNorms"):
        write_weights(exact, tmp_path / "x.npz", "big_vision")
    with pytest.raises(ValueError, match="computes gelu in vit_base_patch16_siglip_512, and these"):
        write_weights(b16, tmp_path / "x", "open_clip")
    with pytest.raises(ValueError, match="holds image towers of VisionConfig"):
        write_weights(exact, tmp_path / "x.pt", "openai")
    for path in ("x", "x.safetensors"):
        assert default_format(path, b16.config) == "transformers"
    assert default_format("x.npz", b16.config) == "big_vision"
    assert choose_format(exact, "folder_of_open_clip", None) == "open_clip"


def test_timm_computes_what_we_say_it_does():
    timm = pytest.importorskip("timm")
    names = [name for name in timm.list_models("vit_*_siglip_*") if "gap" not in name]
    assert len(names) > 10
    for name in names:
        kwargs = timm.models.vision_transformer
        tower = kwargs.__dict__[name](pretrained=False, depth=1, embed_dim=48, num_heads=4)
        act = type(tower.blocks[0].mlp.act).__name__
        assert (act == "GELUTanh") == (timm_activation(name) == "gelu_tanh"), name


def test_the_tokenizer_goes_along_and_its_path_does_not(tmp_path):
    config = CLIP_SIZES["siglip_tiny-random"]
    text = SigLipTextConfig(64, 1, 70, 16, 64, head_width=16, mlp_width=96)
    weights = zeros_of(dataclasses.replace(config, text=text))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    write_weights(weights, tmp_path / "first/model.npz", "big_vision")
    assert read_weights(tmp_path / "first/model.npz").config.text.tokenizer is None
    file = unpacked("tokenizer_siglip", "spiece.model", tmp_path)
    stated = read_weights(tmp_path / "first/model.npz", tokenizer=str(file))
    assert stated.config.text.tokenizer.path == str(file)
    write_weights(stated, tmp_path / "second/tuned.safetensors", "transformers")
    write_weights(stated, tmp_path / "folder", "transformers")
    for path in ("second/tuned.safetensors", "folder"):
        again = read_weights(tmp_path / path)
        assert again.config == stated.config
        assert str(tmp_path) not in repr(again.config)
        assert pathlib.Path(again.config.text.tokenizer.path).name == "spiece.model"
        assert pathlib.Path(again.config.text.tokenizer.path) != file
    content = (tmp_path / "second/tuned.safetensors").read_bytes()
    assert str(tmp_path).encode() not in content
    unpacked("tokenizer_gemma", "tokenizer.model", tmp_path / "second")
    (tmp_path / "second/spiece.model").unlink()
    with pytest.raises(ValueError, match="another tokenizer than that of the weights"):
        read_weights(tmp_path / "second/tuned.safetensors")
    with pytest.raises(ValueError, match="choose another folder"):
        write_weights(stated, tmp_path / "second/more.safetensors", "transformers")
    with pytest.raises(ValueError, match="has no meaning for these weights"):
        read_weights(openai_vit(tmp_path), tokenizer=str(file))


def openai_vit(where):
    path = where / "vit.safetensors"
    write_weights(zeros_of(CLIP_SIZES["tiny"]), path, "openai")
    return path


def test_a_text_tower_brings_scale_and_bias_of_its_similarities(first):
    other = dataclasses.replace(
        first, config=dataclasses.replace(
            first.config, vision=dataclasses.replace(first.config.vision, logit_scale=7.0)
        )
    )  # fmt: skip
    alone = image_tower(other)
    assert alone.config.text is None and isinstance(alone.config.vision, SigLipVisionConfig)
    assert with_text_of(alone, first, "first").config == first.config


@pytest.mark.parametrize(
    "source",
    [*LAYOUTS, "random"],
)
def test_transformers_computes_the_same(source):
    if source == "random":
        found = verify(None, open_weights("random:siglip_tiny-random"))
    else:
        found = verify(GOLDEN / source, read_weights(GOLDEN / source))
    assert [comparison.inputs for comparison in found] == [
        "2 images", "3 texts", "5 masks on each image"
    ]  # fmt: skip
    assert all(comparison.largest_difference < 1e-6 for comparison in found)
