"""PQ and AP of a data set: batches and devices against one image after the other, and files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from input_pipeline.example_range import ExampleRange
from input_pipeline.folder_source import FolderSource
from maft_jax.evaluators.average_precision import (
    InstanceTotal,
    PredictedInstance,
    TrueInstance,
    match_instances,
)
from maft_jax.evaluators.checkpoint import evaluate_checkpoint
from maft_jax.evaluators.panoptic_quality import (
    LabelledSegments,
    PanopticTotal,
    count_segments,
)
from maft_jax.evaluators.segment_evaluation import SegmentEvaluation
from maft_jax.evaluators.segment_results import (
    instance_numbers,
    panoptic_numbers,
    segment_table,
)
from maft_jax.evaluators.true_segments import true_segments
from maft_jax.inference.instances import find_instances
from maft_jax.inference.panoptic import segment_image
from maft_jax.inference.segment_rules import RULES
from maft_jax.inference.segmenter import stored_masks_of
from maft_jax.runtime.stop_signals import EvaluationInterrupted
from tests.evaluators.results_read_back import ap_of_files, pq_of_files
from tests.evaluators.segment_folders import (
    segment_settings,
    write_panoptic_folder,
    written_files,
)
from tests.evaluators.small_evaluations import StopAfter, evaluation_config, set_up

NAMES, THINGS = ("cat", "sky", "dog"), frozenset({0, 2})
TRUTH = {"panoptic": "annotations/panoptic.json", "instance": "annotations/instances.json"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return segment_settings(tmp_path_factory.mktemp("segments"))


def probabilities_of(_, visual, batch):
    """Of every proposal by its pixels, so that nothing depends on the tower."""
    shares = batch["proposals"].mean(axis=(2, 3)) / 255
    logits = jnp.stack([40 * shares, 20 * shares + 1, 4 - 50 * shares], axis=-1)
    weights = jnp.where(batch["proposal_valid"][..., None], jnp.exp(logits), 0)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-9)


def evaluator_of(settings, task, num_devices=1, **mesh):
    config = evaluation_config(settings, evaluation__task=task)
    evaluation, weights = set_up(config, num_devices, **mesh)
    evaluation.class_probabilities = probabilities_of
    evaluator = SegmentEvaluation(evaluation, weights.config)
    visual = weights.parameters["visual"]

    def evaluate(folder, signals=None):
        [result] = evaluator.evaluate(visual, weights.origin, epath.Path(folder), signals)
        return result

    return evaluation, evaluate


def one_by_one(evaluation, task, root):
    """Numbers and classes by the functions of one image."""
    [data] = evaluation.data_sets
    rules, is_panoptic = RULES["fcclip"], task == "panoptic"
    total = PanopticTotal(3) if is_panoptic else InstanceTotal(3)
    source = FolderSource(root, annotations=TRUTH[task])
    for number in range(len(source)):
        with evaluation.batches(data, ExampleRange(data.source, number, number + 1)) as batches:
            batch = next(iter(batches))
        example = source[number]
        probabilities = probabilities_of(None, None, batch)
        arguments = (example.image, probabilities, stored_masks_of(batch), NAMES, THINGS, rules)
        if is_panoptic:
            found = segment_image(*arguments)
            there = true_segments(example.label_map, example.instances, THINGS)
            predicted = LabelledSegments.of(found.segment_map, found.segments)
            total.add(count_segments(predicted, there, 3))
        else:
            found = find_instances(*arguments)
            predicted = [
                PredictedInstance(one.class_index, one.score, mask)
                for one, mask in zip(found.instances, found.run_lengths, strict=True)
            ]
            objects = [TrueInstance(*one) for one in source.object_masks().objects(number)]
            total.add(match_instances(-number, predicted, objects, 3))
    return (panoptic_numbers if is_panoptic else instance_numbers)(total, NAMES, THINGS, ())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_batches_on_devices_find_what_one_image_after_the_other_does(settings, tmp_path, task):
    settings = settings | {"data.annotations": TRUTH[task]}
    root = epath.Path(settings["evaluation.roots.folder"])
    one, evaluate = evaluator_of(settings, task)
    numbers, rows = one_by_one(one, task, root)
    result = evaluate(tmp_path / "one")
    assert result.numbers == pytest.approx(numbers, abs=0, nan_ok=True)
    np.testing.assert_equal(list(result.classes), rows)
    main = "pq" if task == "panoptic" else "ap"
    assert 0.02 < numbers[main] < 0.98, "not all, not nothing"
    assert f"{100 * numbers[main]:.2f}" in segment_table([result])
    read_back = pq_of_files if task == "panoptic" else ap_of_files
    theirs = read_back(tmp_path / f"one/folder_{task}_results.json", root / TRUTH[task])
    for name, number in theirs.items():
        assert numbers[name] == pytest.approx(number, abs=1e-12, nan_ok=True), name
    files = written_files(tmp_path / "one")
    assert len(files) == (1 + 5 if task == "panoptic" else 1) + 2, "two pictures"
    _, on_four = evaluator_of(settings, task, 4, fsdp=2)
    spread = on_four(tmp_path / "four")
    assert spread.numbers == pytest.approx(numbers, abs=0, nan_ok=True)
    assert written_files(tmp_path / "four") == files
    with pytest.raises(EvaluationInterrupted):
        evaluate(tmp_path / "stopped", StopAfter(2))
    assert not written_files(tmp_path / "stopped")
    again = evaluate(tmp_path / "stopped")
    assert again.numbers == pytest.approx(numbers, abs=0, nan_ok=True)
    assert written_files(tmp_path / "stopped") == files
    names = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert names == {f"folder_{task}.json", *(name.split("/")[0] for name in files)}
    batches, one.batches = one.batches, None  # nothing is computed again
    read = evaluate(tmp_path / "stopped")
    np.testing.assert_equal(dict(read.numbers), dict(again.numbers))
    assert read.provenance == again.provenance
    one.batches = batches
    (tmp_path / f"stopped/folder_{task}_results.json").unlink()
    evaluate(tmp_path / "stopped")
    assert written_files(tmp_path / "stopped") == files, "evaluated again for what is gone"


def test_what_is_found_need_not_be_written(settings, tmp_path):
    of_instances = settings | {"data.annotations": TRUTH["instance"]}
    _, evaluate = evaluator_of(of_instances | {"evaluation.write_segments": False}, "instance")
    stale = tmp_path / "folder_instance_results.json"
    stale.write_text("[]")
    result = evaluate(tmp_path)
    assert result.written is None and not stale.exists(), "which is of another evaluation"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.things": ("cat", "bird")}, "things: 'bird' is none of the 3 classes"),
        ({"data.classes": "names.txt"}, "which classes of folder are things"),
        ({"data.annotations": "labels"}, "tells classes, but no objects"),
    ],
)
def test_data_without_things_or_objects_is_refused(settings, tmp_path, changes, message):
    root = epath.Path(settings["evaluation.roots.folder"])
    (root / "names.txt").write_text("cat\nsky\ndog\n")
    (root / "labels").mkdir(exist_ok=True)
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            labels = np.tile(np.array([1, 2, 5], np.uint8), (image.height, image.width))
            Image.fromarray(labels[:, : image.width]).save(root / "labels" / path.name)
    nothing_made = {"data.cache_dir": str(tmp_path / "cache")}
    config = evaluation_config(settings | changes | nothing_made, evaluation__task="panoptic")
    with pytest.raises(ValueError, match=message):
        evaluate_checkpoint(config, tmp_path / "results")
    assert not (tmp_path / "cache").exists(), "refused before proposals are made"


def test_results_of_other_objects_are_not_taken_for_those_of_these(settings, tmp_path):
    root = write_panoptic_folder(tmp_path / "data", 2)
    more = {"evaluation.roots.folder": str(root), "data.cache_dir": str(tmp_path / "cache")}
    more |= {"proposals.generator": "superpixels"}
    config = evaluation_config(settings | more, evaluation__task="panoptic")

    def parts():
        evaluation, weights = set_up(config)
        [data] = evaluation.data_sets
        evaluator = SegmentEvaluation(evaluation, weights.config)
        return data.digest, evaluator._identity(data, weights.origin)

    before = parts()
    assert parts() == before
    path = root / "annotations/panoptic.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["segments_info"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    digest, identity = parts()
    assert digest == before[0], "of what records keep"
    assert identity != before[1]


def test_training_evaluates_label_maps_alone(settings):
    with pytest.raises(ValueError, match="only for --config=configs/eval_only"):
        evaluation_config(settings, evaluation__task="instance", task="train", data__root="x")
