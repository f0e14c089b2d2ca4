"""Counts of whole evaluations: against a slow one, across meshes, interrupted, and repeated."""

import logging
import pathlib
import shutil
import signal

import numpy as np
import pytest
from etils import epath

from input_pipeline.records.record_source import RecordSource
from maft_jax.evaluators.results import read_result
from maft_jax.runtime.stop_signals import EvaluationInterrupted
from tests.evaluators.small_evaluations import (
    StopAfter,
    confusion_of,
    evaluation_config,
    make_evaluation_data,
    set_up,
    slow_confusion,
    slow_mask_counts,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_evaluation_data(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def config(data):
    return evaluation_config(data)


@pytest.fixture(scope="module")
def evaluation(config):
    """On two devices, so that seven images make four batches; and its weights."""
    return set_up(config, num_devices=2)


@pytest.fixture(scope="module")
def finished(evaluation, tmp_path_factory):
    """The result of an evaluation that nothing interrupted, and its folder."""
    folder = epath.Path(tmp_path_factory.mktemp("finished"))
    [result] = evaluate(evaluation, folder)
    return result, folder


def evaluate(evaluation, folder, signals=None, **origin):
    ours, weights = evaluation
    visual = weights.parameters["visual"]
    return ours.evaluate(visual, weights.origin | origin, epath.Path(folder), signals)


def test_counts_are_those_of_a_slow_evaluation_in_pytorch(evaluation, config, finished):
    ours, weights = evaluation
    records = RecordSource(ours.data_sets[0].folder, drop_empty=False)
    expected = slow_confusion(weights.parameters, records, config, start_layer=2)
    confusion = finished[0].confusion
    assert confusion.sum() == expected.sum() == 7 * 120 * 160
    np.testing.assert_array_equal(confusion.sum(axis=0), expected.sum(axis=0))
    assert np.abs(confusion - expected).sum() <= 20  # pixels where two classes are as good
    assert (confusion.sum(axis=1) > 0).sum() >= 3, "several classes are predicted"


def test_ground_truth_masks_are_classified_as_a_slow_evaluation_in_pytorch_does(
    evaluation, config, finished
):
    ours, weights = evaluation
    records = RecordSource(ours.data_sets[0].folder, drop_empty=False)
    expected = slow_mask_counts(weights.parameters, records, config, start_layer=2)
    np.testing.assert_array_equal(finished[0].mask_counts, expected)
    masks, correct = expected.sum(axis=0)
    assert 0 < correct < masks


@pytest.mark.slow
def test_classes_of_several_names_score_the_maximum_over_them(data, finished, tmp_path):
    folder = tmp_path / "several"
    shutil.copytree(data["evaluation.roots.folder"], folder)
    names = (folder / "classes.txt").read_text().split("\n")[:-1]
    further = {names[0]: ["gadget", "old machine"], names[1]: ["wool", names[1].upper()]}
    lines = (f"{i}:{','.join([name, *further.get(name, [])])}" for i, name in enumerate(names))
    (folder / "classes.txt").write_text("\n".join(lines))
    data = data | {"evaluation.roots.folder": str(folder)}
    ours, weights = set_up(evaluation_config(data))
    [several] = evaluate((ours, weights), tmp_path / "results")
    records = RecordSource(ours.data_sets[0].folder, drop_empty=False)
    config = evaluation_config(data)
    expected = slow_confusion(weights.parameters, records, config, 2, further)
    assert several.class_names == finished[0].class_names
    assert np.abs(several.confusion - expected).sum() <= 20  # as above
    assert np.abs(several.confusion - finished[0].confusion).sum() > 1000
    [first] = evaluate(set_up(evaluation_config(data, data__synonyms=False)), tmp_path / "first")
    np.testing.assert_array_equal(first.confusion, finished[0].confusion)
    assert "synonyms" in several.provenance["classes"]
    assert first.provenance["classes"] == finished[0].provenance["classes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_devices", "mesh", "images_per_device"),
    [(1, {}, 5), (8, {"fsdp": 2, "model": 2}, 1)],
)
def test_batch_size_and_mesh_change_no_integer(
    data, finished, tmp_path, num_devices, mesh, images_per_device
):
    config = evaluation_config(data, evaluation__images_per_device=images_per_device)
    [result] = evaluate(set_up(config, num_devices, **mesh), tmp_path)
    np.testing.assert_array_equal(result.confusion, finished[0].confusion)
    np.testing.assert_array_equal(result.mask_counts, finished[0].mask_counts)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_interrupted_evaluation_continues_and_ends_with_the_same_counts(
    evaluation, finished, tmp_path, caplog, stop_after
):
    with pytest.raises(EvaluationInterrupted) as caught:
        evaluate(evaluation, tmp_path, StopAfter(stop_after))
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert f"after {2 * stop_after} of 7 images of folder" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.unfinished.npz"]
    with caplog.at_level(logging.INFO, "maft_jax"):
        [result] = evaluate(evaluation, tmp_path)
    assert f"going on after {2 * stop_after} of 7 images" in caplog.text
    np.testing.assert_array_equal(result.confusion, finished[0].confusion)
    np.testing.assert_array_equal(result.mask_counts, finished[0].mask_counts)
    assert not (tmp_path / "folder.unfinished.npz").exists()


def test_signal_during_the_last_batch_keeps_the_result(evaluation, finished, tmp_path):
    [result] = evaluate(evaluation, tmp_path, StopAfter(4))
    np.testing.assert_array_equal(result.confusion, finished[0].confusion)


def test_counts_of_other_weights_are_not_continued(evaluation, finished, tmp_path, caplog):
    with pytest.raises(EvaluationInterrupted):
        evaluate(evaluation, tmp_path, StopAfter(2), image_tower="another")
    with caplog.at_level(logging.INFO, "maft_jax"):
        [result] = evaluate(evaluation, tmp_path)
    assert "is of another evaluation; starting anew" in caplog.text
    np.testing.assert_array_equal(result.confusion, finished[0].confusion)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
def test_corrupt_counts_are_reported_and_not_continued(
    evaluation, finished, tmp_path, caplog, damage
):
    with pytest.raises(EvaluationInterrupted):
        evaluate(evaluation, tmp_path, StopAfter(2))
    path = tmp_path / "folder.unfinished.npz"
    path.write_bytes(damage(path.read_bytes()))
    [result] = evaluate(evaluation, tmp_path)
    assert "folder.unfinished.npz is corrupt" in caplog.text
    np.testing.assert_array_equal(result.confusion, finished[0].confusion)


def test_counts_are_saved_on_the_way(evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr("maft_jax.evaluators.unfinished_counts.SECONDS_BETWEEN_SAVES", 0.0)
    saved = []
    monkeypatch.setattr(
        "maft_jax.evaluators.unfinished_counts.UnfinishedCounts.save",
        lambda self, num_batches, counts: saved.append((num_batches, counts.confusion.sum())),
    )
    evaluate(evaluation, tmp_path)
    assert saved == [(i, 2 * i * 120 * 160) for i in (1, 2, 3)]


def test_finished_data_set_is_not_evaluated_again(evaluation, finished, caplog, monkeypatch):
    monkeypatch.setattr(type(evaluation[0]), "_predict", None)
    with caplog.at_level(logging.INFO, "maft_jax"):
        [result] = evaluate(evaluation, finished[1])
    assert "folder: evaluated before, with the same weights and protocol" in caplog.text
    np.testing.assert_array_equal(result.confusion, finished[0].confusion)
    assert result.provenance == finished[0].provenance


def test_result_of_other_weights_is_replaced_and_that_is_said(
    evaluation, finished, tmp_path, caplog
):
    evaluate(evaluation, tmp_path, image_tower="another")
    with caplog.at_level(logging.INFO, "maft_jax"):
        evaluate(evaluation, tmp_path)
    assert "folder.json is of another evaluation, and will be replaced" in caplog.text
    assert read_result(tmp_path / "folder.json").provenance == finished[0].provenance | {
        "finished": read_result(tmp_path / "folder.json").provenance["finished"]
    }


def test_corrupt_result_is_reported_and_made_again(evaluation, finished, tmp_path, caplog):
    evaluate(evaluation, tmp_path)
    path = tmp_path / "folder.json"
    path.write_text(path.read_text()[:100])
    evaluate(evaluation, tmp_path)
    assert "evaluating again" in caplog.text
    np.testing.assert_array_equal(read_result(path).confusion, finished[0].confusion)


def test_result_tells_where_it_comes_from(finished, config):
    result, folder = finished
    provenance = read_result(folder / "folder.json").provenance
    assert provenance == result.provenance
    assert result.num_images == 7 and result.split == "val"
    weights, protocol = provenance["weights"], provenance["protocol"]
    assert weights["checkpoint"] == config.model.pretrained and weights["frozen"] is True
    assert len(weights["image_tower"]) == 16
    assert provenance["proposals"]["generator"] == "superpixels"
    assert provenance["proposals"]["num_proposals"] == 6
    assert len(provenance["proposals"]["records"]) == 64
    assert protocol["image_size"] == 64 and protocol["mask_start_layer"] == 2
    assert protocol["temperature"] == 100.0 and protocol["compute_dtype"] == "float32"
    assert protocol["prompts"] == list(config.data.templates)
    assert protocol["short_side"] == 120 and protocol["ensemble_weight"] == 0.0
    assert result.class_list_sha256 == provenance["classes"]["names_sha256"]
    assert provenance["versions"]["jax"] and provenance["finished"].endswith("+00:00")


@pytest.mark.parametrize(
    "change",
    [
        {"loss__logit_scale": 50.0},
        {"data__templates": ("a {}",)},
        {"evaluation__flip": True},
        {"evaluation__filter_invalid": True},
        {"evaluation__short_side": 96},
        {"evaluation__max_images": 5},
        {"model__mask_start_layer": 1},
        {"model__activation": "gelu"},
        {"model__head_width": 32},
        {"data__dataset": "folder", "data__unseen_classes": ("sand",)},
    ],
)
def test_every_setting_that_matters_makes_another_evaluation(data, evaluation, change):
    other, weights = set_up(evaluation_config(data, **change), num_devices=2)
    key, before = (e._key(e.data_sets[0], weights.origin) for e in (other, evaluation[0]))
    assert key != before


@pytest.mark.slow
def test_augmented_views_and_filter_change_the_counts(data, finished, tmp_path):
    changes = {"evaluation__scales": (0.5, 1.5), "evaluation__flip": True}
    config = evaluation_config(data, **changes, evaluation__filter_invalid=True)
    confusion, plain = confusion_of(config, tmp_path), finished[0].confusion
    np.testing.assert_array_equal(confusion.sum(axis=0), plain.sum(axis=0))
    assert (confusion != plain).any()


@pytest.mark.slow
def test_first_images_alone_are_evaluated_and_their_proposals_computed(tmp_path):
    data = make_evaluation_data(tmp_path, num_images=5)
    ours, _ = set_up(evaluation_config(data, evaluation__max_images=2))
    [found] = ours.data_sets
    assert found.source.example_ids == ("scene_0000", "scene_0001")
    assert pathlib.Path(found.folder).name.endswith("-first-2")
    assert len(RecordSource(found.folder, drop_empty=False)) == 2
    whole, _ = set_up(evaluation_config(data))
    again, _ = set_up(evaluation_config(data, evaluation__max_images=2))
    assert again.data_sets[0].folder == whole.data_sets[0].folder
    assert again.data_sets[0].source.example_ids == ("scene_0000", "scene_0001")


def test_predictions_for_pictures_are_those_that_are_counted(data, evaluation, tmp_path):
    ours, weights = evaluation
    maps = ours.label_maps(ours.data_sets[0], weights.parameters["visual"], 3)
    assert [m.shape for m in maps] == [(120, 160)] * 3
    assert all(m.min() >= 0 and m.max() < 8 for m in maps)
    counted = np.zeros((9, 9), np.int64)
    for i in range(3):
        label_map = ours.data_sets[0].source[i].label_map
        np.add.at(counted, (maps[i], label_map), 1)
    first = evaluation_config(data, evaluation__max_images=3)
    np.testing.assert_array_equal(counted, confusion_of(first, tmp_path, num_devices=2))
