"""Whole runs in this process: what they write, how they resume, what they refuse."""

import gc
import json
import logging
import os
import pathlib
import shutil
import time
import warnings

import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import maft_jax
from maft_jax.config.sections import CheckpointingConfig
from maft_jax.runtime import tree_rules
from maft_jax.runtime.only_writer import FolderInUse, only_writer
from maft_jax.state.checkpointing import Checkpoints
from maft_jax.training.train_loop import TrainingDiverged, train_and_evaluate
from tests.runs import make_data, read_metrics, small_config
from tests.tracking.clients_on_path import made_up_client

# When one reader finds a file broken, orbax leaves the others to end in a closed event loop.
pytestmark = [
    pytest.mark.usefixtures("steps_compiled_once"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def end_abandoned_readers():
    yield
    time.sleep(0.5)
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module", autouse=True)
def wandb():
    with made_up_client("wandb") as module:
        yield module


THIRTY_STEPS = {"num_steps": 30, "log_every_steps": 6, "checkpointing__every_steps": 12}
THIRTY_STEPS |= {"tracking": "wandb"}


@pytest.fixture(scope="module")
def finished(data, wandb, tmp_path_factory):
    """A run of 30 steps that nothing interrupted, and its workdir."""
    workdir = tmp_path_factory.mktemp("finished")
    config = small_config(data, **THIRTY_STEPS)
    return train_and_evaluate(config, workdir), workdir


def arrays(state):
    return tree_rules.flatten({"trainable": state.trainable, "mu": state.opt_state[1].mu})


def test_loss_falls(finished):
    metrics = read_metrics(finished[1])
    assert [record["step"] for record in metrics] == [6, 12, 18, 24, 30]
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]


def test_every_metric_is_written_as_json_and_for_tensorboard(finished):
    workdir, expected = (
        finished[1],
        {
            "loss",
            "mask_aware_loss",
            "distillation_loss",
            "grad_norm",
            "empty_proposals",
            "learning_rate",
            "images_per_second",
            "seconds_per_step",
            "data_wait_fraction",
        },
    )
    events = EventAccumulator(str(workdir))
    events.Reload()
    metrics = read_metrics(workdir)
    assert set(metrics[0]) == expected | {"step"}
    assert set(events.Tags()["tensors"]) == expected | {"training_data"}
    steps = [event.step for event in events.Tensors("loss")]
    assert steps == [record["step"] for record in metrics]
    schedule = [2e-4 * (1 - (record["step"] - 1) / 30) ** 0.9 for record in metrics]
    np.testing.assert_allclose([record["learning_rate"] for record in metrics], schedule, rtol=1e-5)


def test_curves_are_tracked_with_the_settings(finished, wandb):
    workdir = finished[1]
    progress = json.loads((workdir / "tracking.json").read_text())
    run = wandb.runs[progress["run"]]
    assert [row for _, row in run.rows] == read_metrics(workdir)
    assert run.exit_codes == [0] and progress["num_points"] == 5
    assert run.config["optimizer.learning_rate"] == 2e-4 and run.config["num_steps"] == 30


def test_workdir_tells_what_the_run_was(finished):
    workdir = finished[1]
    config = json.loads((workdir / "config.json").read_text())
    assert config["num_steps"] == 30 and config["optimizer"]["learning_rate"] == 2e-4
    versions = json.loads((workdir / "versions.json").read_text())
    assert versions["jax"] and versions["python"] and "git_revision" in versions


def test_tuned_weights_are_the_final_parameters_and_load(finished):
    state, workdir = finished
    clip = maft_jax.load(workdir / "tuned.safetensors", mask_start_layer=2)
    ours = tree_rules.flatten(clip.parameters["visual"])
    untuned = tree_rules.flatten(maft_jax.load("random:tiny").parameters["visual"])
    trained = tree_rules.flatten(state.trainable)
    for path, value in ours.items():
        expected = trained.get(path, untuned[path])
        np.testing.assert_array_equal(value, expected, err_msg=path)
    assert not np.array_equal(ours["ln_post/scale"], untuned["ln_post/scale"])


def test_run_is_loaded_from_its_workdir_or_its_tuned_weights_alike(finished):
    workdir = finished[1]
    of_run, of_file = maft_jax.load(workdir), maft_jax.load(workdir / "tuned.safetensors")
    ours, theirs = (tree_rules.flatten(clip.parameters) for clip in (of_run, of_file))
    assert set(ours) == set(theirs)
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)
    for clip in (of_run, of_file):
        assert (clip.mask_start_layer, clip.image_size) == (2, 64)
    with pytest.raises(ValueError, match="a training run, whose architecture is known"):
        maft_jax.load(workdir, activation="gelu")


@pytest.mark.slow
def test_settings_left_to_the_weights_are_resolved_in_the_runs_config(data, finished, tmp_path):
    changes = {
        "model.pretrained": str(finished[1] / "tuned.safetensors"),
        "model.mask_start_layer": -1,
        "model.image_size": 0,
    }
    train_and_evaluate(small_config(data | changes, num_steps=1), tmp_path)
    model = json.loads((tmp_path / "config.json").read_text())["model"]
    assert (model["mask_start_layer"], model["image_size"]) == (2, 64)
    clip = maft_jax.load(tmp_path)
    assert (clip.mask_start_layer, clip.image_size) == (2, 64)


@pytest.mark.slow
def test_relative_workdir_works(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_and_evaluate(small_config(data, num_steps=2, checkpointing__every_steps=1), "runs/first")
    assert (tmp_path / "runs/first/checkpoints/2").exists()


def test_training_data_is_drawn(finished):
    picture = np.asarray(Image.open(finished[1] / "training_data.png"))
    assert picture.shape[2] == 3 and picture.shape[0] == 4 * 240 + 3 * 4
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000


def test_newest_and_best_checkpoints_are_kept(finished):
    kept = {int(path.name) for path in (finished[1] / "checkpoints").iterdir()}
    assert {24, 30} <= kept <= {12, 24, 30}


def test_only_trainable_leaves_are_in_the_checkpoint(finished):
    state, workdir = finished
    blocks = {f"blocks_{i}" for i in range(4)}
    assert set(state.trainable) == blocks | {"ln_post"}
    manifest = json.loads((workdir / "checkpoints/30/state/_METADATA").read_text())
    names = list(manifest["tree_metadata"])
    assert any("in_proj" in name for name in names)
    assert not any("mlp" in name or "embedding" in name or "text" in name for name in names)


def test_resumed_run_ends_bit_identical(data, finished, tmp_path):
    config = small_config(data, **THIRTY_STEPS)
    shutil.copytree(finished[1] / "checkpoints/24", tmp_path / "checkpoints/24")
    state = train_and_evaluate(config, tmp_path)
    for path, expected in arrays(finished[0]).items():
        np.testing.assert_array_equal(arrays(state)[path], expected, err_msg=path)
    expected = [record["loss"] for record in read_metrics(finished[1])]
    assert [record["loss"] for record in read_metrics(tmp_path)] == expected[4:]


def test_finished_run_does_nothing_but_make_missing_weights(data, finished, caplog):
    config = small_config(data, **THIRTY_STEPS)
    before, tuned = read_metrics(finished[1]), finished[1] / "tuned.safetensors"
    with caplog.at_level(logging.INFO, "maft_jax"):
        train_and_evaluate(config, finished[1])
    assert "nothing to do" in caplog.text
    content = tuned.read_bytes()
    tuned.unlink()
    train_and_evaluate(config, finished[1])
    assert tuned.read_bytes() == content
    tuned.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    train_and_evaluate(config, finished[1])
    assert tuned.read_bytes() == content
    assert f"{tuned}: corrupt tensor" in caplog.text and "writing it again" in caplog.text
    assert read_metrics(finished[1]) == before


@pytest.fixture
def copied(data, finished, tmp_path):
    """A copy of the finished run's workdir with checkpoints at 24 and 30, and its configuration."""
    workdir = pathlib.Path(shutil.copytree(finished[1], tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints/12", ignore_errors=True)  # the best one, perhaps
    return small_config(data, **THIRTY_STEPS), workdir


def largest_file(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path):
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_byte, truncate, delete])
def test_broken_newest_checkpoint_is_reported_and_the_one_before_used(copied, damage, caplog):
    config, workdir = copied
    damage(largest_file(workdir / "checkpoints/30/state"))
    state = train_and_evaluate(config, workdir)
    assert "checkpoint of step 30 is broken" in caplog.text
    assert int(state.step) == 30 and (workdir / "broken_checkpoints/30").exists()
    assert (workdir / "checkpoints/30").exists()


@pytest.mark.slow
def test_unreadable_record_is_a_broken_checkpoint_too(copied, caplog):
    config, workdir = copied
    largest_file(workdir / "checkpoints/30/data").write_text("[]")
    with pytest.raises(ValueError, match=r"checkpoints/30 is broken"):
        maft_jax.load(workdir)
    train_and_evaluate(config, workdir)
    assert "step 30 is broken (its record of what it was made with is corrupt)" in caplog.text


def test_no_whole_checkpoint_is_an_error_that_says_so(copied, caplog):
    config, workdir = copied
    truncate(largest_file(workdir / "checkpoints/30/state"))
    truncate(largest_file(workdir / "checkpoints/24/data"))
    for _ in range(2):  # nor does a second start begin at step 0 in silence
        with pytest.raises(ValueError, match=r"no whole checkpoint is left; broken ones \[30, 24"):
            train_and_evaluate(config, workdir)
    assert "checkpoint of step 24 is broken (JSONDecodeError" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed=0, this run has seed=1"),
        ({"batch_size": 16}, "batch_size=8, this run has batch_size=16"),
        ({"proposals__num_proposals": 9}, "proposals='superpixels, at most 8', this run has"),
        ({"optimizer__trainable": ("/ln_1/",)}, "made with trainable="),
        ({"model__mask_start_layer": 3}, "mask_start_layer=2, this run has mask_start_layer=3"),
        ({"model__image_size": 96}, "image_size=64, this run has image_size=96"),
        (
            {"model__mask_rule": "shared_patches"},
            r"another way to read masks \(mask_rule=None, this run has mask_rule='shared_patches'\)"
            r"; restore config\.model\.mask_rule",
        ),
    ],
)
def test_checkpoint_of_another_run_is_refused(data, finished, change, message):
    before = (finished[1] / "config.json").read_text()
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(small_config(data, **(THIRTY_STEPS | change)), finished[1])
    assert (finished[1] / "config.json").read_text() == before


def test_what_is_told_by_digests_is_said_in_words(tmp_path):
    checkpoints = Checkpoints(epath.Path(tmp_path), CheckpointingConfig())
    record = {"seed": 0, "text_tower": "1a", "synonyms": None}
    noted_later = {"text_tower": "2b", "mask_start_layer": 2, "image_size": 64, "mask_rule": None}
    checkpoints._check_belongs(3, {"seed": 0}, {"seed": 0, "synonyms": None} | noted_later)
    with pytest.raises(ValueError, match="mask_rule=None, this run has mask_rule='shared_patches'"):
        checkpoints._check_belongs(3, {"seed": 0}, {"seed": 0, "mask_rule": "shared_patches"})
    for changed, words in {
        "text_tower": r"another text tower .* \(text_tower='1a', this run has text_tower='2b'\)",
        "synonyms": r"other further names of the classes .*; restore the class list",
    }.items():
        with pytest.raises(ValueError, match=f"checkpoints/3 was made with {words}"):
            checkpoints._check_belongs(3, record, record | {changed: "2b"})
    checkpoints.close()


def test_changed_setting_is_reported(data, copied, caplog):
    _, workdir = copied
    config = small_config(data, **THIRTY_STEPS | {"log_every_steps": 3})
    train_and_evaluate(config, workdir)
    assert "config.log_every_steps was 6 when this run began, now 3" in caplog.text


@pytest.mark.slow
def test_non_finite_loss_stops_with_step_examples_and_last_checkpoint(data, tmp_path):
    train_and_evaluate(small_config(data, num_steps=2, log_every_steps=1), tmp_path)
    exploding = small_config(data, num_steps=8, log_every_steps=4, optimizer__learning_rate=1e30)
    with pytest.raises(TrainingDiverged) as caught:
        train_and_evaluate(exploding, tmp_path)
    message = str(caught.value)
    assert "step 4 is not finite" in message
    assert "scene_000" in message
    assert "last good checkpoint: step 2" in message
    assert not (tmp_path / "checkpoints/4").exists()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_unwritable_workdir_is_refused_before_anything_else(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--workdir=.*file/run: cannot write there"):
        train_and_evaluate(small_config(data), tmp_path / "file/run")


def test_too_little_disk_space_is_refused_before_any_step(data, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 2**20})())
    with pytest.raises(OSError, match=r"1 MiB free, but .* need 28 MiB"):
        train_and_evaluate(small_config(data), tmp_path)


def test_second_run_in_a_workdir_is_refused_before_anything_else(data, tmp_path):
    with only_writer(tmp_path, "--workdir"), pytest.raises(FolderInUse, match=str(os.getpid())):
        train_and_evaluate(small_config(data), tmp_path)
    assert os.listdir(tmp_path) == []


def test_unusable_cache_folder_is_refused_by_name(data, tmp_path):
    (tmp_path / "file").write_text("")
    config = small_config(data | {"data.cache_dir": str(tmp_path / "file/cache")})
    with pytest.raises(ValueError, match=r"config\.data\.cache_dir=.*cache: cannot write there"):
        train_and_evaluate(config, tmp_path / "run")


def test_impossible_start_layer_is_refused_before_any_step(data, tmp_path):
    with pytest.raises(ValueError, match="mask_start_layer=5: expected 0 to 4"):
        train_and_evaluate(small_config(data, model__mask_start_layer=5), tmp_path)


def test_image_smaller_than_a_patch_is_refused_before_any_step(data, tmp_path):
    with pytest.raises(ValueError, match="expected at least one patch of 16x16"):
        train_and_evaluate(small_config(data, model__image_size=8), tmp_path)


def test_broken_label_map_is_refused_before_any_step(data, tmp_path):
    broken = make_data(tmp_path)
    (tmp_path / "data/annotations/scene_0003.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"scene_0003\.png"):
        train_and_evaluate(small_config(broken), tmp_path / "run")
