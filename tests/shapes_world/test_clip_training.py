"""Training of the tiny CLIP: a few steps of it, interrupted and not, and the CLIP that comes along.

The pictures are those of conftest.py, drawn once.
"""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from open_clip.model import build_model_from_openai_state_dict

import maft_jax
from input_pipeline.shapes_world.scenes import SIZE
from input_pipeline.shapes_world.vocabulary import COLORS, OBJECTS, object_class
from maft_jax.benchmarks.pytorch.openai_clip import clip_from_state_dict
from maft_jax.models.first_positions import sines_and_cosines
from maft_jax.models.preprocess import normalised
from maft_jax.models.text.tokenizer import tokenize
from maft_jax.runtime.stop_signals import TrainingInterrupted
from maft_jax.shapes_world import clip_training
from maft_jax.shapes_world.caption_pairs import Quiz
from maft_jax.shapes_world.clip_training import train_clip
from maft_jax.shapes_world.clip_training_config import ClipTrainingConfig
from maft_jax.weights import BUILT_IN

CONFIG = ClipTrainingConfig(
    seed=3, num_steps=6, batch_size=8, num_pictures=100, quiz_size=100, warmup_steps=2
)
PACKAGES = "built-in:shapes_world"


@pytest.fixture(scope="module", autouse=True)
def _pictures_are_drawn_once(drawn_pairs):
    pairs, drawn_with = drawn_pairs

    def draw_pairs(*arguments):
        assert arguments == drawn_with
        return pairs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_training, "draw_pairs", draw_pairs)
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train_clip(CONFIG, folder) == folder / "clip.safetensors"
    return folder


def curve_of(folder):
    return json.loads((folder / "clip.json").read_text())


def bytes_of(folder):
    return (folder / "clip.safetensors").read_bytes()


@pytest.mark.slow
def test_curve_has_the_loss_of_every_step_the_settings_and_a_last_quiz(workdir):
    curve = curve_of(workdir)
    assert set(curve) == {"settings", "loss", "quiz"}
    assert curve["settings"] == dataclasses.asdict(CONFIG)
    assert len(curve["loss"]) == 6
    assert all(0 < loss < 10 and loss == round(loss, 4) for loss in curve["loss"])
    # Those of the version that made the package's CLIP, which read pictures as they are drawn.
    expected = [2.513, 2.7182, 2.8819, 3.249, 2.6421, 2.4478]
    np.testing.assert_allclose(curve["loss"], expected, atol=2e-3, rtol=0)
    (quiz,) = curve["quiz"]
    assert set(quiz) == {"step", "object", "pattern", "color"} and quiz["step"] == 6
    assert 0 <= quiz["object"] <= min(quiz["pattern"], quiz["color"]) <= 1


@pytest.mark.slow
def test_interrupted_run_goes_on_to_the_same_bytes(workdir, tmp_path, monkeypatch):
    calls, step = [], clip_training._step

    def stopped_in_the_third_step(*arguments):
        calls.append(len(calls))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(clip_training, "_step", stopped_in_the_third_step)
        with pytest.raises(TrainingInterrupted, match="SIGTERM at step 3, which is saved") as stop:
            train_clip(CONFIG, tmp_path)
    assert stop.value.exit_code == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "unfinished.msgpack"]
    assert len(curve_of(tmp_path)["loss"]) == 3
    train_clip(CONFIG, tmp_path)
    assert bytes_of(tmp_path) == bytes_of(workdir)
    assert curve_of(tmp_path)["loss"] == curve_of(workdir)["loss"]
    assert [quiz["step"] for quiz in curve_of(tmp_path)["quiz"]] == [3, 6]
    assert curve_of(tmp_path)["quiz"][-1] == curve_of(workdir)["quiz"][-1]


@pytest.mark.slow
def test_run_that_is_stopped_during_each_quiz_ends_in_the_same_bytes(
    workdir, tmp_path, monkeypatch
):
    quiz_accuracy = clip_training.quiz_accuracy

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return quiz_accuracy(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(clip_training, "_QUIZ_EVERY", 2)
        patch.setattr(clip_training, "quiz_accuracy", stopped)
        for step in (2, 4, 6):
            with pytest.raises(TrainingInterrupted, match=f"SIGINT at step {step}"):
                train_clip(CONFIG, tmp_path)
    train_clip(CONFIG, tmp_path)
    assert bytes_of(tmp_path) == bytes_of(workdir)
    assert curve_of(tmp_path)["loss"] == curve_of(workdir)["loss"]
    assert [quiz["step"] for quiz in curve_of(tmp_path)["quiz"]] == [2, 4, 6]


@pytest.mark.slow
def test_equal_seeds_give_equal_files_and_other_learning_rates_others(workdir, tmp_path):
    train_clip(CONFIG, tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(workdir)
    assert curve_of(tmp_path / "again") == curve_of(workdir)
    train_clip(dataclasses.replace(CONFIG, learning_rate=1e-3), tmp_path / "other")
    assert bytes_of(tmp_path / "other") != bytes_of(workdir)


@pytest.mark.slow
def test_loss_falls(tmp_path):
    config = dataclasses.replace(CONFIG, num_steps=60, batch_size=20, learning_rate=1e-3)
    train_clip(config, tmp_path)
    loss = curve_of(tmp_path)["loss"]
    assert np.mean(loss[-10:]) < np.mean(loss[:10]) - 0.2


@pytest.mark.slow
def test_finished_run_is_neither_repeated_nor_drawn_again(workdir, monkeypatch):
    before = bytes_of(workdir), curve_of(workdir)
    monkeypatch.setattr(clip_training, "draw_pairs", None)
    monkeypatch.setattr(clip_training, "_step", None)
    train_clip(CONFIG, workdir)
    assert (bytes_of(workdir), curve_of(workdir)) == before


@pytest.mark.slow
def test_run_of_a_version_that_had_fewer_settings_goes_on(workdir, tmp_path):
    state, curve = clip_training._resumed(first_state(), CONFIG, workdir)
    for later in ("tower", "num_captions"):
        del curve["settings"][later]
    clip_training._keep(state, curve, tmp_path)
    assert clip_training._resumed(first_state(), CONFIG, tmp_path)[1]["loss"] == curve["loss"]
    with pytest.raises(ValueError, match="expected an empty folder"):
        other = dataclasses.replace(CONFIG, num_captions=2)
        clip_training._resumed(first_state(), other, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"seed": 4}, {"num_steps": 7}, {"learning_rate": 1e-3}])
def test_workdir_of_other_settings_is_refused_and_left_alone(workdir, change):
    before = {path: path.read_bytes() for path in workdir.iterdir()}
    with pytest.raises(ValueError, match=r"(?s)expected an empty folder or.*another --workdir"):
        train_clip(dataclasses.replace(CONFIG, **change), workdir)
    assert {path: path.read_bytes() for path in workdir.iterdir()} == before


@pytest.mark.slow
def test_weights_are_half_precision_in_the_layout_of_openai(workdir):
    tensors = safetensors.numpy.load_file(workdir / "clip.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    assert tensors["token_embedding.weight"].shape == (49408, 64)
    assert tensors["visual.conv1.weight"].shape == (128, 3, 16, 16)
    assert float(tensors["logit_scale"]) <= np.log(100) + 1e-3


@pytest.mark.slow
def test_weights_are_the_parameters_of_the_last_step_rounded(workdir):
    restored = clip_training._resumed(first_state(), CONFIG, workdir)[0].parameters
    loaded = maft_jax.load(workdir / "clip.safetensors").parameters
    assert jax.tree.structure(loaded) == jax.tree.structure(dict(restored))
    for ours, kept in zip(jax.tree.leaves(loaded), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(ours, np.asarray(kept, np.float16).astype(np.float32))


def first_state():
    parameters = clip_training._first_parameters(CONFIG)
    moments = clip_training._optimizer(CONFIG).init(parameters)
    return clip_training._State(parameters, moments)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["openai", "open_clip"])
def test_other_libraries_compute_as_we_do(workdir, drawn_pairs, library):
    path = workdir / "clip.safetensors"
    clip = maft_jax.load(path)
    tensors = {name: torch.from_numpy(x) for name, x in safetensors.numpy.load_file(path).items()}
    if library == "openai":
        model = clip_from_state_dict({name: x.float() for name, x in tensors.items()}).eval()
    else:
        model = build_model_from_openai_state_dict(tensors).float().eval()
    images = np.array(normalised(jax.device_put(drawn_pairs[0].images[:3])))
    tokens = tokenize([f"a photo of a {OBJECTS[0]}.", "a photo of grass."])
    with torch.no_grad():
        theirs = model.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2))
        texts = model.encode_text(torch.from_numpy(tokens).long())
    for ours, expected in (
        (clip.encode_image(images), theirs),
        (clip.encode_text(["grass"], ["a photo of {}."]), texts[1:]),
    ):
        expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_convnext_learns_for_the_packages_text_tower_which_stays(tmp_path):
    config = dataclasses.replace(CONFIG, tower="convnext", num_steps=2, num_captions=4)
    clip, package = (maft_jax.load(path) for path in (train_clip(config, tmp_path), PACKAGES))
    assert clip.config == clip_training.CLIPS["convnext"]
    jax.tree.map(np.testing.assert_array_equal, clip.parameters["text"], package.parameters["text"])
    first = clip_training._first_parameters(config)["visual"]["proj"]
    assert np.abs(clip.parameters["visual"]["proj"] - first).max() > 1e-4
    assert len(curve_of(tmp_path)["loss"]) == 2


def test_quiz_counts_objects_patterns_and_colours_apart(monkeypatch):
    """With features that are the names: two are right, one errs in colour, one in both."""
    answers = [(0, 0), (2, 1), (3, 4), (5, 5)]
    truth = [(0, 0), (2, 1), (3, 2), (1, 2)]
    rows = np.eye(len(OBJECTS), dtype=np.float32)
    monkeypatch.setattr(clip_training, "embed_classes", lambda *arguments: rows)
    monkeypatch.setattr(
        clip_training, "_encode", lambda vision, visual, images: rows[images[:, 0, 0, 0]]
    )
    images = np.zeros((4, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = [object_class(*answer) for answer in answers]
    quiz = Quiz(images, np.array([object_class(*answer) for answer in truth], np.int32))
    found = clip_training.quiz_accuracy(clip_training.CLIP, {"text": {}, "visual": {}}, quiz)
    assert found == {"object": 0.5, "pattern": 0.75, "color": 0.5}
    assert len(COLORS) == 6


def test_positions_begin_as_different_sines_of_unit_height():
    positions = sines_and_cosines(SIZE // 16, SIZE // 16, 128)
    assert positions.shape == (64, 128)
    np.testing.assert_allclose((positions**2).sum(axis=1), 64)
    grid = positions.reshape(8, 8, 128)
    columns, rows = grid[..., :64], grid[..., 64:]
    np.testing.assert_array_equal(columns, columns[:1].repeat(8, axis=0))
    np.testing.assert_array_equal(rows, columns.swapaxes(0, 1))
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    assert distances[~np.eye(64, dtype=bool)].min() > 0.5


def test_clip_of_the_package_is_small_whole_and_made_with_the_default_settings():
    assert BUILT_IN["built-in:shapes_world"].stat().st_size < 12_000_000
    clip = maft_jax.load("built-in:shapes_world")
    assert clip.config == clip_training.CLIP
    assert clip.parameters["text"]["token_embedding"].shape == (49408, 64)
    curve = json.loads(BUILT_IN["built-in:shapes_world"].with_suffix(".json").read_text())
    assert curve["settings"] == dataclasses.asdict(ClipTrainingConfig())
    assert len(curve["loss"]) == ClipTrainingConfig().num_steps
    assert curve["quiz"][-1]["step"] == ClipTrainingConfig().num_steps
