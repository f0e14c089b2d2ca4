"""maft_jax.load and its Clip: what a notebook can do, and what it is told when it goes wrong."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import maft_jax
from maft_jax import weights
from maft_jax.runtime import tree_rules
from tests.golden_files import GOLDEN, MASK_START_LAYER, golden
from tests.in_memory_weights import load_state_dict

NAMES = ["cat", "wall-other", "potted plant"]


@pytest.fixture(scope="module")
def clip() -> maft_jax.Clip:
    return maft_jax.load("random:tiny", mask_start_layer=2)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """[2, 5, 24, 24] of 0 and 255, whole patches of the 6x6 grid; the first is empty."""
    blocks = np.random.default_rng(1).integers(0, 2, (2, 5, 6, 6), np.uint8) * 255
    blocks[:, 0], blocks[:, 1, 0, 0] = 0, 255
    return blocks.repeat(4, axis=2).repeat(4, axis=3)


def assert_normalised(embeddings, shape):
    assert embeddings.shape == shape and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), np.ones(shape[:-1]), atol=1e-6)


def test_embeddings_match_the_official_code(tmp_path):
    arrays = golden("maft_small")
    weights = load_state_dict(GOLDEN / "maft_small_teacher.safetensors")
    tuned = load_state_dict(GOLDEN / "maft_small_student.safetensors")
    weights |= {f"visual.{name}": value for name, value in tuned.items()}
    safetensors.numpy.save_file(weights, tmp_path / "student.safetensors")
    clip = maft_jax.load(tmp_path / "student.safetensors", MASK_START_LAYER)

    image, text = arrays["images_nhwc"], arrays["text_features"][:7]
    features = clip.encode_proposals(image, arrays["masks_uint8"])
    np.testing.assert_allclose(features, arrays["features"], atol=1e-5, rtol=0)
    names = [str(name) for name in arrays["class_names"]]
    np.testing.assert_allclose(clip.encode_text(names), text, atol=1e-5, rtol=0)
    whole = clip.encode_image(image) @ arrays["text_features"].T
    np.testing.assert_allclose(whole, arrays["student_global_logits"] / 100, atol=1e-5, rtol=0)


def test_text_has_one_normalised_row_per_name(clip):
    rows = clip.encode_text(NAMES)
    assert_normalised(rows, (3, 64))
    np.testing.assert_array_equal(clip.encode_text(NAMES[::-1]), rows[::-1])
    assert not np.allclose(clip.encode_text(NAMES, ["{}"] * 14), rows, atol=1e-3)


@pytest.mark.parametrize(("batch", "height", "width"), [(2, 96, 96), (1, 16, 130)])
def test_images_of_any_size_are_encoded(clip, batch, height, width):
    images = np.random.default_rng(0).normal(size=(batch, height, width, 3))
    embeddings = clip.encode_image(images)  # float64, as numpy makes them
    assert_normalised(embeddings, (batch, 64))
    np.testing.assert_allclose(clip.encode_image(jax.device_put(images)), embeddings, atol=1e-6)


def test_proposals_of_any_number_and_resolution_are_encoded(clip, images, masks):
    assert_normalised(clip.encode_proposals(images, masks), (2, 5, 64))
    assert_normalised(clip.encode_proposals(images[:1, :50, :70], masks[:1, 2:3, :9]), (1, 1, 64))


def test_one_proposal_alone_is_the_same_as_among_others(clip, images, masks):
    together = clip.encode_proposals(images, masks)
    alone = clip.encode_proposals(images[1:], masks[1:, 3:4])
    np.testing.assert_allclose(alone[0, 0], together[1, 3], atol=1e-6)


def test_padding_is_zero_and_changes_no_other_proposal(clip, images, masks):
    valid = np.array([[True, False, True, True, True], [True, True, True, False, False]])
    padded = clip.encode_proposals(images, masks, valid)
    other = np.where(valid[:, :, None, None], masks, 255 - masks)
    expected = np.where(valid[..., None], clip.encode_proposals(images, masks), 0)
    np.testing.assert_array_equal(padded, expected)
    np.testing.assert_array_equal(clip.encode_proposals(images, other, valid), expected)


def test_kinds_of_masks_agree(clip, images, masks):
    expected = clip.encode_proposals(images, masks)
    for same in (masks > 0, (masks > 0).astype(np.float32), (masks / 255.0), jax.device_put(masks)):
        np.testing.assert_array_equal(clip.encode_proposals(images, same), expected)


def test_empty_uint8_masks_are_no_mistake(clip, images, masks):
    empty = clip.encode_proposals(images, np.zeros_like(masks))
    np.testing.assert_array_equal(empty, np.repeat(empty[:, :1], 5, axis=1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda i, m: (i[0], m), r"images: expected \[batch, height, width, 3\].*\(96, 96, 3\)"),
        (lambda i, m: (i[..., :1], m), r"images: expected .*got float32 \(2, 96, 96, 1\)"),
        (lambda i, m: (i.transpose(0, 3, 1, 2), m), r"images: expected .*\(2, 3, 96, 96\)"),
        (lambda i, m: (i.astype(np.uint8), m), "images: expected .* got uint8 .*clip_input makes"),
        (lambda i, m: (i[:, :15], m), "image of 15x96 pixels: expected at least one patch"),
        (lambda i, m: (i, m[0]), r"masks: expected \[batch, proposals, height, width\].*got uint8"),
        (lambda i, m: (i, m[:, :0]), r"with at least one proposal, got uint8 \(2, 0, 24, 24\)"),
        (lambda i, m: (i, m.astype(np.int32)), "masks: expected .* got int32"),
        (lambda i, m: (i, m // 255), "uint8 values of 0 and 1 only, but 255 means inside"),
        (lambda i, m: (i, m[:1]), "masks of 1 images, but 2 images"),
        (lambda i, m: (i[:1], m), "masks of 2 images, but 1 images"),
        (lambda i, m: (i, m, np.ones((2, 4))), r"valid: expected shape \(2, 5\), got \(2, 4\)"),
        (lambda i, m: (i, m, np.ones(5)), r"valid: expected shape \(2, 5\), got \(5,\)"),
    ],
)
def test_wrong_arrays_are_refused_by_name(clip, images, masks, wrong, message):
    with pytest.raises(ValueError, match=message):
        clip.encode_proposals(*wrong(images, masks))


def test_wrong_images_and_names_are_refused(clip, images):
    with pytest.raises(ValueError, match=r"images: expected .* got float32"):
        clip.encode_image(images[0])
    with pytest.raises(ValueError, match="expected a list of class names"):
        clip.encode_text("cat")
    with pytest.raises(ValueError, match=r"class name 'cat cat .*shorten it"):
        clip.encode_text(["dog", "cat " * 80])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_saved_and_loaded_is_the_same(clip, images, tmp_path, suffix):
    clip.save(tmp_path / f"clip{suffix}")
    loaded = maft_jax.load(str(tmp_path / f"clip{suffix}"), mask_start_layer=2)
    assert loaded.config == clip.config
    ours, theirs = (tree_rules.flatten(model.parameters) for model in (loaded, clip))
    assert set(ours) == set(theirs)
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
    np.testing.assert_array_equal(loaded.encode_image(images), clip.encode_image(images))


@pytest.mark.parametrize("start", [-1, 5])
def test_impossible_start_layer_is_refused_when_loading(start):
    with pytest.raises(ValueError, match=f"mask_start_layer={start}: expected 0 to 4"):
        maft_jax.load("random:tiny", mask_start_layer=start)


def test_default_start_layer_is_8_or_two_thirds_of_a_small_tower(clip):
    assert maft_jax.load("random:tiny").mask_start_layer == 2  # of 4 layers
    assert clip.__class__(clip.config, clip.parameters, 3).mask_start_layer == 3


def test_how_proposals_read_can_be_said_when_loading():
    shared = maft_jax.load("random:tiny", 2, mask_rule="shared_patches")
    assert shared.encoder.mask_rule == "shared_patches"
    with pytest.raises(ValueError, match="class_token=1: expected a number below 1"):
        maft_jax.load("random:tiny", 2, class_token=1)


def test_start_at_the_number_of_layers_gives_every_proposal_the_whole_image(clip, images, masks):
    clip = dataclasses.replace(clip, mask_start_layer=4)
    whole = clip.encode_image(images)
    expected = np.repeat(np.asarray(whole)[:, None], 5, axis=1)
    np.testing.assert_allclose(clip.encode_proposals(images, masks), expected, atol=1e-6)


def test_full_masks_in_the_last_layer_alone_give_the_whole_image(clip, images, masks):
    """Earlier layers would differ: there patches no longer see the class token."""
    late = dataclasses.replace(clip, mask_start_layer=3)
    full = np.full_like(masks, 255)
    whole = np.asarray(late.encode_image(images))[:, None].repeat(5, axis=1)
    np.testing.assert_allclose(late.encode_proposals(images, full), whole, atol=1e-6)


def test_bfloat16_is_close_and_gives_float32(clip, images, masks):
    rough = dataclasses.replace(clip, compute_dtype="bfloat16")
    for ours, expected in (
        (rough.encode_image(images), clip.encode_image(images)),
        (rough.encode_proposals(images, masks), clip.encode_proposals(images, masks)),
    ):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, atol=2e-2)
        assert not np.array_equal(ours, expected)


def test_other_compute_dtypes_are_refused():
    with pytest.raises(ValueError, match="compute_dtype: expected float32 or bfloat16, got 'auto'"):
        maft_jax.load("random:tiny", 2, compute_dtype="auto")


def test_importing_the_package_alone_does_not_load_jax():
    program = "import sys, maft_jax; print(sorted({'jax', 'flax', 'torch'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert output.stdout == "[]\n", output.stderr


def test_unknown_attribute_of_the_package_is_named():
    with pytest.raises(AttributeError, match="module 'maft_jax' has no attribute 'lod'"):
        _ = maft_jax.lod


def test_a_run_can_be_told_its_step_and_where_its_first_weights_are(monkeypatch):
    told = {}

    def open_weights(path, **given):
        told.update(given, path=path)
        return weights.open_weights("random:tiny")

    monkeypatch.setattr("maft_jax.inference.clip.open_weights", open_weights)
    maft_jax.load("runs/first", step=4, pretrained=pathlib.Path("moved.pt"))
    assert told["path"] == "runs/first" and (told["step"], told["pretrained"]) == (4, "moved.pt")


def test_a_clip_is_shown_without_its_weights(clip):
    assert repr(clip).startswith("Clip(config=ClipConfig(") and "rray" not in repr(clip)
