"""Training that evaluates on the way: what it writes, how it resumes, what it leaves alone."""

import json
import logging
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from input_pipeline.sample_folder import write_sample_folder
from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.evaluators.checkpoint import evaluate_checkpoint
from maft_jax.evaluators.evaluation import Evaluation
from maft_jax.evaluators.results import read_result
from maft_jax.evaluators.unfinished_counts import ProgressLines
from maft_jax.evaluators.weights import read_evaluated_weights
from maft_jax.runtime.sharding import one_device_mesh
from maft_jax.runtime.stop_signals import TrainingInterrupted
from maft_jax.training.train_loop import train_and_evaluate
from tests.evaluators.small_evaluations import write_telling_weights
from tests.runs import make_data, read_metrics, small_config
from tests.test_structure import REPOSITORY, imports_of

# When one reader finds a file broken, orbax leaves the others to end in a closed event loop.
pytestmark = [
    pytest.mark.usefixtures("steps_compiled_once"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS = {"num_steps": 4, "log_every_steps": 1, "checkpointing.every_steps": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Settings of a training folder, and of one of 17 images to evaluate: three batches."""
    folder = tmp_path_factory.mktemp("training_evaluation")
    write_sample_folder(folder / "val", num_images=17, seed=1, size=(80, 60))
    weights = write_telling_weights(folder / "clip.safetensors")
    return make_data(folder) | {"val": str(folder / "val"), "model.pretrained": str(weights)}


def config_of(data, **changes):
    """Evaluates before the first step, after the second and after the last."""
    settings = {name: value for name, value in data.items() if name != "val"}
    evaluation = {
        "evaluation.roots.folder": data["val"],
        "evaluation.every_steps": 2,
        "evaluation.short_side": 60,
        "evaluation.num_pictures": 2,
    }
    return small_config(settings | STEPS | evaluation, **changes)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    train_and_evaluate(config_of(data), workdir)
    return workdir


def evaluations(workdir) -> dict[int, dict]:
    """Scalars by step; each step must be there once."""
    records = [r for r in read_metrics(workdir) if "evaluation/folder/miou_gt_or_pred" in r]
    steps = [record["step"] for record in records]
    assert len(set(steps)) == len(steps)
    return dict(zip(steps, records, strict=True))


def losses(workdir) -> list[float]:
    return [record["loss"] for record in read_metrics(workdir) if "loss" in record]


@pytest.mark.slow
def test_frozen_and_tuned_scalars_are_written_as_json_and_for_tensorboard(finished):
    found = evaluations(finished)
    assert list(found) == [0, 2, 4]
    events = EventAccumulator(str(finished))
    events.Reload()
    for step, record in found.items():
        result = read_result(finished / f"evaluation/step_{step}/folder.json")
        expected = {f"evaluation/folder/{k}": v for k, v in result.scalars().items()}
        assert {k: v for k, v in record.items() if k != "step"} == expected
        assert result.num_images == 17
        assert result.provenance["weights"]["step"] == step
        assert result.provenance["weights"]["frozen"] is (step == 0)
    tag = "evaluation/folder/miou_gt_or_pred"
    written = {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}
    assert written == pytest.approx({step: record[tag] for step, record in found.items()})
    towers = [
        read_result(finished / f"evaluation/step_{step}/folder.json").provenance["weights"]
        for step in (0, 2, 4)
    ]
    assert len({tower["image_tower"] for tower in towers}) == 3


@pytest.mark.slow
def test_pictures_are_drawn(finished):
    with Image.open(finished / "evaluation/folder.png") as picture:
        assert picture.size[0] >= 4 * 240
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000
    events = EventAccumulator(str(finished))
    events.Reload()
    assert [event.step for event in events.Tensors("evaluation/folder")] == [0, 2, 4]


@pytest.mark.slow
def test_training_is_the_same_as_without_evaluation(data, finished, tmp_path):
    settings = {name: value for name, value in data.items() if name != "val"} | STEPS
    train_and_evaluate(small_config(settings), tmp_path)
    assert losses(tmp_path) == losses(finished)
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.slow
def test_finished_run_evaluates_nothing_again_and_shows_the_table(
    data, finished, caplog, monkeypatch
):
    monkeypatch.setattr(Evaluation, "_predict", None)
    before = read_metrics(finished)
    with caplog.at_level(logging.INFO, "maft_jax"):
        train_and_evaluate(config_of(data), finished)
    assert "nothing to do" in caplog.text and "gain" in caplog.text
    assert read_metrics(finished) == before


def signal_in_batch(number: int, monkeypatch) -> None:
    """Sends this process SIGTERM when so many batches were counted in all."""
    shown = []

    def show(self, num_done):
        shown.append(num_done)
        if len(shown) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ProgressLines, "show", show)


@pytest.mark.slow
def test_signals_during_evaluations_lose_nothing(data, finished, tmp_path, monkeypatch, caplog):
    for batch, step in ((2, 0), (3, 2), (3, 4)):
        place = f"at step {step}, which is saved" if step else "before the first step"
        with monkeypatch.context() as patched:
            signal_in_batch(batch, patched)
            with pytest.raises(TrainingInterrupted, match=f"SIGTERM {place}") as caught:
                train_and_evaluate(config_of(data), tmp_path)
        assert caught.value.exit_code == 143
        assert (tmp_path / f"evaluation/step_{step}/folder.unfinished.npz").exists()
    with caplog.at_level(logging.INFO, "maft_jax"):
        train_and_evaluate(config_of(data), tmp_path)
    assert "going on after 16 of 17 images" in caplog.text
    assert evaluations(tmp_path) == evaluations(finished)
    assert losses(tmp_path) == losses(finished)
    for expected in (finished / "evaluation").rglob("*_confusion.npz"):
        path = tmp_path / expected.relative_to(finished)
        with np.load(path) as ours, np.load(expected) as theirs:
            np.testing.assert_array_equal(ours["confusion"], theirs["confusion"])


@pytest.mark.slow
def test_evaluations_after_the_checkpoint_are_found_again(data, finished, tmp_path, monkeypatch):
    """A run that was killed at step 3 begins at 2; what it had evaluated at 4 is still right."""
    for part in ("evaluation", "checkpoints/2", "config.json", "metrics.jsonl"):
        source, target = finished / part, tmp_path / part
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    monkeypatch.setattr(Evaluation, "_count_batch", None)
    train_and_evaluate(config_of(data), tmp_path)
    assert evaluations(tmp_path) == evaluations(finished)


def test_data_sets_that_cannot_be_evaluated_are_refused_before_training(data, tmp_path):
    config = config_of(data, evaluation__roots__folder=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="none"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.slow
def test_workdir_of_the_run_is_evaluated_by_its_own_protocol(data, finished, tmp_path):
    settings = {
        "task": "evaluate",
        "checkpoint": str(finished),
        "model.pretrained": "",
        "model.mask_start_layer": -1,
        "model.image_size": 0,
        "data.root": "",
    }
    config = config_of(data | settings)
    report = evaluate_checkpoint(config, tmp_path)
    expected = read_result(finished / "evaluation/step_4/folder.json")
    np.testing.assert_array_equal(report.results[0].confusion, expected.confusion)
    for part in ("protocol", "proposals", "images", "classes"):
        assert report.results[0].provenance[part] == expected.provenance[part]
    weights = report.results[0].provenance["weights"]
    assert weights["step"] == 4 and weights["checkpoint"] == str(finished)
    frozen = config_of(data | settings, evaluation__frozen=True)
    report = evaluate_checkpoint(frozen, tmp_path)
    expected = read_result(finished / "evaluation/step_0/folder.json")
    np.testing.assert_array_equal(report.results[0].confusion, expected.confusion)
    assert "gain" in report.table() and "WARNING" not in report.table()
    assert json.loads((finished / "config.json").read_text())["task"] == "train"


@pytest.mark.slow
def test_settings_that_the_command_changes_go_before_those_of_the_run(data, finished):
    settings = {"task": "evaluate", "checkpoint": str(finished), "model.pretrained": ""}
    config = read_evaluated_weights(config_of(data | settings), one_device_mesh()).config
    assert config.data.templates == PROMPT_TEMPLATES and config.loss.logit_scale == 100.0
    own = {"data.templates": ("a {}",), "loss.logit_scale": 50.0, "model.mask_start_layer": 3}
    config = read_evaluated_weights(config_of(data | settings | own), one_device_mesh()).config
    assert config.data.templates == ("a {}",) and config.loss.logit_scale == 50.0
    assert config.model.mask_start_layer == 3


@pytest.mark.slow
def test_names_that_a_run_was_trained_with_are_those_that_score_it(data, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    values = json.loads((run / "config.json").read_text())
    values["data"]["synonyms"] = False
    (run / "config.json").write_text(json.dumps(values))
    settings = {"task": "evaluate", "checkpoint": str(run), "model.pretrained": ""}
    config = read_evaluated_weights(config_of(data | settings), one_device_mesh()).config
    assert not config.data.synonyms


@pytest.mark.slow
def test_pretrained_weights_that_are_not_the_runs_are_refused(data, finished, tmp_path):
    other = write_telling_weights(tmp_path / "other.safetensors", seed=1)
    settings = {"task": "evaluate", "checkpoint": str(finished), "model.pretrained": str(other)}
    for frozen in (False, True):
        config = config_of(data | settings, evaluation__frozen=frozen)
        with pytest.raises(ValueError, match="give those that the run began with"):
            read_evaluated_weights(config, one_device_mesh())


def test_training_alone_does_not_import_evaluation():
    for module in ("train_loop", "run_setup"):
        path = REPOSITORY / f"maft_jax/training/{module}.py"
        top = [name for name, at_top in imports_of(path) if at_top]
        assert not [name for name in top if name.startswith("maft_jax.evaluators")], module
