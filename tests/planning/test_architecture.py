"""Weights and data that are not there are replaced by what their names say."""

import dataclasses

import pytest

from maft_jax.config.sections import DataConfig
from maft_jax.convert.formats import ClipWeights, write_weights
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.encoder import MaskingSpec
from maft_jax.planning.architecture import (
    FOLDER_CLASSES,
    clip_architecture,
    names_per_class,
    num_classes,
    resolve_config,
)
from maft_jax.runtime.sharding import one_device_mesh
from tests.planning.test_plan import config_of


@pytest.mark.parametrize(
    ("pretrained", "size", "assumed"),
    [
        ("ViT-B-16.pt", "ViT-B-16", True),
        ("weights/ViT-L-14.pt", "ViT-L-14", True),
        ("ViT-L-14-336px.pt", "ViT-L-14-336", True),
        ("random:ViT-B-32", "ViT-B-32", False),
        ("convnext_large_d_320.safetensors", "convnext_large_d_320", True),
        ("siglip2-base-patch16-512", "siglip2-base-patch16-512", True),
        ("eva02_large_patch14_clip_336.merged2b_s6b_b61k", "EVA02-L-14-336", True),
        ("tipsv2-b14", "tipsv2_b14", True),
    ],
)
def test_names_of_files_that_are_not_there(pretrained, size, assumed):
    clip, masking, assumption = clip_architecture(pretrained)
    assert (clip, masking) == (CLIP_SIZES[size], None)
    assert bool(assumption) == assumed
    assert not assumed or (pretrained in assumption and size in assumption)


def test_weights_that_are_there_are_asked(tmp_path):
    tiny, path = CLIP_SIZES["tiny"], tmp_path / "ViT-B-16.safetensors"
    tuned = ClipWeights.of(tiny, random_parameters(tiny), MaskingSpec(3, 112))
    write_weights(tuned, path, "openai")
    assert clip_architecture(str(path)) == (tiny, MaskingSpec(3, 112), "")
    config = config_of(model__pretrained=str(path), model__mask_start_layer=-1, model__image_size=0)
    resolved, _, assumptions = resolve_config(config, one_device_mesh())
    assert (resolved.model.mask_start_layer, resolved.model.image_size) == (3, 112)
    assert assumptions == []


def test_the_packages_own_weights():
    clip, _, assumption = clip_architecture("built-in:shapes_world")
    assert (clip.vision.layers, assumption) == (4, "")


@pytest.mark.parametrize("pretrained", ["", "mine.pt", "random:huge", "built-in:other"])
def test_unknown_weights_are_refused_with_the_choices(pretrained):
    with pytest.raises(ValueError, match=r"ViT-B-16.*built-in:shapes_world"):
        clip_architecture(pretrained)


def test_classes_of_data_sets_without_the_unseen():
    coco = DataConfig(dataset="coco_stuff")
    assert num_classes(coco) == (171, "")
    assert num_classes(DataConfig(dataset="coco_stuff", unseen_classes=("published",)))[0] == 156


def test_classes_of_a_folder_are_read_or_assumed(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\ntree\n")
    assert num_classes(DataConfig(root=str(tmp_path))) == (3, "")
    assert num_classes(DataConfig(root=str(tmp_path), unseen_classes=("dog",))) == (2, "")
    assert num_classes(DataConfig(root="nowhere", classes="voc_20")) == (20, "")
    assert names_per_class(DataConfig(root=str(tmp_path))) == 1
    assert names_per_class(DataConfig(root="nowhere", classes="voc_20")) == 1
    classes, assumption = num_classes(DataConfig(root="nowhere"))
    assert classes == FOLDER_CLASSES and str(FOLDER_CLASSES) in assumption


def test_names_of_classes_are_planned_for_unless_the_first_alone_counts(tmp_path):
    (tmp_path / "classes.txt").write_text("0:invalid_class_id\n1:cat,kitten,tom\n2:dog\n")
    data = DataConfig(root=str(tmp_path))
    assert num_classes(data) == (2, "") and names_per_class(data) == 3
    assert names_per_class(dataclasses.replace(data, synonyms=False)) == 1
