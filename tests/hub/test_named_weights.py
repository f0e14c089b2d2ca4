"""Runs whose weights are named: they keep the commit and the files with which they began."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

import maft_jax
from maft_jax.convert.formats import write_weights
from maft_jax.runtime.workdir import describe_run
from maft_jax.state.named_weights import _check_same_files, pin_weights, read_named_weights
from maft_jax.training.train_loop import train_and_evaluate
from maft_jax.weights import open_weights
from tests.runs import make_data, small_config

NAME = "hf:user/clip"


def configure(**changes):
    return small_config({"data.root": "photos"}, **{"model__pretrained": NAME, **changes})


def test_a_run_keeps_the_commit_and_notes_the_files_with_which_it_began(hub, tmp_path):
    commit = hub.put("user/clip", {"model.safetensors": b"x" * 3000})
    config, named = pin_weights(configure(model__modules="here.pt"), {})
    assert (config.model.pretrained, config.model.modules) == (f"{NAME}@{commit}", "here.pt")
    assert list(named) == ["model.pretrained"]
    describe_run(epath.Path(tmp_path), config, named)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["pretrained"] == (
        f"{NAME}@{commit}"
    )
    before = read_named_weights(epath.Path(tmp_path))
    assert before == named and len(before["model.pretrained"]["sha256"]["model.safetensors"]) == 64

    hub.put("user/clip", {"model.safetensors": b"y" * 3000})
    shutil.rmtree(tmp_path / "cache")
    again = configure(model__modules="here.pt")
    assert pin_weights(again, before) == (config, named) == pin_weights(config, before)
    assert pin_weights(again, {})[0] != config  # another run begins with what is there now


def test_a_run_whose_files_changed_is_told_which(hub):
    hub.put("user/clip", {"model.safetensors": b"x" * 3000})
    _, named = pin_weights(configure(), {})
    named["model.pretrained"]["sha256"]["model.safetensors"] = "0" * 64
    with pytest.raises(ValueError, match=r"pretrained=hf:user/clip: model\.safetensors has other"):
        pin_weights(configure(), named)


def test_settings_that_are_no_names_stay_and_nothing_is_noted(tmp_path):
    config = small_config({"data.root": "photos"})
    assert pin_weights(config, {}) == (config, {})
    assert read_named_weights(epath.Path(tmp_path)) == {}


@pytest.mark.parametrize("known", ["hf:user/clip", {"name": "hf:user/clip"}])
def test_what_a_run_knows_of_its_names_may_be_damaged(tmp_path, known):
    (tmp_path / "weights.json").write_text(json.dumps({"model.pretrained": known}))
    with pytest.raises(ValueError, match=r"model\.pretrained: expected name, pinned, sha256, got"):
        read_named_weights(epath.Path(tmp_path))


@pytest.mark.slow
def test_a_run_goes_on_and_is_read_with_the_weights_of_its_name(hub, tmp_path):
    weights = open_weights("built-in:shapes_world")
    write_weights(weights, tmp_path / "clip", "transformers")
    files = {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()}
    commit = hub.put("user/clip", files)
    data = make_data(tmp_path)
    changes = {"model__mask_start_layer": 1, "num_steps": 2}
    half = small_config(data, model__pretrained=NAME, **changes)
    train_and_evaluate(half, tmp_path / "run")
    hub.put("user/clip", files | {"model.safetensors": b"other weights" * 1000})
    shutil.rmtree(tmp_path / "cache")
    whole = small_config(data, model__pretrained=NAME, **changes | {"num_steps": 3})
    state = train_and_evaluate(whole, tmp_path / "run")
    assert int(state.step) == 3
    recorded = json.loads((tmp_path / "run/config.json").read_text())
    assert recorded["model"]["pretrained"] == f"{NAME}@{commit}"
    shutil.rmtree(tmp_path / "cache")
    tuned = maft_jax.load(tmp_path / "run").parameters
    jax.tree.map(
        np.testing.assert_array_equal,
        tuned["visual"],
        maft_jax.load(pathlib.Path(tmp_path, "run/tuned.safetensors")).parameters["visual"],
    )


def test_files_that_a_run_began_with_must_be_there_again():
    with pytest.raises(ValueError, match=r"here: expected config.json, too, with which this run"):
        _check_same_files("here", {"config.json": "a", "model.bin": "b"}, {"model.bin": "b"})
