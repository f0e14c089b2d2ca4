"""EVA-02 CLIP's two layouts: read, written, and told apart from others."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from maft_jax.convert.formats import ClipWeights, read_weights, write_weights
from maft_jax.convert.state_dict_io import open_state_dict, write_state_dict
from maft_jax.convert.stored_tensor import in_memory
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.encoder import MaskingSpec
from tests.golden_files import GOLDEN

FOLDER = GOLDEN / "eva02/patch16"
OFFICIAL = FOLDER / "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def official():
    return read_weights(OFFICIAL, head_width=16)


def digests(path):
    return {
        name: [list(tensor.shape), hashlib.sha256(tensor.read().tobytes()).hexdigest()[:16]]
        for name, tensor in open_state_dict(path)[0].items()
    }


def test_architecture_comes_from_tensors_and_settings(official):
    vision, text = official.config.vision, official.config.text
    assert (vision.width, vision.layers, vision.patch_size, vision.image_size) == (48, 3, 16, 64)
    assert (vision.embed_dim, vision.mlp_width, vision.heads) == (24, 128, 3)
    assert (text.layers, text.head_width, text.activation) == (2, 12, "gelu")
    assert official.format_name == "open_clip" and not official.ignored
    scale = np.exp(official.tensors["logit_scale"].read())
    assert vision.default_logit_scale == pytest.approx(scale) and scale < 100


def test_open_clips_file_comes_back_bit_for_bit(official, tmp_path):
    write_weights(official, tmp_path / "back.safetensors", "open_clip", "source")
    assert digests(tmp_path / "back.safetensors") == digests(OFFICIAL)
    again = read_weights(tmp_path / "back.safetensors")  # heads are in our own metadata
    assert again.config == official.config


def test_heads_are_read_beside_the_file(official, tmp_path):
    path = tmp_path / "eva.safetensors"
    values = {name: tensor.read() for name, tensor in open_state_dict(OFFICIAL)[0].items()}
    write_state_dict(in_memory(values), path)
    (tmp_path / "config.json").write_text('{"num_heads": 3, "text_num_heads": 2}')
    assert read_weights(path).config == official.config
    (tmp_path / "config.json").write_text('{"num_heads": 4, "text_num_heads": 4}')
    config = read_weights(path).config
    assert (config.vision.head_width, config.text.head_width) == (12, 6)


def test_authors_file_is_the_same_weights_under_other_names(official, tmp_path):
    theirs = json.loads((FOLDER / "eva_clip_names.json").read_text())
    path = tmp_path / "eva.safetensors"
    write_weights(official, path, "eva_clip", "source")
    assert digests(path) == theirs
    shutil.copyfile(FOLDER / "open_clip_config.json", tmp_path / "open_clip_config.json")
    again = read_weights(path)
    assert again.format_name == "eva_clip" and again.config == official.config
    assert again.tensors.keys() == official.tensors.keys()
    for name, tensor in again.tensors.items():
        np.testing.assert_array_equal(tensor.read(), official.tensors[name].read())


def test_a_folder_of_open_clip_tells_heads(official, tmp_path):
    write_weights(official, tmp_path / "folder", "open_clip")
    tensors = tmp_path / "folder/open_clip_model.safetensors"
    settings = json.loads((tmp_path / "folder/open_clip_config.json").read_text())["model_cfg"]
    assert settings["vision_cfg"]["head_width"] == 16 and settings["text_cfg"]["heads"] == 2
    bare = {name: tensor.read() for name, tensor in open_state_dict(tensors)[0].items()}
    write_state_dict(in_memory(bare), tensors)  # without our own metadata
    assert read_weights(tmp_path / "folder").config == official.config


def test_heads_that_nobody_tells_are_asked_for(tmp_path):
    shutil.copyfile(OFFICIAL, tmp_path / "alone.safetensors")
    with pytest.raises(ValueError, match=r"width 48.*state a divisor \(head_width\)"):
        read_weights(tmp_path / "alone.safetensors")
    with pytest.raises(ValueError, match="SwiGLU"):
        read_weights(OFFICIAL, head_width=16, activation="quick_gelu")


def test_mask_scales_are_written_where_they_were_tuned(official, tmp_path):
    parameters = official.parameters()
    masking = MaskingSpec(2, 64, mask_rule="maskclippp")
    for name, tuned in (("untuned", False), ("tuned", True)):
        if tuned:
            parameters["visual"]["blocks_2"]["mask_logit_scale"] = np.float32([-4.5, -5, -6])
        path = tmp_path / f"{name}.safetensors"
        weights = ClipWeights.of(official.config, parameters, masking)
        write_weights(weights, path, "open_clip")
        written = [x for x in open_state_dict(path)[0] if "mask_logit_scale" in x]
        assert written == (["visual.trunk.blocks.2.mask_logit_scale"] if tuned else [])
        again = read_weights(path)
        assert again.masking == masking
        for leaf, tensor in weights.tensors.items():
            np.testing.assert_array_equal(again.tensors[leaf].read(), tensor.read())


@pytest.mark.parametrize(
    ("size", "image", "text"),
    [
        ("EVA02-B-16", 86_263_040, 63_428_096),
        pytest.param("EVA02-L-14-336", 304_432_832, 123_650_304, marks=pytest.mark.slow),
    ],
)
def test_published_sizes_have_the_published_parameters(size, image, text):
    config = CLIP_SIZES[size]
    shapes = jax.eval_shape(lambda: random_parameters(config))
    scales = config.vision.layers * config.vision.heads  # of mask_logit_scale, MaskCLIP++'s
    count = {name: sum(x.size for x in jax.tree.leaves(shapes[name])) for name in shapes}
    assert count == {"visual": image + scales, "text": text, "logit_scale": 1}
