"""Reading and writing by format: names, wrappers, destinations, settings that we leave."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from maft_jax.convert import formats
from maft_jax.convert.formats import (
    FORMATS,
    ClipWeights,
    default_format,
    read_weights,
    write_weights,
)
from maft_jax.convert.openai import to_openai
from maft_jax.models.clip import CLIP_SIZES, ClipConfig, random_parameters
from maft_jax.runtime import tree_rules
from tests.convert import library_models


@pytest.fixture(scope="module")
def config() -> ClipConfig:
    return CLIP_SIZES["tiny"]


@pytest.fixture(scope="module")
def weights(config) -> ClipWeights:
    return ClipWeights.of(config, random_parameters(config))


def with_activation(config: ClipConfig, activation: str) -> ClipConfig:
    vision, text = (
        dataclasses.replace(tower, activation=activation) for tower in (config.vision, config.text)
    )
    return ClipConfig(vision, text)


@pytest.mark.parametrize(
    ("name", "activation", "expected"),
    [
        ("clip.safetensors", "quick_gelu", "openai"),
        ("clip.pt", "quick_gelu", "openai"),
        ("clip.pt", "gelu", "open_clip"),
        ("clip", "gelu", "transformers"),
        ("clip-v1.5", "quick_gelu", "transformers"),
        ("clip.npz", "quick_gelu", "big_vision"),
    ],
)
def test_destinations_name_tells_the_format(config, name, activation, expected):
    assert default_format(name, with_activation(config, activation)) == expected


def test_openai_layout_is_for_what_openais_code_computes(weights, tmp_path):
    gelu = dataclasses.replace(weights, config=with_activation(weights.config, "gelu"))
    message = "format openai: it computes quick_gelu and these weights expect gelu"
    with pytest.raises(ValueError, match=message):
        write_weights(gelu, tmp_path / "clip.pt", "openai")
    narrow = dataclasses.replace(weights.config.vision, head_width=32)
    narrow = dataclasses.replace(weights, config=ClipConfig(narrow, weights.config.text))
    with pytest.raises(ValueError, match="its heads are 64 wide"):
        write_weights(narrow, tmp_path / "clip.pt", "openai")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "format_name", "message"),
    [
        ("clip.bin", "openai", r"expected a name that ends in \.safetensors or \.pt for .* openai"),
        ("clip.npz", "openai", r"expected a name that ends in \.safetensors or \.pt"),
        ("clip.pt", "transformers", "transformers is a folder; give a name without ending"),
        ("no/clip", "transformers", "no does not exist; create it first"),
        ("no/clip.pt", "openai", "no does not exist; create it first"),
        ("clip", "tensorflow", r"unknown weight format 'tensorflow'; expected one of \['openai'"),
        ("clip.npz", "big_vision", "cannot be written in the format big_vision"),
        ("clip", "maft", "cannot be written in the format maft"),
    ],
)
def test_destination_that_cannot_be_is_refused(weights, tmp_path, name, format_name, message):
    with pytest.raises(ValueError, match=message):
        write_weights(weights, tmp_path / name, format_name)
    assert os.listdir(tmp_path) == []


def test_existing_folder_is_never_written_over(weights, tmp_path):
    (tmp_path / "clip").mkdir()
    write_weights(weights, tmp_path / "clip", "transformers")  # it was empty
    before = (tmp_path / "clip" / "model.safetensors").read_bytes()
    names = sorted(os.listdir(tmp_path / "clip"))
    with pytest.raises(ValueError, match=r"exists already.*choose a new name"):
        write_weights(weights, tmp_path / "clip", "open_clip")
    assert sorted(os.listdir(tmp_path / "clip")) == names
    assert (tmp_path / "clip" / "model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["clip"]


@pytest.mark.parametrize("name", ["clip", "clip.safetensors"])
def test_failing_write_leaves_nothing(weights, tmp_path, monkeypatch, name):
    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_weights(weights, tmp_path / name, "open_clip")
    assert os.listdir(tmp_path) == []


def test_unknown_dtype_is_refused(weights, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="dtype: expected float32 or source, got 'float16'"):
        # past the annotation, which only tests check
        getattr(write_weights, "__wrapped__", write_weights)(
            weights, tmp_path / "clip.pt", "openai", dtype="float16"
        )


def test_progress_adds_up_to_the_bytes_of_all_tensors(weights, tmp_path):
    steps = []
    write_weights(weights, tmp_path / "clip.safetensors", "openai", progress=steps.append)
    assert sum(steps) == sum(tensor.nbytes for tensor in weights.tensors.values())
    assert len(steps) > 50


def test_safetensors_of_ours_tell_the_architecture(weights, tmp_path):
    """A state dict alone would be taken for quick_gelu with heads of 64."""
    vision = dataclasses.replace(weights.config.vision, activation="gelu", head_width=32)
    text = dataclasses.replace(weights.config.text, activation="gelu", head_width=16)
    expected = ClipConfig(vision, text)
    path = tmp_path / "clip.safetensors"
    write_weights(dataclasses.replace(weights, config=expected), path, "open_clip")
    assert read_weights(path).config == expected
    stated = read_weights(path, activation="quick_gelu", head_width=64).config
    assert (stated.vision.activation, stated.text.activation) == ("quick_gelu", "quick_gelu")
    assert (stated.vision.head_width, stated.text.head_width) == (64, 16)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "pt", "transformers asks for it"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "corrupt metadata 'maft_jax'"),
        ('{"format": "openai"}', "corrupt metadata 'maft_jax': vision is missing"),
        ('{"format": "openai", "vision": {"depth": 3}, "text": null}', "corrupt metadata"),
        (
            '{"format": "pickle"}',
            "corrupt metadata 'maft_jax': format: expected one of .* got 'pickle'",
        ),
    ],
)
def test_corrupt_metadata_is_refused(weights, tmp_path, metadata, message):
    path = tmp_path / "clip.safetensors"
    tensors = to_openai(weights.parameters())
    safetensors.numpy.save_file(tensors, path, metadata={"maft_jax": metadata})
    with pytest.raises(ValueError, match=rf"clip\.safetensors: .*{message}|{message}"):
        read_weights(path)


@pytest.mark.parametrize(
    "wrapper", [("state_dict", "module."), ("state_dict", ""), ("model", ""), (None, "module.")]
)
def test_what_a_trainer_wraps_around_weights_is_left_out(tmp_path, wrapper):
    library = library_models.openai()
    key, prefix = wrapper
    tensors = {prefix + name: value for name, value in library.tensors().items()}
    optimizer = torch.optim.AdamW(library.model.parameters())
    library.model.encode_image(torch.zeros(1, 3, 48, 48)).sum().backward()
    optimizer.step()
    checkpoint = {key: tensors, "optimizer": optimizer.state_dict()} if key else tensors
    torch.save(checkpoint, tmp_path / "epoch_1.pt")
    weights = read_weights(tmp_path / "epoch_1.pt")
    assert weights.format_name == "openai"
    expected = library.tensors()
    for name, value in to_openai(weights.parameters()).items():
        np.testing.assert_array_equal(value, expected[name])
    assert bool(weights.ignored) == bool(key)
    for name, reason in weights.ignored.items():
        assert name.startswith("optimizer.") and "trainer's own state" in reason


def test_format_can_be_stated(tmp_path):
    path = library_models.open_clip().save(tmp_path)
    assert read_weights(path).format_name == "open_clip"
    stated = read_weights(path, format_name="openai")
    assert stated.format_name == "openai" and stated.config.vision.activation == "quick_gelu"
    with pytest.raises(ValueError, match="another of transformers; its names are none of these"):
        read_weights(path, format_name="transformers")
    with pytest.raises(ValueError, match="unknown weight format 'keras'"):
        read_weights(path, format_name="keras")


def test_every_format_describes_itself():
    for name, format in FORMATS.items():
        assert format.name == name and len(format.description) > 20


def test_transformers_folder_can_be_written_as_any_other_format(tmp_path):
    weights = read_weights(library_models.transformers_clip().save(tmp_path / "source"))
    expected = tree_rules.flatten(weights.parameters())
    for name in ("open_clip", "open_clip_custom_text", "transformers"):
        write_weights(weights, tmp_path / name, name)
        again = read_weights(tmp_path / name)
        assert again.config == weights.config and again.format_name == name
        for path, leaf in tree_rules.flatten(again.parameters()).items():
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


MEASURE = """
import json, pathlib, shutil, sys
from maft_jax import weights
from maft_jax.convert import formats

def kilobytes(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])

folder, peaks = pathlib.Path(sys.argv[1]), {}
def measured(name, function):
    formats.read_weights(folder / "clip.safetensors")  # so that all code is loaded before
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    before = kilobytes("VmRSS")
    function()
    peaks[name] = 1024 * (kilobytes("VmHWM") - before)

def convert(source, destination, format):
    formats.write_weights(formats.read_weights(folder / source), folder / destination, format)

measured("folder", lambda: convert("clip.safetensors", "transformers", "transformers"))
measured("from folder", lambda: convert("transformers", "a.safetensors", "openai"))
measured("from pt", lambda: convert("clip.pt", "b.safetensors", "openai"))
measured("load", lambda: weights.open_weights(str(folder / "clip.pt")).parameters())
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_conversion_needs_little_memory_and_loading_not_much_more_than_the_weights(tmp_path):
    vision = dataclasses.replace(CLIP_SIZES["ViT-L-14"].vision, layers=4)
    text = dataclasses.replace(CLIP_SIZES["tiny"].text, vocab_size=1000, embed_dim=768)
    weights = ClipWeights.of(ClipConfig(vision, text), random_parameters(ClipConfig(vision, text)))
    for name in ("clip.safetensors", "clip.pt"):
        write_weights(weights, tmp_path / name, "openai")
    size = (tmp_path / "clip.pt").stat().st_size
    assert size > 2e8
    program = [sys.executable, "-c", MEASURE, os.fspath(tmp_path)]
    output = subprocess.run(program, capture_output=True, text=True, check=True)
    peaks = json.loads(output.stdout)
    assert peaks.pop("load") < 1.3 * size
    assert len(peaks) == 3 and max(peaks.values()) < 0.4 * size, peaks
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_default_of_writing_is_float32(tmp_path):
    library = library_models.openai()
    library.model.half()
    weights = read_weights(library.save(tmp_path))
    write_weights(weights, tmp_path / "float.safetensors", "openai")
    assert {t.dtype for t in read_weights(tmp_path / "float.safetensors").tensors.values()} == {
        np.dtype(np.float32)
    }
    assert {t.dtype for t in weights.tensors.values()} == {np.dtype(np.float16)}
    assert formats.ClipWeights is ClipWeights


def test_what_a_format_looks_up_in_vain_is_said_to_be_absent(monkeypatch, tmp_path):
    layout = dataclasses.replace(formats.OPENAI, infer_config=lambda opened, _: opened.shapes["up"])
    monkeypatch.setattr(formats, "_LAYOUTS", (layout,))
    path, one = tmp_path / "clip.safetensors", np.zeros(1, np.float32)
    safetensors.numpy.save_file({"visual.conv1.weight": one, "token_embedding.weight": one}, path)
    with pytest.raises(ValueError, match=r"expected 'up' among .* the format openai has; it"):
        read_weights(path)
