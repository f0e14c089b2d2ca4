"""The study: which runs there are, what they read, and that finished ones are not repeated."""

import dataclasses
import errno
import json
import pathlib

import numpy as np
import pytest

from input_pipeline.shapes_world.folder import write_shapes_world
from input_pipeline.shapes_world.splits import WORLD_VERSION
from input_pipeline.shapes_world.vocabulary import unseen_classes
from maft_jax.configs.generator_shapes_world import get_config as generator_config
from maft_jax.configs.shapes_world import get_config
from maft_jax.convert.generator_files import WEIGHTS
from maft_jax.evaluators.results import read_result
from maft_jax.shapes_world import clip_training, generator_training, study, worlds
from maft_jax.shapes_world.clip_training_config import ClipTrainingConfig
from maft_jax.shapes_world.experiments import (
    CONVNEXT_EXPERIMENTS,
    EXPERIMENTS,
    LEARNED_MASKS,
    METHOD_EXPERIMENTS,
    METHODS,
    RECALL_TABLE,
    SECOND_CLIP,
    SECOND_CLIP_EXPERIMENTS,
    SEEDS,
    Experiment,
)
from maft_jax.state.restored_run import MODULES


def draw_small_worlds(folder):
    for seed in (0, 1, study.DEVELOPMENT_SEED):
        write_shapes_world(folder / "worlds" / f"seed_{seed}", seed, num_train=16, num_val=6)


def test_main_table_has_three_seeds_of_three_splits():
    main = [one for one in EXPERIMENTS if one.table == "main"]
    assert {one.split for one in main} == {0, 1, 2}
    assert all(one.seeds == SEEDS and len(SEEDS) >= 3 and not one.changes for one in main)


def test_every_experiment_is_a_valid_configuration(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(study, "train_generator", lambda folder, split: f"generator_{split}")
    monkeypatch.setattr(study, "precompute", made.append)
    monkeypatch.setattr(
        study, "train_clip", lambda config, _: pathlib.Path(f"{config.tower}_{config.seed}")
    )
    monkeypatch.setattr(study, "job_from_config", lambda config: config.data)
    for seed in (*SEEDS, *(study.DEVELOPMENT_SEED + seed for seed in SEEDS)):
        world = tmp_path / "worlds" / f"seed_{seed}"
        world.mkdir(parents=True)
        (world / "world.json").write_text(
            json.dumps({"seed": seed, "world_version": WORLD_VERSION})
        )
    clips = {"methods_second_clip": "vit_1", "methods_convnext": "convnext_0"}
    for experiment in (*EXPERIMENTS, *study._experiments_of_methods()):
        config = study.experiment_config(experiment, 0, tmp_path)
        assert set(unseen_classes(experiment.split)) <= set(config.data.unseen_classes)
        assert config.evaluation.num_pictures == 0
        if experiment.table == "learned_masks":
            assert config.proposals.path == f"generator_{experiment.split}"
        expected = clips.get(experiment.table, "built-in:shapes_world")
        assert config.model.pretrained == expected
        if experiment.row == "MAFT on true masks":
            assert not config.evaluation.roots.shapes_world
            assert made[-1].records == f"{config.evaluation.records}/shapes_world"


def test_settings_are_chosen_without_the_unseen_classes_and_on_other_pictures(tmp_path):
    draw_small_worlds(tmp_path)
    experiment = next(one for one in EXPERIMENTS if one.table == "steps_held_out")
    config = study.experiment_config(experiment, 0, tmp_path)
    held_out = unseen_classes(experiment.held_out_split)
    assert set(config.data.unseen_classes) == {*unseen_classes(0), *held_out}
    assert config.data.root != config.evaluation.roots.shapes_world


def test_same_runs_of_different_tables_have_one_name_and_others_do_not(tmp_path):
    recipe = Experiment("main", "split 0")
    both = Experiment("losses", "both", seeds=(0,))
    assert study._name(recipe, 0, tmp_path) == study._name(both, 0, tmp_path)
    others = [
        study._name(recipe, 1, tmp_path),
        study._name(Experiment("main", "split 1", split=1), 0, tmp_path),
        study._name(Experiment("main", "split 0", {"num_steps": 7}), 0, tmp_path),
        study._name(Experiment("main", "split 0", held_out_split=1), 0, tmp_path),
        study._name(Experiment("main", "split 0", first_phase={}), 0, tmp_path),
    ]
    assert len({study._name(recipe, 0, tmp_path), *others}) == 6


def write_generators(folder, content):
    """Where the study finds those that it has trained."""
    digest = generator_training.configuration_digest()
    for split in range(3):
        half = folder / "generators" / f"split_{split}-{digest}" / generator_training.HALF_FOLDER
        half.mkdir(parents=True, exist_ok=True)
        (half / WEIGHTS).write_bytes(content)


def write_clips(folder, content):
    for name in study.CLIPS_OF_THE_STUDY:
        study._trained_clip(name, folder).write_bytes(content)


def test_clip_of_another_architecture_is_trained_beside_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "train_clip", lambda config, workdir: workdir / "clip.safetensors")
    monkeypatch.setattr(study, "architecture", clip_training.architecture.__wrapped__)
    before = study._trained_clip(SECOND_CLIP, tmp_path)
    assert study._trained_clip(SECOND_CLIP, tmp_path) == before
    clip = clip_training.CLIPS["vit"]
    for change in ({"mlp_width": 64}, {"norm_epsilon": 1e-6}):
        vision = dataclasses.replace(clip.vision, **change)
        monkeypatch.setitem(study.CLIPS, "vit", dataclasses.replace(clip, vision=vision))
        assert study._trained_clip(SECOND_CLIP, tmp_path) != before

    def one_more(*given):
        return {"visual": {"one_more": np.zeros(3)}}

    monkeypatch.setitem(study.CLIPS, "vit", clip)
    monkeypatch.setattr(clip_training, "random_parameters", one_more)
    assert study._trained_clip(SECOND_CLIP, tmp_path) != before


def test_retrained_weights_of_the_same_configuration_are_other_runs(tmp_path, monkeypatch):
    def train_clip(config, workdir):
        workdir.mkdir(parents=True)
        return workdir / "clip.safetensors"

    monkeypatch.setattr(study, "train_clip", train_clip)
    experiments = (
        METHOD_EXPERIMENTS[0],
        Experiment("learned_masks", "split 1", LEARNED_MASKS, split=1),
        SECOND_CLIP_EXPERIMENTS[0],
        CONVNEXT_EXPERIMENTS[0],
    )

    def names():
        return [study._name(one, 0, tmp_path) for one in experiments]

    write_generators(tmp_path, b"first")
    write_clips(tmp_path, b"first")
    before = names()
    assert names() == before
    write_generators(tmp_path, b"again")
    write_clips(tmp_path, b"again")
    same = [one == other for one, other in zip(names(), before, strict=True)]
    assert same == [True, False, False, False]


def test_runs_with_learned_masks_alone_change_names_with_their_generators(tmp_path, monkeypatch):
    experiments = (
        Experiment("main", "split 0"),
        Experiment("main", "superpixels", {"proposals.generator": "superpixels"}),
        Experiment("learned_masks", "split 0", LEARNED_MASKS),
    )
    write_generators(tmp_path, b"narrow")
    before = [study._name(one, 0, tmp_path) for one in experiments]

    def wider():
        config = generator_config()
        config.generator.width *= 2
        return config

    monkeypatch.setattr(generator_training, "get_config", wider)
    write_generators(tmp_path, b"wide")
    after = [study._name(one, 0, tmp_path) for one in experiments]
    same = [one == other for one, other in zip(after, before, strict=True)]
    assert same == [True, True, False]


def test_methods_of_a_split_and_a_seed_come_one_after_the_other(tmp_path, monkeypatch):
    ran = []

    def run(experiment, seed, folder, path):
        ran.append((seed, experiment.split, experiment.row))
        return {}

    monkeypatch.setattr(study, "_run", run)
    monkeypatch.setattr(study, "_with_times", lambda records, folder: records)
    study.run_study(tmp_path, ["methods"])
    rows = list(METHODS)
    assert ran[:5] == [*((0, 0, row) for row in rows), (0, 1, rows[0])]
    assert len(ran) == len(METHOD_EXPERIMENTS) * len(SEEDS)


def test_world_of_another_seed_is_refused(tmp_path):
    write_shapes_world(tmp_path / "data", 3, num_train=1, num_val=1)
    worlds.draw_world(tmp_path / "data", 3)
    with pytest.raises(ValueError, match=r"expected the world of seed 4.*that of seed 3"):
        worlds.draw_world(tmp_path / "data", 4)
    (tmp_path / "data" / "world.json").unlink()
    with pytest.raises(ValueError, match="there is something else; choose another folder"):
        worlds.draw_world(tmp_path / "data", 3)


def test_full_disk_is_told_with_the_world_that_has_no_room(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worlds, "write_shapes_world", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'data'}'"):
        worlds.draw_world(tmp_path / "data", 3)


def test_unknown_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tables \['mian'\]: expected some of"):
        study.run_study(tmp_path, ["mian"])


def test_without_tables_all_are_run_those_of_recall_too(tmp_path, monkeypatch):
    nothing = dict.fromkeys(("EXPERIMENTS", "METHOD_EXPERIMENTS", "CONVNEXT_EXPERIMENTS"), ())
    for name, value in {**nothing, "SECOND_CLIP_EXPERIMENTS": ()}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "measure_recall", lambda folder: [{"table": RECALL_TABLE}])
    assert study.run_study(tmp_path) == [{"table": RECALL_TABLE}]
    assert study.run_study(tmp_path, [RECALL_TABLE]) == [{"table": RECALL_TABLE}]


def test_damaged_result_is_measured_again(tmp_path, monkeypatch):
    experiment = Experiment("main", "split 0", seeds=(0,))
    monkeypatch.setattr(study, "EXPERIMENTS", (experiment,))
    monkeypatch.setattr(study, "experiment_config", lambda *_: None)
    monkeypatch.setattr(study, "_scores", lambda *_: {"seen": 0.45, "unseen": 0.25})
    trained = []

    def train(config, workdir):
        trained.append(workdir)
        (workdir / "evaluation/step_2").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(study, "train_and_evaluate", train)
    (first,) = study.run_study(tmp_path, ["main"])
    assert study.run_study(tmp_path, ["main"]) == [first] and len(trained) == 1
    (path,) = (tmp_path / "results").iterdir()
    path.write_text(path.read_text().replace("0.45", "0.54"))
    (again,) = study.run_study(tmp_path, ["main"])
    assert again["scores"] == first["scores"] and len(trained) == 2


def test_second_phase_begins_with_the_modules_of_the_first_which_is_not_evaluated(
    tmp_path, monkeypatch
):
    write_shapes_world(tmp_path / "worlds" / "seed_1", 1, num_train=1, num_val=1)
    adapter = {"method": "mask_adapter", "num_steps": 3}
    mixed = {**adapter, "loss.adapter_masks": "mixed", "num_steps": 4}
    experiment = Experiment("methods", "two phases", mixed, first_phase=adapter)
    ran = []

    def train(config, workdir):
        ran.append((config, workdir))
        workdir.mkdir(parents=True)
        (workdir / MODULES).touch()

    monkeypatch.setattr(study, "train_and_evaluate", train)
    monkeypatch.setattr(study, "_reuse_frozen", lambda *_: None)
    study._run(experiment, 1, tmp_path, tmp_path / "results" / "name.json")
    (first, workdir), (second, _) = ran
    assert (first.num_steps, first.loss.adapter_masks) == (3, "ground_truth")
    assert not first.evaluation.has_data_sets and not first.model.modules
    assert (second.num_steps, second.loss.adapter_masks) == (4, "mixed")
    assert second.evaluation.has_data_sets and second.model.modules == str(workdir / MODULES)
    assert first.seed == second.seed == 1 and first.data == second.data


@pytest.mark.slow
def test_second_clip_is_trained_and_tuned(tmp_path, monkeypatch):
    draw_small_worlds(tmp_path)
    short = {"num_steps": 2, "batch_size": 8}
    training = ClipTrainingConfig(seed=1, num_pictures=100, quiz_size=100, **short)
    one = SECOND_CLIP_EXPERIMENTS[0]
    one = dataclasses.replace(one, changes={**one.changes, **short}, seeds=(0,))
    monkeypatch.setitem(study.CLIPS_OF_THE_STUDY, SECOND_CLIP, training)
    monkeypatch.setattr(study, "SECOND_CLIP_EXPERIMENTS", (one,))
    (record,) = study.run_study(tmp_path, ["methods_second_clip"])
    assert record["quiz"]["step"] == 2
    folder = tmp_path / "runs" / study._name(one, 0, tmp_path) / "evaluation"
    weights = read_result(folder / "step_0/shapes_world.json").provenance["weights"]
    assert weights["pretrained"] == str(study._trained_clip(SECOND_CLIP, tmp_path))
    assert record["scores"][0] != record["scores"][1]


@pytest.mark.slow
def test_runs_are_measured_once_and_scores_are_those_of_their_evaluations(tmp_path, monkeypatch):
    draw_small_worlds(tmp_path)

    def short_config(variant="drawn"):
        config = get_config(variant)
        config.update_from_flattened_dict({"num_steps": 2, "batch_size": 8})
        return config

    monkeypatch.setattr(worlds, "get_config", short_config)
    experiments = (
        Experiment("steps_held_out", "held out", seeds=(0,), held_out_split=1),
        Experiment("main", "split 0", seeds=(0,)),
        Experiment("losses", "both", seeds=(0,)),
    )
    monkeypatch.setattr(study, "EXPERIMENTS", experiments)
    tables = [experiment.table for experiment in experiments]
    held_out, main, both = study.run_study(tmp_path, tables)
    assert [score["step"] for score in held_out["scores"]] == [0, 2]
    assert [score["step"] for score in main["scores"]] == [0, 2]
    assert main | {"table": "losses", "row": "both"} == both
    folder = tmp_path / "runs" / study._name(experiments[1], 0, tmp_path) / "evaluation"
    result = read_result(folder / "step_2" / "shapes_world.json")
    assert main["scores"][1]["unseen"] == result.zero_shot.unseen_miou
    folder = tmp_path / "runs" / study._name(experiments[0], 0, tmp_path) / "evaluation"
    result = read_result(folder / "step_2" / "shapes_world.json")
    names = dict(zip(result.class_names, result.metrics.iou, strict=True))
    present = [names[name] for name in unseen_classes(1) if names[name] == names[name]]
    assert held_out["scores"][1]["held_out"] == pytest.approx(sum(present) / len(present))
    monkeypatch.setattr(study, "train_and_evaluate", None)
    assert json.dumps(study.run_study(tmp_path, tables)) == json.dumps([held_out, main, both])
