"""Checkpoints of the official code: their tower read, ours put in, everything else untouched."""

import functools
import os
import zipfile

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from maft_jax.convert.formats import read_weights, write_weights
from maft_jax.convert.maft import read_official, write_into
from maft_jax.convert.openai import to_openai
from maft_jax.convert.state_dict_io import open_state_dict
from maft_jax.models.preprocess import PIXEL_MEAN, PIXEL_STD, clip_input
from maft_jax.models.resize import resize
from maft_jax.models.towers.clip_vit import VisionConfig
from maft_jax.runtime import tree_rules
from tests.convert.official_checkpoint import as_pth, official_tensors
from tests.golden_files import golden
from tests.tiny_models import ip_clip

VISION = VisionConfig(width=128, layers=10, patch_size=16, image_size=96, embed_dim=64)
FROZEN = "clip_adapter.clip_model."


@functools.cache
def tensors() -> dict[str, np.ndarray]:
    return official_tensors()


@pytest.fixture(scope="module", params=["pth", pytest.param("safetensors", marks=pytest.mark.slow)])
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / f"model_final.{request.param}"
    if request.param == "pth":
        torch.save(as_pth(tensors()), path)
    else:
        safetensors.numpy.save_file(tensors(), path, metadata={"from": "somebody"})
    return path


@functools.cache
def our_tower() -> dict:
    """Random and not representable in float16."""
    rng = np.random.default_rng(5)
    visual = read_reference()["visual"]
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), visual)


@functools.cache
def read_reference() -> dict:
    """The student, translated by the golden test's own means: OpenAI's names under `visual.`"""
    from tests.models.test_freeseg_golden import official_student

    return {"visual": official_student()}


def everything(path) -> dict[str, bytes]:
    """Dtype, shape and bytes of every tensor."""
    found = open_state_dict(path)[0]
    return {
        name: f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x.read()).tobytes()
        for name, x in found.items()
    }


def assert_same_tree(tree, expected):
    tree, expected = tree_rules.flatten(tree), tree_rules.flatten(expected)
    assert set(tree) == set(expected)
    for path, leaf in tree.items():
        np.testing.assert_array_equal(leaf, np.asarray(expected[path], np.float32), err_msg=path)


def test_tower_read_through_the_format_gives_the_official_proposal_features(checkpoint):
    weights = read_weights(checkpoint)
    assert weights.format_name == "maft" and weights.config.vision == VISION
    arrays = golden("freeseg_maft_small_encoder")
    image = (arrays["image_uint8"].astype(np.float32) - PIXEL_MEAN) / PIXEL_STD
    padded = np.zeros((1, 192, 256, 3), np.float32)
    padded[0, : image.shape[0], : image.shape[1]] = image
    encoder = ip_clip(VISION, 8)

    @jax.jit
    def encode(visual, image, mask_logits):
        masks = jax.nn.sigmoid(resize(mask_logits, (192, 256), axes=(2, 3), align_corners=True))
        images = clip_input(image, (480, 480))
        return encoder.encode_proposals(visual, images, masks)

    features = encode(weights.parameters()["visual"], padded, arrays["pred_masks"])
    expected = arrays["proposal_features"]
    scaled = features * np.linalg.norm(expected, axis=-1, keepdims=True)
    tolerance = 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(scaled, expected, atol=tolerance, rtol=0)


def test_student_frozen_clip_and_non_object_embedding_are_read(checkpoint):
    found = read_official(open_state_dict(checkpoint)[0], source=str(checkpoint))
    assert found.config.vision == VISION
    assert_same_tree(found.student, read_reference()["visual"])
    frozen = {
        name.removeprefix(FROZEN): np.asarray(value, np.float32)
        for name, value in tensors().items()
        if name.startswith(FROZEN)
    }
    back = to_openai(found.frozen)
    assert set(back) == set(frozen) and len(frozen) == 158
    for name, value in frozen.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    expected = tensors()["clip_adapter.non_object_embedding"][0]
    np.testing.assert_array_equal(found.non_object_embedding, expected)


def test_formats_are_the_tuned_tower_by_default_and_the_frozen_one_by_name(checkpoint):
    tuned, frozen = read_weights(checkpoint), read_weights(checkpoint, format_name="freeseg")
    assert_same_tree(tuned.parameters()["visual"], read_reference()["visual"])
    official = read_official(open_state_dict(checkpoint)[0], source="x")
    assert_same_tree(frozen.parameters(), official.frozen)
    assert_same_tree(tuned.parameters()["text"], official.frozen["text"])


def test_every_other_tensor_is_listed_with_a_reason(checkpoint):
    weights = read_weights(checkpoint)
    assert len(weights.ignored) + len(weights.tensors) == len(open_state_dict(checkpoint)[0])
    wrapper = "model." if checkpoint.suffix == ".pth" else ""
    reasons = {name.removeprefix(wrapper): why for name, why in weights.ignored.items()}
    assert "third copy" in reasons["T.conv1.weight"]
    assert "proposal generator" in reasons["backbone.stem.conv1.weight"]
    assert "losses" in reasons["criterion.empty_weight"]
    if wrapper:
        assert "trainer" in weights.ignored["optimizer.state.0.exp_avg"]


def test_freeseg_checkpoint_without_tuned_tower_is_read_as_its_frozen_clip(tmp_path):
    without = {n: x for n, x in tensors().items() if not n.startswith(("IPCLIP.", "T."))}
    safetensors.numpy.save_file(without, tmp_path / "freeseg.safetensors")
    weights = read_weights(tmp_path / "freeseg.safetensors")
    assert weights.format_name == "freeseg" and len(weights.tensors) == 158
    with pytest.raises(ValueError, match=r"expected .* with tensors IPCLIP\.\*"):
        write_into(tmp_path / "freeseg.safetensors", tmp_path / "x", VISION, our_tower())


def test_our_tower_goes_into_a_copy_and_everything_else_is_the_same(checkpoint, tmp_path):
    before, size = checkpoint.read_bytes(), checkpoint.stat().st_size
    copied = []
    write_into(checkpoint, tmp_path / "ours", VISION, our_tower(), copied.append)
    assert checkpoint.read_bytes() == before and os.listdir(tmp_path) == ["ours"]
    assert sum(copied) == size == (tmp_path / "ours").stat().st_size

    old, new = everything(checkpoint), everything(tmp_path / "ours")
    assert list(old) == list(new)
    changed = {name.removeprefix("model.") for name in old if old[name] != new[name]}
    assert changed == {name for name in tensors() if name.startswith("IPCLIP.")}
    assert len(changed) == 128

    visual = read_weights(tmp_path / "ours").parameters()["visual"]
    rounded = jax.tree.map(lambda x: x.astype(np.float16), our_tower())
    assert_same_tree(visual, rounded)


def test_pytorch_loads_the_copy_with_the_trainers_state(tmp_path):
    torch.save(as_pth(tensors()), tmp_path / "theirs.pth")
    write_into(tmp_path / "theirs.pth", tmp_path / "ours.pth", VISION, our_tower())
    theirs = torch.load(tmp_path / "theirs.pth", weights_only=True)
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert ours["iteration"] == 999
    assert str(ours["optimizer"]) == str(theirs["optimizer"])
    assert list(ours["model"]) == list(theirs["model"])
    expected = to_openai({"visual": our_tower()})[
        "visual.transformer.resblocks.3.attn.in_proj_weight"
    ]
    found = ours["model"]["IPCLIP.transformer.resblocks.3.attn.in_proj_weight"]
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float16))
    with zipfile.ZipFile(tmp_path / "ours.pth") as archive:
        assert archive.testzip() is None, "checksums of the changed entries are those of the data"


def test_metadata_of_safetensors_survives(tmp_path):
    safetensors.numpy.save_file(tensors(), tmp_path / "a.safetensors", {"from": "somebody"})
    write_into(tmp_path / "a.safetensors", tmp_path / "b.safetensors", VISION, our_tower())
    with safetensors.safe_open(tmp_path / "b.safetensors", "numpy") as file:
        assert file.metadata() == {"from": "somebody"}


def test_strided_tensor_is_replaced_where_it_lies(tmp_path):
    content = as_pth(tensors())
    content["model"]["IPCLIP.proj"] = content["model"]["IPCLIP.proj"].T.contiguous().T
    torch.save(content, tmp_path / "theirs.pth")
    write_into(tmp_path / "theirs.pth", tmp_path / "ours.pth", VISION, our_tower())
    found = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]["IPCLIP.proj"]
    assert not found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), our_tower()["proj"].astype(np.float16))


def changed_tower(path: str, function) -> dict:
    leaves = tree_rules.flatten(our_tower())
    return tree_rules.unflatten(leaves | {path: function(leaves[path])})


def fewer_layers() -> dict:
    return {name: value for name, value in our_tower().items() if name != "blocks_9"}


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (fewer_layers, r"its tower has 128 tensors, ours 116; .*resblocks\.9"),
        (
            lambda: changed_tower("position_embedding", lambda x: x[:26]),
            r"positional_embedding \(37, 128\), ours \(26, 128\).* the same size",
        ),
        (
            lambda: changed_tower("proj", lambda x: x * 1e6),
            r"IPCLIP\.proj is float16 there, which cannot hold the new values",
        ),
    ],
)
def test_tower_that_does_not_fit_is_refused_and_nothing_written(
    checkpoint, tmp_path, tower, message
):
    with pytest.raises(ValueError, match=message):
        write_into(checkpoint, tmp_path / "ours", VISION, tower())
    assert os.listdir(tmp_path) == []


def test_tower_that_their_code_would_compute_otherwise_is_refused(checkpoint, tmp_path):
    gelu = VisionConfig(128, 10, 16, 96, 64, activation="gelu")
    with pytest.raises(ValueError, match="expected a tower as their code computes it"):
        write_into(checkpoint, tmp_path / "ours", gelu, our_tower())
    assert os.listdir(tmp_path) == []


def test_tensors_that_share_memory_are_refused(tmp_path):
    content = as_pth(tensors())
    content["model"]["T.class_embedding"] = content["model"]["IPCLIP.class_embedding"]
    torch.save(content, tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=r"'model\.\S+' and 'model\.\S+' share memory"):
        write_into(tmp_path / "theirs.pth", tmp_path / "ours.pth", VISION, our_tower())
    content["model"]["IPCLIP.ln_post.weight"] = torch.ones(1).half().expand(128)
    torch.save(content, tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match="repeat their elements"):
        write_into(tmp_path / "theirs.pth", tmp_path / "ours.pth", VISION, our_tower())
    assert os.listdir(tmp_path) == ["theirs.pth"]


def test_file_from_before_zip_archives_is_refused_with_advice(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(as_pth(tensors()), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old\.pth: expected .* torch\.save it again"):
        write_into(path, tmp_path / "ours.pth", VISION, our_tower())


def test_pickle_that_executes_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    torch.save(as_pth(tensors()) | {"scheduler": Bomb()}, tmp_path / "theirs.pth")
    for use in (
        lambda: read_weights(tmp_path / "theirs.pth"),
        lambda: write_into(tmp_path / "theirs.pth", tmp_path / "ours", VISION, our_tower()),
    ):
        with pytest.raises(ValueError, match=r"posix\.system, which is forbidden"):
            use()
    assert os.listdir(tmp_path) == ["theirs.pth"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("IPCLIP.ln_post.bias"), r"1 missing: IPCLIP\.ln_post\.bias"),
        (lambda t: t.pop(f"{FROZEN}logit_scale"), rf"1 missing: {FROZEN}logit_scale"),
        (lambda t: t.update({"mystery.weight": np.ones(2)}), r"1 unknown: mystery\.weight"),
        (
            lambda t: t.update({"IPCLIP.proj": t["IPCLIP.proj"].T.copy()}),
            r"wrong shape: .*IPCLIP\.proj",
        ),
    ],
)
def test_corrupt_checkpoint_is_refused_by_name(tmp_path, change, message):
    corrupt = dict(tensors())
    change(corrupt)
    safetensors.numpy.save_file(corrupt, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
        read_weights(tmp_path / "model.safetensors")


def test_such_a_checkpoint_cannot_be_made_from_a_clip_alone(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="write the tower into an existing one"):
        write_weights(read_weights(checkpoint), tmp_path / "x.pt", "maft")
    assert os.listdir(tmp_path) == []
