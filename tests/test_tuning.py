"""How a CLIP was tuned travels with its weights: through files, workdirs and the facade."""

import dataclasses
import json

import pytest
import safetensors
import safetensors.numpy

import maft_jax
from maft_jax.config import from_config_dict, preset
from maft_jax.convert.formats import ClipWeights, read_weights, write_weights
from maft_jax.convert.safetensors_file import DIGESTS
from maft_jax.convert.weights_source import OWN_METADATA
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.encoder import MaskingSpec, resolve_masking

TINY = CLIP_SIZES["tiny"]
TUNED = MaskingSpec(mask_start_layer=3, image_size=112)


@pytest.fixture(scope="module")
def tuned_weights() -> ClipWeights:
    return ClipWeights.of(TINY, random_parameters(TINY), TUNED)


def rewrite_metadata(path, change):
    """Applies a function to our own metadata of a safetensors file."""
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    own = json.loads(metadata[OWN_METADATA])
    change(own)
    metadata[OWN_METADATA] = json.dumps(own)
    del metadata[DIGESTS]  # of the file as it was
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata)


@pytest.mark.parametrize(
    ("size", "masking", "given", "expected"),
    [
        ("ViT-B-16", None, (None, None), MaskingSpec(8, 480)),
        ("ViT-L-14", None, (None, None), MaskingSpec(8, 480)),
        ("tiny", None, (None, None), MaskingSpec(2, 480)),
        ("ViT-B-16", TUNED, (None, None), TUNED),
        ("ViT-B-16", TUNED, (0, None), MaskingSpec(0, 112)),
        ("ViT-B-16", TUNED, (None, 64), MaskingSpec(3, 64)),
        ("tiny", None, (4, 64), MaskingSpec(4, 64)),
    ],
)
def test_what_is_given_goes_before_what_weights_say_before_what_is_usual(
    size, masking, given, expected
):
    assert resolve_masking(CLIP_SIZES[size].vision, masking, *given) == expected


def test_configuration_leaves_it_to_the_weights_where_it_says_so():
    config = preset("official")
    config.data.root = "photos"
    assert from_config_dict(config, require_weights=False).model.given_masking[:2] == (8, 480)
    config.update_from_flattened_dict({"model.mask_start_layer": -1, "model.image_size": 0})
    assert from_config_dict(config, require_weights=False).model.given_masking[:2] == (None, None)
    config.model.mask_start_layer = 0
    assert from_config_dict(config, require_weights=False).model.given_masking[:2] == (0, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format_name"), [("clip.safetensors", "openai"), ("clip", "transformers")]
)
def test_files_keep_it(tuned_weights, tmp_path, name, format_name):
    write_weights(tuned_weights, tmp_path / name, format_name)
    assert read_weights(tmp_path / name).masking == TUNED
    clip = maft_jax.load(tmp_path / name)
    assert (clip.mask_start_layer, clip.image_size) == (3, 112)
    assert maft_jax.load(tmp_path / name, mask_start_layer=1).mask_start_layer == 1


def test_files_without_it_are_read_as_before(tuned_weights, tmp_path):
    path = tmp_path / "clip.safetensors"
    write_weights(dataclasses.replace(tuned_weights, masking=None), path, "openai")
    with safetensors.safe_open(path, "numpy") as file:
        assert set(json.loads(file.metadata()[OWN_METADATA])) == {"format", "vision", "text"}
    assert read_weights(path).masking is None
    clip = maft_jax.load(path)
    assert (clip.mask_start_layer, clip.image_size) == (2, 480)


@pytest.mark.parametrize("stored", [{"mask_start_layer": 3}, {"image_size": "3"}, 7, ["a"]])
def test_corrupt_metadata_is_refused(tuned_weights, tmp_path, stored):
    path = tmp_path / "clip.safetensors"
    write_weights(tuned_weights, path, "openai")
    rewrite_metadata(path, lambda own: own.update(tuning=stored))
    with pytest.raises(ValueError, match=r"clip\.safetensors: corrupt metadata 'maft_jax'"):
        read_weights(path)


def test_saved_clip_is_loaded_with_the_same_settings(tmp_path):
    clip = dataclasses.replace(maft_jax.load("random:tiny"), mask_start_layer=1, image_size=96)
    clip.save(tmp_path / "clip.safetensors")
    loaded = maft_jax.load(tmp_path / "clip.safetensors")
    assert (loaded.mask_start_layer, loaded.image_size) == (1, 96)


def test_clip_with_an_image_size_below_one_patch_is_refused():
    with pytest.raises(ValueError, match="expected at least one patch of 16x16"):
        dataclasses.replace(maft_jax.load("random:tiny"), image_size=15)
