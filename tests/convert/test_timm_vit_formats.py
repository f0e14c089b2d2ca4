"""Image towers of SigLIP and TIPS alone: timm's folders, and transformers' SiglipVisionModel."""

import dataclasses
import json

import numpy as np
import pytest

import maft_jax
from maft_jax.convert.conversion import image_tower, with_text_of
from maft_jax.convert.formats import read_weights, write_weights
from maft_jax.convert.state_dict_io import open_state_dict, write_state_dict
from maft_jax.convert.stored_tensor import in_memory
from maft_jax.convert.verification import verify
from maft_jax.runtime import tree_rules
from maft_jax.weights import open_weights
from tests.golden_files import GOLDEN


def whole(name):
    if name == "siglip":
        return read_weights(GOLDEN / "siglip/transformers")
    return read_weights(GOLDEN / "tips" / name / "torch_vision.npz", head_width=16)


def without_our_metadata(folder):
    path = folder / "model.safetensors"
    tensors = {name: tensor.read() for name, tensor in open_state_dict(path)[0].items()}
    write_state_dict(in_memory(tensors), path)
    return tensors


@pytest.mark.parametrize("name", ["siglip", "swiglu"])
def test_a_tower_goes_to_timm_and_comes_back(name, tmp_path):
    weights = whole(name)
    with pytest.raises(ValueError, match="holds text towers of TextConfig, not"):
        write_weights(weights, tmp_path / "x", "timm")
    write_weights(image_tower(weights), tmp_path / "timm", "timm", "source")
    without_our_metadata(tmp_path / "timm")
    again = read_weights(tmp_path / "timm")
    assert again.format_name == "timm" and not again.ignored and again.config.text is None
    merged = with_text_of(again, weights, "golden")
    assert merged.config == weights.config
    found, expected = (tree_rules.flatten(x.parameters()) for x in (merged, weights))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip", "mlp", "swiglu"])
def test_timm_computes_the_same(name, tmp_path):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    if name == "mlp":
        weights = read_weights(GOLDEN / "tips/mlp/scenic_vision.npz", activation="gelu")
    else:
        weights = whole(name)
    write_weights(image_tower(weights), tmp_path / "timm", "timm")
    clip = maft_jax.load(tmp_path / "timm")
    side = clip.config.vision.image_size
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    np.testing.assert_allclose(clip.encode_image(images), found, atol=1e-6)
    comparison = verify(tmp_path / "timm", read_weights(tmp_path / "timm"))[0]
    assert comparison.library.startswith("timm") and comparison.largest_difference < 1e-6


def test_what_tensors_do_not_tell_is_asked_for(tmp_path):
    write_weights(image_tower(whole("siglip")), tmp_path / "timm", "timm")
    tensors = without_our_metadata(tmp_path / "timm")
    settings = json.loads((tmp_path / "timm/config.json").read_text())
    assert settings["model_args"]["act_layer"] == "gelu_tanh"
    settings["model_args"] = {}
    (tmp_path / "timm/config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"state a divisor \(head_width\), or num_heads"):
        read_weights(tmp_path / "timm")
    stated = read_weights(tmp_path / "timm", head_width=6).config.vision
    assert (stated.head_width, stated.activation) == (6, "gelu"), "as timm's name has it"
    assert read_weights(tmp_path / "timm", head_width=6, activation="gelu_tanh").config.vision == (
        dataclasses.replace(stated, activation="gelu_tanh")
    )
    settings["architecture"] = "vit_base_patch16_224"
    (tmp_path / "timm/config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="expected a model of timm with _siglip_ in its name"):
        read_weights(tmp_path / "timm")
    write_state_dict(in_memory(tensors), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"add one: cli\.convert_weights --text_from"):
        open_weights(str(tmp_path / "bare.safetensors"), head_width=12, needs_text=True)


def test_what_the_arguments_of_a_tips_say_is_not_passed_over(tmp_path):
    weights = read_weights(GOLDEN / "tips/mlp/scenic_vision.npz", activation="gelu")
    write_weights(image_tower(weights), tmp_path / "timm", "timm")
    without_our_metadata(tmp_path / "timm")
    settings = json.loads((tmp_path / "timm/config.json").read_text())
    settings["model_args"]["act_layer"] = "gelu_tanh"
    (tmp_path / "timm/config.json").write_text(json.dumps(settings))
    assert read_weights(tmp_path / "timm").config.vision.activation == "gelu_tanh"
    with pytest.raises(ValueError, match=r"state a divisor \(head_width\)"):
        read_weights(tmp_path / "timm", head_width=0)
    settings["model_args"]["act_layer"] = "relu"
    (tmp_path / "timm/config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="act_layer: expected one of"):
        read_weights(tmp_path / "timm")


def test_registers_of_dinov2_are_no_class_token(tmp_path):
    write_weights(image_tower(whole("swiglu")), tmp_path / "timm", "timm")
    tensors = without_our_metadata(tmp_path / "timm")
    tensors["reg_token"] = np.repeat(tensors["reg_token"], 4, axis=1)
    write_state_dict(in_memory(tensors), tmp_path / "timm/model.safetensors")
    with pytest.raises(ValueError, match="with 4 registers, as DINOv2 has"):
        read_weights(tmp_path / "timm")


def test_transformers_image_tower_alone(tmp_path):
    """With the prefix of the whole model, as version 4 wrote it, and without, as 5 does."""
    alone = image_tower(whole("siglip"))
    write_weights(alone, tmp_path / "with", "transformers")
    tensors = without_our_metadata(tmp_path / "with")
    assert json.loads((tmp_path / "with/config.json").read_text())["model_type"] == (
        "siglip_vision_model"
    )
    (tmp_path / "without").mkdir()
    (tmp_path / "without/config.json").write_text((tmp_path / "with/config.json").read_text())
    bare = {name.removeprefix("vision_model."): value for name, value in tensors.items()}
    write_state_dict(in_memory(bare), tmp_path / "without/model.safetensors")
    expected = tree_rules.flatten(alone.parameters())
    for folder in ("with", "without"):
        weights = read_weights(tmp_path / folder)
        assert weights.format_name == "transformers" and weights.config.text is None
        found = tree_rules.flatten(weights.parameters())
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.slow
def test_transformers_computes_the_same_with_an_image_tower_alone(tmp_path):
    library = pytest.importorskip("transformers")
    settings = json.loads((GOLDEN / "siglip/transformers/config.json").read_text())
    model = library.SiglipVisionModel(library.SiglipVisionConfig(**settings["vision_config"]))
    model.save_pretrained(tmp_path / "theirs")
    weights = read_weights(tmp_path / "theirs")
    write_weights(weights, tmp_path / "ours", "transformers")
    for folder in ("theirs", "ours"):
        for comparison in verify(tmp_path / folder, read_weights(tmp_path / folder)):
            assert comparison.library.startswith("transformers")
            assert comparison.largest_difference < 1e-6
