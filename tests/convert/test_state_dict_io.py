"""Weight files of every kind: the same parameters, or a refusal with the file's name."""

import json
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from maft_jax.benchmarks.pytorch.openai_clip import random_clip
from maft_jax.convert.openai import to_openai
from maft_jax.runtime import tree_rules
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.weights import open_weights
from tests.in_memory_weights import from_openai, load_state_dict, save_state_dict

# PyTorch discourages TorchScript, but OpenAI's released weights are TorchScript archives.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    # The towers compute with sizes while they are traced.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def small_clip():
    vision = {"vision_width": 128, "vision_layers": 1, "patch_size": 32, "image_size": 70}
    text = {"text_width": 64, "text_layers": 1, "context_length": 9, "vocab_size": 50}
    clip = random_clip(1, **vision, **text, embed_dim=16).eval()
    clip.register_buffer("input_resolution", torch.tensor(70))
    return clip


def write(clip, path, kind: str):
    tensors = clip.state_dict()
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif kind == "zip":
        torch.save(tensors, path)
    elif kind == "legacy":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    else:
        with torch.no_grad():
            inputs = {
                "encode_image": torch.zeros(1, 3, 70, 70),
                "encode_text": torch.tensor([[1, 2, 49, 0]]),
            }
            traced = torch.jit.trace_module(clip.float(), inputs)
            torch.jit.save(traced.to(tensors["logit_scale"].dtype), path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "torchscript"])
def test_every_kind_of_file_gives_the_same_parameters(tmp_path, kind, dtype):
    clip = small_clip().to(DTYPES[dtype])
    expected = {name: value.float().numpy() for name, value in clip.state_dict().items()}
    expected = tree_rules.flatten(from_openai(expected, source="memory")[1])
    write(clip, tmp_path / "weights", kind)  # recognised by content, not by name
    weights = open_weights(tmp_path / "weights")
    config, parameters = weights.config, weights.parameters()
    assert (config.vision.patch_size, config.vision.image_size) == (32, 64)
    leaves = tree_rules.flatten(parameters)
    assert set(leaves) == set(expected)
    for path, leaf in leaves.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_fingerprint_is_that_of_the_weights_not_of_the_file(tmp_path):
    clip = small_clip()
    prints = []
    for kind in ("safetensors", "zip", "legacy", "torchscript"):
        write(clip, tmp_path / kind, kind)
        prints.append(fingerprint(open_weights(tmp_path / kind).parameters()))
    assert len(set(prints)) == 1
    with torch.no_grad():
        clip.visual.proj[3, 3] += 1e-3
    write(clip, tmp_path / "changed", "zip")
    assert fingerprint(open_weights(tmp_path / "changed").parameters()) != prints[0]


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_bomb_is_refused_and_does_not_go_off(tmp_path, zipped):
    path, marker = tmp_path / "bomb.pt", tmp_path / "executed"
    content = {"logit_scale": torch.ones(2), "bomb": Bomb(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"bomb\.pt: .*posix\.system") as refusal:
        open_weights(path)
    assert "weights_only" not in str(refusal.value), "torch's advice would let it go off"
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the bomb of this test is a dud"


@pytest.mark.parametrize("kept", [4, 8, 9, 200, -1])
def test_truncated_safetensors_is_refused(tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    write(small_clip(), path, "safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.safetensors: (corrupt|neither)"):
        open_weights(path)


def test_safetensors_with_a_foreign_dtype_is_refused(tmp_path):
    header = json.dumps({"x": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ValueError, match=r"odd\.safetensors: corrupt or unreadable"):
        open_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither safetensors nor a PyTorch file"),
        (b"x", "neither safetensors nor a PyTorch file"),
        (b"These are not the weights that you are looking for.\n", "neither safetensors nor"),
        (b'{"a": 1, "b": {}}', "neither safetensors nor"),
        (b"PK\x03\x04 and then nothing", "truncated or corrupt PyTorch archive"),
    ],
)
def test_file_of_another_kind_is_refused(tmp_path, content, message):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"other\.pt: {message}"):
        open_weights(path)


@pytest.mark.parametrize(("name", "found"), [("", "a folder"), ("missing.pt", "no such file")])
def test_folder_or_missing_file_is_refused(tmp_path, name, found):
    with pytest.raises(ValueError, match=f"{found}; expected a file of CLIP weights"):
        open_weights(tmp_path / name)


def test_legacy_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "list.pt"
    torch.save([torch.ones(2)], path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"list\.pt: expected a state dict, found list"):
        load_state_dict(path)


def test_unknown_random_size_is_refused():
    with pytest.raises(ValueError, match=r"random:huge: unknown size 'huge'; expected .*'tiny'"):
        open_weights("random:huge")


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    state = {name: value.detach().numpy() for name, value in small_clip().state_dict().items()}
    return to_openai(from_openai(state, source="memory")[1])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_saved_file_is_read_by_torch_and_by_us(tmp_path, tensors, suffix):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"an older file")
    save_state_dict(tensors, path)
    if suffix == ".pt":
        loaded = torch.load(path, weights_only=True)
    else:
        loaded = safetensors.torch.load_file(path)
    clip = small_clip()
    missing, unexpected = clip.load_state_dict(loaded, strict=False)
    assert missing == ["input_resolution"] and unexpected == []
    for read in ({name: value.numpy() for name, value in loaded.items()}, load_state_dict(path)):
        assert set(read) == set(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype == np.float32
            np.testing.assert_array_equal(read[name], tensor, err_msg=name)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["clip", "clip.bin", "clip.pth"])
def test_saving_under_another_ending_is_refused(tmp_path, tensors, name):
    with pytest.raises(ValueError, match=rf"{name}: expected a name that ends in \.safetensors"):
        save_state_dict(tensors, tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_saving_into_a_missing_folder_is_refused(tmp_path, tensors):
    with pytest.raises(ValueError, match=r"the folder .*nowhere does not exist; create it first"):
        save_state_dict(tensors, tmp_path / "nowhere" / "clip.pt")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_failing_write_leaves_the_older_file_and_nothing_else(
    tmp_path, tensors, monkeypatch, suffix
):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"an older file")

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state_dict(tensors, path)
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == b"an older file"


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_parameters_do_not_change_with_the_file_they_came_from(tmp_path, kind):
    path = tmp_path / "clip.weights"
    write(small_clip(), path, kind)
    parameters = open_weights(path).parameters()
    before = fingerprint(parameters)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert fingerprint(parameters) == before


def test_saved_file_follows_the_umask(tmp_path):
    save_state_dict({"x": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
