"""ConvNeXt CLIPs in and out: open_clip's and timm's names, settings, and what the libraries say."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maft_jax.convert.conversion import image_tower
from maft_jax.convert.convnext import PUBLISHED, timm_name
from maft_jax.convert.formats import ClipWeights, default_format, read_weights, write_weights
from maft_jax.convert.verification import verify
from maft_jax.models.clip import CLIP_SIZES, ClipConfig, random_parameters
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.towers.convnext import ConvNextConfig
from maft_jax.runtime import tree_rules
from tests.golden_files import GOLDEN

pytestmark = pytest.mark.slow

SETTINGS = "open_clip_config.json"


@pytest.fixture(params=["mlp", "linear_eps5"])
def golden(request):
    return GOLDEN / "convnext" / request.param


@pytest.mark.parametrize(
    ("size", "whole", "image", "trunk"),
    [
        ("convnext_base_w_320", 179_385_345, 88_221_824, 87_564_416),
        ("convnext_large_d_320", 351_772_609, 199_770_816, 196_227_264),
        ("convnext_xxlarge", 1_200_576_385, 846_543_744, 843_391_872),
    ],
)
def test_published_sizes_have_the_published_numbers_of_parameters(size, whole, image, trunk):
    shapes = jax.eval_shape(lambda: random_parameters(CLIP_SIZES[size]))

    def count(tree):
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    assert count(shapes) == whole
    assert count(shapes["visual"]) == image
    rules = CLIP_SIZES[size].vision.default_trainable
    trained = tree_rules.select(rules, shapes["visual"], where="test")
    assert count(trained) == trunk
    assert len(jax.tree.leaves(trained)) == (376 if size == "convnext_xxlarge" else 340)


def test_what_was_read_is_written_back_bit_for_bit(golden, tmp_path):
    weights = read_weights(golden)
    assert weights.format_name == "open_clip" and not weights.ignored
    assert default_format("tuned.safetensors", weights.config) == "open_clip"
    write_weights(weights, tmp_path / "again", "open_clip", dtype="source")
    file = "open_clip_model.safetensors"
    before, after = load_file(golden / file), load_file(tmp_path / "again" / file)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        np.testing.assert_array_equal(after[name], tensor)
    assert read_weights(tmp_path / "again").config == weights.config
    settings = json.loads((tmp_path / "again" / SETTINGS).read_text())["model_cfg"]
    expected = json.loads((golden / SETTINGS).read_text())["model_cfg"]
    assert settings["vision_cfg"]["timm_proj"] == expected["vision_cfg"]["timm_proj"]
    epsilon = "convnext_xxlarge" if weights.config.vision.norm_epsilon == 1e-5 else "convnext_base"
    assert settings["vision_cfg"]["timm_model_name"] == epsilon
    # without our metadata the settings alone say the same
    save_file(after, tmp_path / "again" / file)
    assert read_weights(tmp_path / "again").config == weights.config


def test_open_clip_computes_the_same(golden):
    found = verify(golden, read_weights(golden))
    assert [comparison.library.split()[0] for comparison in found] == ["open_clip"] * 3
    assert max(comparison.largest_difference for comparison in found) < 1e-5


def test_timm_computes_the_same_with_the_image_tower_alone(golden, tmp_path):
    tower = image_tower(read_weights(golden))
    assert default_format("tower.safetensors", tower.config) == "timm"
    path = tmp_path / "tower"
    write_weights(tower, path, "timm")
    again = read_weights(path)
    assert again.format_name == "timm" and again.config == tower.config
    for comparison in verify(path, again):
        assert comparison.library.startswith("timm") and comparison.largest_difference < 1e-5
    file = path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file)  # as timm leaves it, without our metadata
    without = read_weights(path).config.vision
    assert without.norm_epsilon == tower.config.vision.norm_epsilon
    assert (without.dims, without.depths) == (again.config.vision.dims, again.config.vision.depths)


def test_timm_builds_what_our_folder_says(tmp_path):
    import timm

    vision = ConvNextConfig((1, 1, 2, 1), (8, 8, 16, 16), 12, "mlp", image_size=64)
    config = ClipConfig(vision, None)
    parameters = jax.tree.map(np.asarray, random_parameters(config))
    write_weights(ClipWeights.of(config, parameters), tmp_path / "tower", "timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'tower'}", pretrained=True)
    np.testing.assert_array_equal(
        model.state_dict()["head.fc.weight"].numpy().T, parameters["visual"]["proj"]
    )
    assert model.stages[2].blocks[1].norm.eps == 1e-6


def test_images_of_any_size_are_read_as_the_library_reads_them():
    """With sides that are no multiple of 32: dropped pixels, and masks on the padded image."""
    vision = ConvNextConfig((1, 1, 1, 1), (8, 8, 16, 16), 64, "linear", 1e-5, image_size=75)
    config = ClipConfig(vision, TextConfig(64, 1, 60, 9, 64, activation="quick_gelu"))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.1, x.shape).astype(np.float32),
        random_parameters(config),
    )
    for comparison in verify(None, ClipWeights.of(config, parameters)):
        assert comparison.largest_difference < 1e-5


def test_epsilon_follows_the_name_of_the_model():
    for name, sizes in PUBLISHED.items():
        epsilon = 1e-5 if name == "convnext_xxlarge" else 1e-6
        assert timm_name(ConvNextConfig(*sizes, 8, norm_epsilon=epsilon)) == name
    assert timm_name(ConvNextConfig((1,) * 4, (8,) * 4, 8, norm_epsilon=1e-5)) == "convnext_xxlarge"


def test_without_settings_heads_are_64_wide_and_epsilon_is_that_of_the_sizes(tmp_path):
    vision = ConvNextConfig((1, 1, 1, 1), (8, 8, 16, 16), 64)
    config = ClipConfig(vision, TextConfig(64, 1, 60, 9, 64, activation="gelu"))
    parameters = jax.tree.map(np.asarray, random_parameters(config))
    path = tmp_path / "clip.safetensors"
    write_weights(ClipWeights.of(config, parameters), path, "open_clip")
    save_file(load_file(path), path)
    found = read_weights(path).config
    assert found.text == config.text
    np.testing.assert_allclose(found.vision.logit_scale, 1 / 0.07, rtol=1e-5)
    assert (found.vision.norm_epsilon, found.vision.image_size) == (1e-6, 256)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_cfg", {"timm_model_name": "convnext_tiny_hnf"}, "expected a model of"),
        ("vision_cfg", {"timm_pool": "rot_attn"}, "has timm_pool='rot_attn'"),
        ("vision_cfg", {"timm_proj_bias": True}, "has timm_proj_bias=True"),
        ("vision_cfg", {"image_size": 0}, "expected positive pixels per side"),
        ("text_cfg", {"heads": 5}, "heads=5"),
        ("text_cfg", {"width": 64}, "is of another model"),
    ],
)
def test_settings_of_other_models_are_refused(part, changes, message, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(GOLDEN / "convnext/linear_eps5", folder)
    settings = json.loads((folder / SETTINGS).read_text())
    settings["model_cfg"][part] |= changes
    (folder / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        read_weights(folder)


@pytest.mark.parametrize("mean", [[0.5, 0.5, 0.5], 0.48, [0.48145466, 0.4578275], ["a", "b", "c"]])
@pytest.mark.parametrize("folder", ["convnext/linear_eps5", "eva02/patch16"])
def test_pixels_that_are_normalised_otherwise_are_refused(folder, mean, tmp_path):
    shutil.copytree(GOLDEN / folder, tmp_path / "clip")
    settings = json.loads((tmp_path / "clip" / SETTINGS).read_text())
    settings["preprocess_cfg"]["mean"] = mean
    (tmp_path / "clip" / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"preprocess_cfg: mean is .*; expected \[0.48145466"):
        read_weights(tmp_path / "clip")


def test_a_classifier_is_no_image_tower(tmp_path):
    config = ClipConfig(ConvNextConfig((1, 1, 1, 1), (8, 8, 8, 8), 12), None)
    parameters = jax.tree.map(np.asarray, random_parameters(config))
    path = tmp_path / "tower.safetensors"
    write_weights(ClipWeights.of(config, parameters), path, "timm")
    save_file(load_file(path) | {"head.fc.bias": np.ones(12, np.float32)}, path)
    with pytest.raises(ValueError, match=r"head\.fc\.bias: expected zeros"):
        read_weights(path).parameters()


def test_what_the_formats_cannot_hold_is_said(tmp_path):
    weights = read_weights(GOLDEN / "convnext/mlp")
    with pytest.raises(ValueError, match="an image tower alone"):
        write_weights(weights, tmp_path / "tower", "timm")
    with pytest.raises(ValueError, match="there is no text tower"):
        write_weights(image_tower(weights), tmp_path / "clip", "open_clip")
    with pytest.raises(ValueError, match="activation=gelu: has no meaning for a ConvNeXt"):
        read_weights(GOLDEN / "convnext/mlp", activation="gelu")
