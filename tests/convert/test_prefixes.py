"""What trainers and torch.compile put before names is looked through, whatever it is called."""

import json
import logging

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

import maft_jax
from maft_jax.convert.formats import read_weights
from maft_jax.convert.openai import to_openai
from tests.convert import library_models


@pytest.fixture(scope="module")
def tensors():
    return library_models.openai().tensors()


def check_read(path, tensors):
    weights = read_weights(path)
    assert weights.format_name == "openai"
    read = to_openai(weights.parameters())
    assert set(read) == set(tensors)
    for name, value in read.items():
        np.testing.assert_array_equal(value, tensors[name])
    return weights


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model_state_dict.",
        "model_state_dict.module._orig_mod.",
        "state_dict.model.",
        "state_dict.model.clip.",
        "clip.",
        "clip_model.",
        "model.clip_model.",
        "net.student.",
    ],
)
def test_any_prefix_of_all_names_is_looked_through(tensors, tmp_path, prefix):
    path = tmp_path / "clip.safetensors"
    safetensors.torch.save_file({prefix + name: x for name, x in tensors.items()}, path)
    assert not check_read(path, tensors).ignored


def test_a_part_that_was_compiled_by_itself_is_found(tensors, tmp_path):
    renamed = {name.replace("visual.", "visual._orig_mod.", 1): x for name, x in tensors.items()}
    renamed = {f"module.{name}": x for name, x in renamed.items()}
    torch.save(renamed, tmp_path / "clip.pt")
    check_read(tmp_path / "clip.pt", tensors)


def test_nested_dictionaries_of_old_files_are_read_like_those_of_new_ones(tensors, tmp_path):
    content = {"state_dict": {f"model.{name}": x for name, x in tensors.items()}, "epoch": 3}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    check_read(tmp_path / "old.pt", tensors)


def test_tensors_beside_the_prefix_are_named(tensors, tmp_path, caplog):
    path = tmp_path / "system.pt"
    clip = {f"clip.{name}": x for name, x in tensors.items()}
    torch.save({"net": clip | {"head.weight": torch.zeros(3)}}, path)
    with caplog.at_level(logging.WARNING):
        weights = check_read(path, tensors)
    assert list(weights.ignored) == ["net.head.weight"]
    assert f"{path}: the CLIP is read below the prefix 'net.clip.'; 1 tensors" in caplog.text


def test_two_clips_in_a_file_are_refused_by_their_prefixes(tensors, tmp_path):
    both = {f"{name}.{tensor}": x for name in ("student", "ema") for tensor, x in tensors.items()}
    torch.save(both, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"two\.pt: expected one CLIP, found 2.*'ema\.', 'student"):
        read_weights(tmp_path / "two.pt")


def test_an_image_tower_without_projection_is_refused_with_the_model_to_save(tmp_path):
    settings = library_models.transformers_settings().vision_config
    transformers.CLIPVisionModel(settings).save_pretrained(tmp_path)
    expected = "CLIPVisionModel, which has no visual_projection.*CLIPVisionModelWithProjection"
    with pytest.raises(ValueError, match=expected):
        maft_jax.load(tmp_path)
    file = tmp_path / "model.safetensors"  # as transformers 4 names them
    old = {f"vision_model.{name}": x for name, x in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(old, file)
    with pytest.raises(ValueError, match=expected):
        maft_jax.load(tmp_path)


def test_a_text_tower_alone_is_refused_by_its_name(tmp_path):
    transformers.CLIPTextModelWithProjection(
        library_models.transformers_settings().text_config
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text tower alone; expected CLIPModel"):
        maft_jax.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B/16", "no such file or folder; did you mean openai:ViT-B/16, which"),
        ("ViT-L/14@336px", "did you mean openai:ViT-L/14@336px, which is downloaded once"),
        ("ViT-L-14-336px", "did you mean openai:ViT-L/14@336px, which"),
        ("EVA02-B-16", "no such file, and a name alone is not enough.*random:EVA02-B"),
        ("random", "no such file, and a name alone is not enough.*random:tiny to try"),
        ("openai/clip-vit-base-patch16", "did you mean hf:openai/clip-vit-base-patch16, which"),
        ("hf-hub:laion/some-clip", "did you mean hf:laion/some-clip, which"),
        ("weights/clip.pt", "no such file; expected a file of CLIP weights"),
    ],
)
def test_names_of_models_are_answered_with_how_to_get_them(name, message):
    with pytest.raises(ValueError, match=message):
        maft_jax.load(name)


def test_a_checkpoint_of_a_run_is_answered_with_the_run_and_the_step(tmp_path):
    (tmp_path / "run/checkpoints/6/state").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps({}))
    for part in ("checkpoints/6", "checkpoints/6/state", "checkpoints/7", "checkpoints"):
        with pytest.raises(ValueError, match=f"a part of the training run {tmp_path}/run") as error:
            maft_jax.load(tmp_path / "run" / part)
        assert ("step=6" in str(error.value)) == ("6" in part)
