"""The generators of learned masks: the package's, and how one is trained for a split."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from input_pipeline.layouts import open_dataset
from input_pipeline.shapes_world.folder import write_shapes_world
from input_pipeline.shapes_world.splits import WORLD_VERSION
from input_pipeline.shapes_world.vocabulary import unseen_classes
from maft_jax.config.sections import ProposalsConfig
from maft_jax.configs.generator_shapes_world import get_config
from maft_jax.convert.generators import BUILT_IN, open_generator
from maft_jax.proposals.generators import make_generator
from maft_jax.proposals.precompute_summary import best_ious
from maft_jax.shapes_world import generator_training

NAME = "built-in:shapes_world"


def longer_training():
    config = get_config()
    config.num_steps += 1
    return config


def test_package_has_a_small_generator_of_the_recipe():
    files = list(BUILT_IN[NAME].iterdir())
    assert sum(path.stat().st_size for path in files) < 4_000_000
    opened, recipe = open_generator(NAME), get_config()
    assert opened.config.num_classes == 1
    assert opened.config.decoder.queries == recipe.generator.queries
    assert opened.preparation.shortest_edge == recipe.data.crop_size
    made = make_generator(ProposalsConfig(generator="mask2former", path=NAME), ["a name"])
    by_folder = ProposalsConfig(generator="mask2former", path=str(BUILT_IN[NAME]))
    assert made.fingerprint == make_generator(by_folder, []).fingerprint


def test_generator_of_a_split_is_trained_once_without_its_unseen_classes(tmp_path, monkeypatch):
    world = tmp_path / "worlds/seed_0"
    world.mkdir(parents=True)
    (world / "world.json").write_text(json.dumps({"seed": 0, "world_version": WORLD_VERSION}))
    trained = []

    def train(config, workdir):
        trained.append(config)
        shutil.copytree(BUILT_IN[NAME], workdir / "generator")
        tensors = safetensors.numpy.load_file(workdir / "generator/model.safetensors")
        full = {name: 1.0001 * tensor.astype(np.float32) for name, tensor in tensors.items()}
        safetensors.numpy.save_file(full, workdir / "generator/model.safetensors")

    monkeypatch.setattr(generator_training, "train_and_evaluate", train)
    half = generator_training.train_generator(tmp_path, 1)
    assert generator_training.train_generator(tmp_path, 1) == half
    (config,) = trained
    assert config.data.unseen_classes == unseen_classes(1)
    assert config.data.root == str(world) and config.task == "train_generator"
    found = safetensors.numpy.load_file(half / "model.safetensors")
    trained_file = half.parent / "generator/model.safetensors"
    for name, tensor in safetensors.numpy.load_file(trained_file).items():
        np.testing.assert_array_equal(found[name], tensor.astype(np.float16), err_msg=name)
    assert open_generator(half).config == open_generator(NAME).config
    monkeypatch.setattr(generator_training, "get_config", longer_training)
    other = generator_training.train_generator(tmp_path, 1)
    assert other != half and trained[-1].num_steps == longer_training().num_steps


@pytest.mark.slow
def test_masks_of_the_package_fit_objects_that_training_did_not_see(tmp_path):
    write_shapes_world(tmp_path / "world", seed=7, num_train=1, num_val=40)
    source = open_dataset("shapes_world", str(tmp_path / "world"), "val")
    unseen = [source.class_names.index(name) for name in unseen_classes(0)]
    generator = make_generator(ProposalsConfig(generator="mask2former", path=NAME), [])
    found = [
        iou
        for example in (source[index] for index in range(len(source)))
        for proposals in [generator(example, 16)]
        for label, iou in best_ious(
            proposals.masks, example.label_map, proposals.input_size
        ).items()
        if label in unseen
    ]
    assert len(found) > 15 and sum(found) / len(found) > 700_000
