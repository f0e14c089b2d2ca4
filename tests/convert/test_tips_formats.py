"""TIPS's layouts: read, written, two files as one source, and told apart."""

import dataclasses
import gzip
import json
import shutil

import jax
import numpy as np
import pytest

from maft_jax.convert.formats import default_format, read_weights, why_not, write_weights
from maft_jax.convert.state_dict_io import open_state_dict, write_state_dict
from maft_jax.convert.stored_tensor import in_memory
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.text.sentencepiece_tokenizer import TokenizerFile
from maft_jax.models.text.tips_text import TipsTextConfig
from tests.golden_files import GOLDEN

pytestmark = pytest.mark.slow

FOLDER = GOLDEN / "tips/swiglu"
PARTS = ("vision", "text")


@pytest.fixture(scope="module")
def weights():
    """By layout."""
    return {
        "tips": read_weights(FOLDER / "scenic_text.npz"),
        "tips_torch": read_weights(FOLDER / "torch_vision.npz", head_width=16),
    }


def values(path):
    return {name: tensor.read() for name, tensor in open_state_dict(path)[0].items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_two_files_are_one_source_whichever_is_named(weights, tmp_path):
    assert weights["tips"].format_name == "tips" and weights["tips"].config.text is not None
    assert weights["tips_torch"].format_name == "tips_torch"
    shutil.copyfile(FOLDER / "scenic_vision.npz", tmp_path / "a_vision.npz")
    alone = read_weights(tmp_path / "a_vision.npz")
    assert alone.config.text is None and alone.config.vision.width == 32
    shutil.copyfile(FOLDER / "scenic_text.npz", tmp_path / "b_text.npz")
    with pytest.raises(ValueError, match=r"text tower alone.*b_vision\.npz"):
        read_weights(tmp_path / "b_text.npz")


def test_layouts_give_equal_parameters_and_their_own_arithmetic(weights):
    scenic, torch = weights["tips"], weights["tips_torch"]
    found, expected = ({k: x.read() for k, x in w.tensors.items()} for w in (torch, scenic))
    scale, other = found.pop("logit_scale"), expected.pop("logit_scale")
    np.testing.assert_allclose([scale, other], np.log(8), rtol=1e-6)
    assert_equal(found, expected)
    assert scenic.config.vision.activation == "gelu_tanh"
    assert scenic.config.text.norm_epsilon == 1e-6
    assert torch.config.vision.activation == "gelu" and torch.config.text.norm_epsilon == 1e-5
    stated = read_weights(FOLDER / "torch_vision.npz", head_width=16, activation="gelu_tanh")
    assert stated.config == scenic.config
    assert scenic.config.vision.gated and scenic.config.vision.logit_scale == 8


@pytest.mark.parametrize(("name", "layout"), [("tips", "scenic"), ("tips_torch", "torch")])
def test_files_come_back(weights, tmp_path, name, layout):
    write_weights(weights[name], tmp_path / "back_vision.npz", name, "source")
    for part in PARTS:
        found, expected = (
            values(folder / f"{stem}_{part}.npz")
            for folder, stem in ((tmp_path, "back"), (FOLDER, layout))
        )
        if name == "tips_torch" and part == "vision":
            del found["mask_token"], expected["mask_token"]  # which nothing reads
        assert_equal(found, expected)


def test_one_file_holds_both_where_its_name_is_of_neither(weights, tmp_path):
    for ending in (".npz", ".safetensors"):
        path = tmp_path / f"both{ending}"
        write_weights(weights["tips"], path, "tips")
        assert read_weights(path).config == weights["tips"].config
        stated = read_weights(path, activation="gelu").config
        assert stated == weights["tips_torch"].config


def test_factors_and_the_first_position_are_folded(tmp_path):
    tensors = {part: values(FOLDER / f"torch_{part}.npz") for part in PARTS}
    tensors["vision"] = {name: np.float32(x) for name, x in tensors["vision"].items()}
    plain = read_weights(FOLDER / "torch_vision.npz", head_width=16).parameters()["visual"]
    image = tensors["vision"]
    image["blocks.1.ls1.gamma"] = np.float32([0.5, 2] * 16)
    image["blocks.0.ls2.gamma"] = np.float32([2, 1] * 16)
    image["pos_embed"][0, 0] = 0.25
    for part in PARTS:
        write_state_dict(in_memory(tensors[part]), tmp_path / f"x_{part}.npz")
    visual = read_weights(tmp_path / "x_vision.npz", head_width=16).parameters()["visual"]
    gamma = np.float32([0.5, 2] * 16)
    for kind in ("kernel", "bias"):
        found, before = (v["blocks_1"]["attn"]["out_proj"][kind] for v in (visual, plain))
        np.testing.assert_array_equal(found, before * gamma)
        found, before = (v["blocks_0"]["mlp"]["c_proj"][kind] for v in (visual, plain))
        np.testing.assert_array_equal(found, before * np.float32([2, 1] * 16))
    moved = visual["class_embedding"] - plain["class_embedding"]
    np.testing.assert_allclose(moved, [[0.25] * 32, [0] * 32], atol=1e-3)


def test_hub_folders_are_read_and_written(weights, tmp_path):
    hub = tmp_path / "official"
    hub.mkdir()
    tensors = {
        f"{part}_encoder.{name}": value
        for part in PARTS
        for name, value in values(FOLDER / f"torch_{part}.npz").items()
        if name != "temperature"
    }
    write_state_dict(in_memory(tensors), hub / "model.safetensors")
    shutil.copyfile(FOLDER / "hub_config.json", hub / "config.json")
    found = read_weights(hub)
    assert found.format_name == "tips_hub" and found.config == weights["tips_torch"].config
    write_weights(found, tmp_path / "back", "tips_hub", "source")
    back = values(tmp_path / "back/model.safetensors")
    back["vision_encoder.mask_token"] = tensors["vision_encoder.mask_token"]  # nothing reads it
    assert_equal(back, tensors)
    settings = [json.loads((x / "config.json").read_text()) for x in (tmp_path / "back", hub)]
    for name, value in settings[1]["vision_config"].items():
        assert name == "mlp_ratio" or settings[0]["vision_config"][name] == value
    assert settings[0]["text_config"] == settings[1]["text_config"]
    assert settings[0]["temperature_init_value"] == settings[1]["temperature_init_value"]


def test_arithmetic_of_another_layout_is_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="read them with activation=gelu_tanh"):
        write_weights(weights["tips_torch"], tmp_path / "x.npz", "tips")
    with pytest.raises(ValueError, match=r"state a divisor \(head_width\)"):
        read_weights(FOLDER / "torch_vision.npz")
    with pytest.raises(ValueError, match="head_width=8: its tensors have heads of 16"):
        read_weights(FOLDER / "scenic_vision.npz", head_width=8)


def test_a_folder_by_default_is_the_hubs_and_its_reason_is_the_one_given(weights, tmp_path):
    scenic, torch = weights["tips"].config, weights["tips_torch"].config
    assert {default_format("name", config) for config in (scenic, torch)} == {"tips_hub"}
    assert why_not("tips_hub", torch) is None
    assert why_not("tips_hub", scenic).startswith("it is computed with gelu and an epsilon")
    with pytest.raises(ValueError, match=r"; a file holds them, by a name such as x\.safetensors$"):
        write_weights(weights["tips"], tmp_path / "x", "tips_hub")
    with pytest.raises(ValueError, match=r"in the format maft: [^;]*$"):
        write_weights(weights["tips"], tmp_path / "x", "maft")
    with pytest.raises(ValueError, match="cannot be written in the format tips_hub"):
        write_weights(weights["tips"], "/", "tips_hub")


def test_stated_heads_are_the_image_towers(weights, tmp_path):
    write_weights(weights["tips_torch"], tmp_path / "folder", "tips_hub")
    settings = tmp_path / "folder/config.json"
    content = json.loads(settings.read_text())
    content["text_config"]["num_attention_heads"] = 4
    settings.write_text(json.dumps(content))
    tensors = tmp_path / "folder/model.safetensors"
    bare = {name: tensor.read() for name, tensor in open_state_dict(tensors)[0].items()}
    write_state_dict(in_memory(bare), tensors)  # without our own metadata
    config = read_weights(tmp_path / "folder", head_width=16).config
    assert (config.vision.head_width, config.text.head_width) == (16, 8)


def test_heads_are_read_beside_the_files_and_names_with_params(weights, tmp_path):
    for layout, name in (("torch", "tips_torch"), ("scenic", "tips")):
        for part in PARTS:
            tensors = values(FOLDER / f"{layout}_{part}.npz")
            tensors = {f"params/{key}": value for key, value in tensors.items()}
            write_state_dict(in_memory(tensors), tmp_path / f"{layout}_{part}.npz")
        (tmp_path / "config.json").write_text('{"num_heads": 2, "text_num_heads": 2}')
        found = read_weights(tmp_path / f"{layout}_text.npz")
        assert found.config == weights[name].config and not found.ignored
        expected = {key: x.read() for key, x in weights[name].tensors.items()}
        assert_equal({key: x.read() for key, x in found.tensors.items()}, expected)
    (tmp_path / "config.json").write_text('{"num_heads": 2, "text_num_heads": 4}')
    config = read_weights(tmp_path / "torch_vision.npz").config
    assert (config.vision.head_width, config.text.head_width) == (16, 8)
    (tmp_path / "config.json").write_text('{"num_heads": 5}')
    with pytest.raises(ValueError, match="num_heads: expected a divisor of the width, 32, got 5"):
        read_weights(tmp_path / "torch_vision.npz")


def test_weights_of_flax_go_to_pytorch_where_that_is_stated(tmp_path):
    as_torch = read_weights(FOLDER / "scenic_vision.npz", activation="gelu")
    write_weights(as_torch, tmp_path / "folder", "tips_hub")
    again = read_weights(tmp_path / "folder")
    assert again.config == as_torch.config and again.config.vision.activation == "gelu"


def test_texts_are_read_as_tensorflow_lowers_them(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(gzip.decompress((GOLDEN / "tips/tokenizer.model.gz").read_bytes()))
    expected = json.loads((GOLDEN / "tips/tokenizer_expected.json").read_text())
    text = TipsTextConfig(16, 1, expected["vocab_size"], 32, head_width=8)
    with pytest.raises(ValueError, match="tokenizer is missing"):
        text.tokenize(["x"])
    rows = text.with_tokenizer(TokenizerFile.open(path)).tokenize(expected["texts"])
    np.testing.assert_array_equal(rows, expected["padded"])
    np.testing.assert_array_equal(rows == 0, expected["paddings"])
    with pytest.raises(ValueError, match="expected one of 9"):
        TipsTextConfig(16, 1, 9, 32, head_width=8).with_tokenizer(TokenizerFile.open(path))


@pytest.mark.parametrize(
    ("size", "image", "text"),
    [
        ("tipsv2_b14", 86_296_320, 109_632_000),
        ("tipsv2_l14", 303_965_184, 183_924_736),
        ("tipsv2_so400m14", 413_329_392, 448_332_912),
        ("tipsv2_g14", 1_135_826_432, 389_133_312),
    ],
)
def test_published_sizes_have_the_published_parameters(size, image, text):
    config = CLIP_SIZES[size]
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=32_000))
    shapes = jax.eval_shape(lambda: random_parameters(config))
    count = {name: sum(x.size for x in jax.tree.leaves(shapes[name])) for name in shapes}
    assert count == {"visual": image, "text": text, "logit_scale": 1}
