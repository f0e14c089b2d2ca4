"""Folders of runs as earlier versions left them."""

import dataclasses
import json
import logging

import pytest
from etils import epath

from maft_jax.config import Config, from_config_dict, preset
from maft_jax.config.sections import DataConfig, LossConfig, ModelConfig
from maft_jax.convert.formats import ClipWeights, write_weights
from maft_jax.inference.geometric_ensemble import read_trained_classes
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.runtime.workdir import describe_run
from maft_jax.state.restored_run import read_first_weights, read_run_config
from maft_jax.weights import open_weights
from tests.convert.test_convert_weights import tuned_run, weights


def write_config_of_version_0_1(folder, logit_scale: float) -> Config:
    """Its config.json, where the logit scale was loss.temperature; returns what it means."""
    config = Config(loss=LossConfig(logit_scale=logit_scale))
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, pretrained="random:tiny")
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root="photos"))
    values = dataclasses.asdict(config)
    values["loss"]["temperature"] = values["loss"].pop("logit_scale")
    (folder / "config.json").write_text(json.dumps(values))
    return config


def test_settings_of_version_0_1_are_read_under_their_names_of_today(tmp_path):
    config = write_config_of_version_0_1(tmp_path, 50.0)
    assert read_run_config(tmp_path) == config


def test_a_resumed_run_of_version_0_1_reports_only_what_changed(tmp_path, caplog):
    config = write_config_of_version_0_1(tmp_path, 50.0)
    with caplog.at_level(logging.WARNING):
        describe_run(epath.Path(tmp_path), config)
        assert caplog.messages == []
        write_config_of_version_0_1(tmp_path, 20.0)
        describe_run(epath.Path(tmp_path), config)
    assert caplog.messages == ["config.loss.logit_scale was 20.0 when this run began, now 50.0"]


def test_255_that_a_version_without_synonyms_kept_is_the_default_of_today(tmp_path, caplog):
    config = Config(model=ModelConfig(pretrained="random:tiny"), data=DataConfig(root="/photos"))
    values = dataclasses.asdict(config)
    for ignored, expected in (([255], (-1,)), ([0, 255], (0, 255))):
        del values["data"]["synonyms"]
        values["data"]["ignore_labels"] = ignored
        (tmp_path / "config.json").write_text(json.dumps(values))
        data = dataclasses.replace(config.data, ignore_labels=expected)
        assert read_run_config(tmp_path) == dataclasses.replace(config, data=data)
        describe_run(epath.Path(tmp_path), dataclasses.replace(config, data=data))
        assert not caplog.messages
        values["data"]["synonyms"] = True
    data = dataclasses.replace(config.data, ignore_labels=(255,))
    describe_run(epath.Path(tmp_path), dataclasses.replace(config, data=data))
    assert read_run_config(tmp_path).data.ignore_labels == (255,)
    assert caplog.messages == [
        "config.data.ignore_labels was (0, 255) when this run began, now (255,)"
    ]


def test_file_that_has_no_settings_is_named_and_written_again(tmp_path, caplog):
    config = write_config_of_version_0_1(tmp_path, 50.0)
    (tmp_path / "config.json").write_text('{"speed": 3}')
    describe_run(epath.Path(tmp_path), config)
    assert f"{tmp_path}: no settings of a run: " in caplog.text
    assert read_run_config(tmp_path).loss == config.loss


def make_run(workdir, pretrained: str) -> None:
    """A workdir as far as its first weights go."""
    config = preset("official")
    config.update_from_flattened_dict({"model.pretrained": pretrained, "data.root": "photos"})
    (workdir / "checkpoints").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))


def source_of(workdir, **where) -> str:
    """What a run's first weights are read from."""
    opened = []

    def open_weights(source, **stated):
        opened.append(str(source))
        return ClipWeights.of(CLIP_SIZES["tiny"], {})

    read_first_weights(workdir, open_weights, **where)
    return opened[0]


def test_a_run_records_absolute_paths_of_what_lay_beside_its_working_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = preset("official")
    config.update_from_flattened_dict(
        {
            "model.pretrained": "clip.pt",
            "data.root": "data/photos",
            "evaluation.roots.voc2012": "gs://bucket/VOC2012",
            "proposals.path": "/elsewhere/masks",
        }
    )
    describe_run(epath.Path(tmp_path), from_config_dict(config))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model"]["pretrained"] == str(tmp_path / "clip.pt")
    assert written["data"]["root"] == str(tmp_path / "data/photos")
    assert written["evaluation"]["roots"]["voc2012"] == "gs://bucket/VOC2012"
    assert written["proposals"]["path"] == "/elsewhere/masks"
    assert written["data"]["images"] == "images" and written["data"]["classes"] == "classes.txt"
    assert written["data"]["records"] == written["data"]["cache_dir"] == ""


@pytest.mark.parametrize(
    ("given", "first"), [("seen.txt", ("cat", "kitten")), ("voc_20", ("aeroplane",))]
)
def test_what_the_generator_was_trained_on_is_found_from_any_folder(
    given, first, tmp_path, monkeypatch
):
    """A list that lies where the command was given, not below config.data.root, or a known one."""
    here, root = tmp_path / "here", tmp_path / "here/photos"
    root.mkdir(parents=True)
    (here / "seen.txt").write_text("1:cat,kitten\n")
    (root / "seen.txt").write_text("1:dog\n")
    monkeypatch.chdir(here)
    config = preset("official")
    settings = {"trained_classes": given, "ensemble_exponents": (0.4, 0.8)}
    config.evaluation.update(settings)
    config.update_from_flattened_dict({"model.pretrained": "random:tiny", "data.root": "photos"})
    describe_run(epath.Path(tmp_path), from_config_dict(config))
    monkeypatch.chdir(tmp_path)
    read = read_run_config(tmp_path)
    assert read_trained_classes(read.evaluation.trained_classes)[0] == first


def test_a_run_that_recorded_relative_weights_finds_them_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "clip.pt").write_text("")
    make_run(tmp_path / "runs/first", "clip.pt")
    monkeypatch.chdir(tmp_path)
    assert source_of("runs/first") == "clip.pt"
    monkeypatch.chdir(tmp_path / "other")
    assert source_of("../runs/first") == str(tmp_path / "clip.pt")


def test_a_folder_that_was_copied_as_a_whole_keeps_its_runs_usable(tmp_path, caplog):
    make_run(tmp_path / "copy/runs/first", "/gone/project/weights/clip.pt")
    (tmp_path / "copy/weights").mkdir()
    (tmp_path / "copy/weights/clip.pt").write_text("")
    assert source_of(tmp_path / "copy/runs/first") == str(tmp_path / "copy/weights/clip.pt")
    assert "for /gone/project/weights/clip.pt, which is not there" in caplog.text


def test_weights_that_are_stated_are_taken_without_a_search(tmp_path):
    make_run(tmp_path / "run", "clip.pt")
    (tmp_path / "clip.pt").write_text("")
    assert source_of(tmp_path / "run", pretrained="moved.pt") == "moved.pt"


def test_a_runs_own_result_is_not_taken_for_what_it_began_with(tmp_path):
    make_run(tmp_path / "run", "/gone/tuned.safetensors")
    (tmp_path / "run/tuned.safetensors").write_text("")
    with pytest.raises(ValueError, match="no such file") as error:
        read_first_weights(tmp_path / "run", open_weights)
    assert f"or give {tmp_path}/run/tuned.safetensors, the CLIP as it was tuned" in str(error.value)
    assert "say where (--pretrained=...); in Python (pretrained=...)" in str(error.value)


def test_a_run_whose_weights_cannot_be_downloaded_now_says_what_else_can_be_given(tmp_path):
    make_run(tmp_path / "run", "hf:user/clip")
    (tmp_path / "run/tuned.safetensors").write_text("")

    def no_network(source, **stated):
        raise OSError(f"{source}: not in the cache")

    with pytest.raises(OSError, match=r"hf:user/clip: not in the cache.*or give .*run/tuned"):
        read_first_weights(tmp_path / "run", no_network)


def test_names_of_weights_are_never_searched_for(tmp_path):
    make_run(tmp_path / "run", "random:tiny")
    assert source_of(tmp_path / "run") == "random:tiny"


def test_a_run_is_never_taken_for_the_weights_it_began_with(tmp_path):
    """Their folder is not there any more, and had the name of the run's."""
    run = tmp_path / "runs/ViT-B-32"
    (run / "checkpoints").mkdir(parents=True)
    config = write_config_of_version_0_1(run, 100.0)
    model = dataclasses.replace(config.model, pretrained="/data/models/ViT-B-32")
    (run / "config.json").write_text(
        json.dumps(dataclasses.asdict(config) | {"model": vars(model)})
    )
    with pytest.raises(ValueError, match=r"began with the weights /data/models/ViT-B-32"):
        open_weights(run)


@pytest.mark.slow
def test_moved_weights_of_another_text_tower_are_refused_where_the_run_noted_its_own(tmp_path):
    write_weights(weights(), tmp_path / "clip.pt", "openai")
    first, second = weights().tensors, weights(1).tensors
    merged = {path: (first if path.startswith("visual/") else second)[path] for path in first}
    write_weights(dataclasses.replace(weights(), tensors=merged), tmp_path / "merged.pt", "openai")
    tuned_run(tmp_path / "earlier", str(tmp_path / "clip.pt"))
    own = fingerprint(weights().parameters()["text"])
    tuned_run(tmp_path / "run", str(tmp_path / "clip.pt"), text_tower=own)
    for run, pretrained in (("earlier", "merged.pt"), ("run", "clip.pt")):
        open_weights(tmp_path / run, pretrained=str(tmp_path / pretrained))
    with pytest.raises(ValueError, match=rf"made with text_tower='{own}', that of these weights"):
        open_weights(tmp_path / "run", pretrained=str(tmp_path / "merged.pt"))
