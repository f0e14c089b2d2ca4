"""Weights of a benchmark: the file, or random ones of the size that its name says."""

import dataclasses

import jax.numpy as jnp
import pytest

from maft_jax.benchmarks.models import load_model, open_weights_or_random
from maft_jax.config import Config
from maft_jax.models.adapters.mask_adapter import AdapterReader, MaskAdapterConfig
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.models.mask_reader import Modules, TowerWithModules
from maft_jax.weights import open_weights
from tests.runs import small_config

pytestmark = pytest.mark.slow


def test_a_name_without_a_file_gives_random_weights_of_its_size(tmp_path):
    weights, described = open_weights_or_random(str(tmp_path / "tiny.safetensors"))
    assert weights.config == CLIP_SIZES["tiny"]
    assert described == f"random tiny, since there is no file {tmp_path / 'tiny.safetensors'}"


@pytest.mark.parametrize("name", ["ViT-B-16.pt", "ViT-L-14.pt", "ViT-L-14-336px.pt"])
def test_names_of_published_files_say_their_size(name, monkeypatch):
    asked, tiny = [], open_weights("random:tiny")
    monkeypatch.setattr(
        "maft_jax.benchmarks.models.open_weights",
        lambda source, **options: asked.append(source) or tiny,
    )
    open_weights_or_random(name)
    assert asked == [f"random:{name.removesuffix('.pt').removesuffix('px')}"]


def test_weights_that_are_there_are_read():
    weights, described = open_weights_or_random("built-in:shapes_world")
    assert weights.config.vision.width == 128
    assert described == "built-in:shapes_world"


def test_what_weights_do_not_tell_can_be_stated():
    weights, _ = open_weights_or_random("built-in:shapes_world", activation="gelu")
    assert weights.config.vision.activation == "gelu"


def test_a_corrupt_file_is_an_error_and_not_replaced(tmp_path):
    (tmp_path / "ViT-B-16.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"ViT-B-16\.pt"):
        open_weights_or_random(str(tmp_path / "ViT-B-16.pt"))


def test_a_name_that_says_no_size_is_an_error():
    with pytest.raises(
        ValueError, match=r"my_clip\.pt: there is no such file.*'tiny'.*random:SIZE"
    ):
        open_weights_or_random("my_clip.pt")


def test_nothing_is_left_open():
    config = small_config({"data.root": "unused"}, model__mask_start_layer=-1, model__image_size=0)
    model = load_model(config).config.model
    assert (model.mask_start_layer, model.image_size, model.compute_dtype) == (2, 480, "float32")


def test_a_generator_is_not_measured_as_a_clip():
    config = dataclasses.replace(Config(), task="train_generator")
    with pytest.raises(ValueError, match="of generators are not benchmarked yet; take a config"):
        load_model(config)


def test_masks_are_read_with_modules_as_the_method_begins_with_them():
    of_method = {"method": "mask_adapter", "loss__adapter_width": 16, "model__mask_start_layer": -1}
    tower = "random:convnext_tiny-random"
    config = small_config({"data.root": "unused"}, **of_method, model__pretrained=tower)
    read = load_model(config).tower
    assert isinstance(read, TowerWithModules)
    assert read.modules.reader == AdapterReader(MaskAdapterConfig(width=16))
    assert read.modules.parameters["maps"]["kernel"].shape == (16, 16)
    assert isinstance(load_model(small_config({"data.root": "unused"})).tower, dict)
    with pytest.raises(ValueError, match=r"config\.method=mask_adapter: draws weights of"):
        load_model(
            small_config({"data.root": "unused"}, **of_method, model__pretrained="random:tiny")
        )


def test_a_run_with_modules_is_no_tower_to_measure(monkeypatch):
    weights = dataclasses.replace(
        open_weights("random:tiny"), modules=Modules({"scale": jnp.ones(1)}, AdapterReader())
    )
    monkeypatch.setattr("maft_jax.benchmarks.models.open_weights", lambda *_, **options: weights)
    with pytest.raises(ValueError, match=r"give the run.s tuned\.safetensors and config\.method"):
        load_model(small_config({"data.root": "unused"}))


def test_objects_are_not_measured_as_label_maps():
    roots = {"data.root": "", "evaluation.roots.folder": "unused"}
    config = small_config(roots, task="evaluate", evaluation__task="panoptic")
    with pytest.raises(ValueError, match=r"config\.evaluation\.task=panoptic: label maps are"):
        load_model(config)
