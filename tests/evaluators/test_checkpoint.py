"""Evaluation as a command: weights, frozen baseline, data sets, tables, and wrong input."""

import dataclasses
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

import maft_jax
from input_pipeline.records.record_shards import (
    done_path,
    read_dataset_file,
    write_dataset_file,
)
from maft_jax.convert.conversion import image_tower
from maft_jax.convert.formats import ClipWeights, write_weights
from maft_jax.evaluators.checkpoint import evaluate_checkpoint
from maft_jax.evaluators.data_sets import find_evaluation_data
from maft_jax.evaluators.results import read_result
from maft_jax.evaluators.weights import read_evaluated_weights
from maft_jax.models.clip import CLIP_SIZES, ClipConfig, random_parameters
from maft_jax.proposals.precompute_job import job_from_config
from maft_jax.runtime.only_writer import FolderInUse, only_writer
from maft_jax.runtime.sharding import one_device_mesh
from maft_jax.weights import open_weights
from tests.evaluators.small_evaluations import (
    SETTINGS,
    evaluation_config,
    make_evaluation_data,
    open_all,
    set_up,
)
from tests.runs import finish, start
from tests.training.test_interruptions import wait_until


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_evaluation_data(tmp_path_factory.mktemp("evaluation_task"))


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory):
    """A file of weights in which the image tower was changed, as tuning does."""
    clip = maft_jax.load(data["model.pretrained"], mask_start_layer=1)
    clip.parameters["visual"]["ln_post"]["bias"] = clip.parameters["visual"]["ln_post"]["bias"] + 1
    path = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    clip.save(path)
    return str(path)


def command(data, workdir, **changes):
    settings = SETTINGS | data | {k.replace("__", "."): v for k, v in changes.items()}
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    program = [sys.executable, "-m", "maft_jax.main", "--config=configs/eval_only.py"]
    return [*program, f"--workdir={workdir}", *arguments]


def test_frozen_and_tuned_are_compared_in_one_table(data, tuned, tmp_path):
    changes = {"checkpoint": tuned, "evaluation__max_images": 2}
    report = evaluate_checkpoint(evaluation_config(data, **changes), tmp_path)
    assert "gain" not in report.table() and not report.frozen
    frozen = evaluation_config(data, **changes, evaluation__frozen=True)
    report = evaluate_checkpoint(frozen, tmp_path)
    assert report.frozen and "gain" in report.table() and "WARNING" not in report.table()
    ours = read_result(tmp_path / "evaluation/folder.json").provenance
    theirs = read_result(tmp_path / "evaluation/frozen/folder.json").provenance
    assert ours["protocol"] == theirs["protocol"], "frozen is read as the tuned tower was"
    assert ours["protocol"]["mask_start_layer"] == 1
    assert ours["weights"]["image_tower"] != theirs["weights"]["image_tower"]
    assert (ours["weights"]["frozen"], theirs["weights"]["frozen"]) == (False, True)
    assert ours["weights"]["tuned_from"] == theirs["weights"]["image_tower"]
    config = json.loads((tmp_path / "evaluation/config.json").read_text())
    assert config["checkpoint"] == tuned and config["model"]["mask_start_layer"] == 1


def test_untuned_clip_is_the_frozen_one(data):
    weights = read_evaluated_weights(evaluation_config(data), one_device_mesh())
    assert weights.origin["frozen"] and weights.origin["checkpoint"] == data["model.pretrained"]


def test_frozen_needs_to_know_what_a_file_was_tuned_from(data, tuned):
    changes = {"checkpoint": tuned, "evaluation__frozen": True}
    with pytest.raises(ValueError, match=r"does not say what it was tuned from; give those weigh"):
        read_evaluated_weights(
            evaluation_config(data | {"model.pretrained": ""}, **changes), one_device_mesh()
        )


def test_frozen_of_another_architecture_is_refused(data, tuned, tmp_path):
    changes = {"checkpoint": tuned, "evaluation__frozen": True}
    vision = dataclasses.replace(CLIP_SIZES["tiny"].vision, layers=3)
    clip = ClipConfig(vision, CLIP_SIZES["tiny"].text)
    path = tmp_path / "other.safetensors"
    write_weights(ClipWeights.of(clip, random_parameters(clip)), path, "openai")
    other = data | {"model.pretrained": str(path)}
    with pytest.raises(ValueError, match="was not tuned from it, the image towers differ"):
        read_evaluated_weights(evaluation_config(other, **changes), one_device_mesh())


def test_neither_checkpoint_nor_weights_are_refused(data):
    config = evaluation_config(data | {"model.pretrained": "random:tiny"})
    model = type(config.model)()
    with pytest.raises(ValueError, match=r"config\.checkpoint: no weights; give the workdir"):
        read_evaluated_weights(type(config)(model=model), one_device_mesh())


def test_image_tower_alone_is_refused(data, tmp_path):
    alone = image_tower(open_weights(data["model.pretrained"]))
    write_weights(alone, tmp_path / "alone", "transformers")
    config = evaluation_config(data, checkpoint=str(tmp_path / "alone"))
    with pytest.raises(ValueError, match="an image tower without a text tower"):
        read_evaluated_weights(config, one_device_mesh())


def copy_records(source, target):
    """As if they were of the data set that `target` is named after."""
    shutil.copytree(source, target)
    write_dataset_file(target, read_dataset_file(target) | {"dataset": target.name})


def test_records_of_another_data_set_are_refused(data, tmp_path):
    source = open_all(evaluation_config(data))[0].folder
    shutil.copytree(source, tmp_path / "voc2012")
    settings = data | {"evaluation.roots.folder": "", "evaluation.records": str(tmp_path)}
    with pytest.raises(ValueError, match=r"expected records of voc2012, .*got those of folder"):
        find_evaluation_data(evaluation_config(settings))


def test_data_sets_are_in_the_order_of_papers_whatever_the_commands(data, tmp_path):
    records = tmp_path / "records"
    source = open_all(evaluation_config(data))[0].folder
    for name in ("folder", "voc2012", "ade20k_full", "coco_stuff"):
        copy_records(source, records / name)
    settings = data | {"evaluation.roots.folder": "", "evaluation.records": str(records)}
    found = find_evaluation_data(evaluation_config(settings))
    assert [data_set.name for data_set in found] == [
        "ade20k_full",
        "voc2012",
        "coco_stuff",
        "folder",
    ]


def test_records_of_ones_own_are_written_and_read_where_they_are_asked_for(data, tmp_path):
    settings = data | {"evaluation.records": str(tmp_path / "records")}
    [made] = open_all(evaluation_config(settings, evaluation__max_images=3))
    assert made.folder == epath.Path(tmp_path / "records/folder")
    assert len(made.source) == 3 and made.description["num_examples"] == 7
    [read] = open_all(evaluation_config(settings | {"evaluation.roots.folder": ""}))
    assert len(read.source) == 7


def test_records_folder_without_any_is_refused(data, tmp_path):
    settings = data | {"evaluation.roots.folder": "", "evaluation.records": str(tmp_path)}
    with pytest.raises(ValueError, match=r"config\.evaluation\.records=.*expected a folder with"):
        find_evaluation_data(evaluation_config(settings))


def test_external_proposals_are_found_by_the_name_of_the_data_set(data, tmp_path):
    for i in range(7):
        masks = np.zeros((2, 30, 40), bool)
        masks[0, :15], masks[1, 15:] = True, True
        (tmp_path / "masks/folder").mkdir(parents=True, exist_ok=True)
        np.savez(
            tmp_path / f"masks/folder/scene_{i:04d}.npz",
            masks=masks,
            scores=np.ones(2, np.float32),
        )
    settings = {
        "proposals.generator": "external",
        "proposals.path": f"{tmp_path}/masks/{{dataset}}",
    }
    [found] = open_all(evaluation_config(data | settings))
    assert found.description["recipe"]["generator"] == "external"
    assert found.source.num_proposals == 2


@pytest.mark.slow
def test_ensemble_of_weight_one_is_the_generator_alone(data, tmp_path):
    (tmp_path / "masks").mkdir()
    for i in range(7):
        masks = np.zeros((2, 30, 40), bool)
        masks[0, :, :20], masks[1, :, 20:] = True, True
        logits = np.zeros((2, 8), np.float32)
        logits[0, 3], logits[1, 6] = 50, 50
        path = tmp_path / f"masks/scene_{i:04d}.npz"
        np.savez(path, masks=masks, scores=np.ones(2, np.float32), class_logits=logits)
    settings = {
        "proposals.generator": "external",
        "proposals.path": str(tmp_path / "masks"),
        "evaluation.ensemble_weight": 1.0,
    }
    config = evaluation_config(data | settings)
    ours, weights = set_up(config)
    [found] = ours.data_sets
    assert found.num_generator_classes == 8
    [result] = ours.evaluate(weights.parameters["visual"], weights.origin, epath.Path(tmp_path))
    expected = np.zeros((9, 9), np.int64)
    for i in range(7):
        predicted = np.full((120, 160), 3)
        predicted[:, 80:] = 6
        np.add.at(expected, (predicted, found.source[i].label_map), 1)
    np.testing.assert_array_equal(result.confusion, expected)


def test_own_unseen_classes_are_reported_apart(data):
    config = evaluation_config(data, data__unseen_classes=("sand", "grass"))
    [found] = open_all(config)
    assert {found.source.class_names[i] for i in found.unseen_classes} == {"sand", "grass"}
    with pytest.raises(ValueError, match=r"unseen_classes: \['lawn'\] are no classes of folder"):
        find_evaluation_data(evaluation_config(data, data__unseen_classes=("lawn", "sand")))


def test_unseen_classes_of_another_data_set_are_left_out(data, caplog):
    [found] = find_evaluation_data(evaluation_config(data, data__unseen_classes=("lawn",)))
    assert found.unseen_classes == ()
    assert "none of them is a class of folder" in caplog.text


def test_folder_that_does_not_exist_is_refused_before_weights_are_read(data, tmp_path):
    settings = {"evaluation.roots.voc2012": str(tmp_path / "vocc"), "checkpoint": "nowhere.pt"}
    with pytest.raises(ValueError, match=r"roots\.voc2012=.*vocc: there is no such folder"):
        evaluate_checkpoint(evaluation_config(data | settings), tmp_path)


@pytest.mark.slow
def test_first_images_have_one_digest_whether_or_not_there_are_more(data, tmp_path):
    settings = data | {"data.cache_dir": str(tmp_path)}
    [few] = open_all(evaluation_config(settings, evaluation__max_images=3))
    [every] = open_all(evaluation_config(settings))
    [part] = open_all(evaluation_config(settings, evaluation__max_images=3))
    assert few.folder != every.folder == part.folder
    assert few.digest == part.digest != every.digest


def test_several_hosts_need_records_that_all_can_read(data, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"several hosts need a folder of records of folder"):
        find_evaluation_data(evaluation_config(data))


def test_missing_records_are_refused_before_anything_is_evaluated(data, tmp_path):
    source = open_all(evaluation_config(data))[0].folder
    copy_records(source, tmp_path / "records/voc2012")
    done_path(epath.Path(tmp_path / "records/voc2012"), "val-00002-of-00007").unlink()
    settings = data | {"evaluation.roots.folder": "", "evaluation.records": f"{tmp_path}/records"}
    with pytest.raises(ValueError, match="1 of 7 shards are not finished: val-00002-of-00007"):
        set_up(evaluation_config(settings))


def test_corrupt_record_is_named(data, tmp_path):
    source = open_all(evaluation_config(data))[0].folder
    copy_records(source, tmp_path / "records/voc2012")
    path = tmp_path / "records/voc2012/val-00003-of-00007.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    settings = data | {"evaluation.roots.folder": "", "evaluation.records": f"{tmp_path}/records"}
    ours, weights = set_up(evaluation_config(settings))
    visual = weights.parameters["visual"]
    with pytest.raises(ValueError, match=r"val-00003-of-00007"):
        ours.evaluate(visual, weights.origin, epath.Path(tmp_path / "out"))


def test_class_name_that_does_not_fit_is_refused_before_proposals_are_computed(data, tmp_path):
    shutil.copytree(data["evaluation.roots.folder"], tmp_path / "data")
    classes = tmp_path / "data/classes.txt"
    classes.write_text(classes.read_text().replace("sand", "sand " * 80))
    config = evaluation_config(data | {"evaluation.roots.folder": str(tmp_path / "data")})
    with pytest.raises(ValueError, match=r"class name 'sand sand .*shorten it"):
        set_up(config)
    assert not (epath.Path(find_evaluation_data(config)[0].folder)).exists()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"evaluation__ensemble_weight": 0.7}, r"ensemble_weight=0\.7: .* its 8 classes \(8 or 9"),
        (
            {"evaluation__ensemble_exponents": (0.4, 0.8)},
            r"ensemble_exponents=\(0\.4, 0\.8\): expected .* its 8 classes \(9 with \"no object",
        ),
    ],
)
def test_ensemble_without_the_generators_classes_is_refused(data, asked, expected):
    with pytest.raises(ValueError, match=expected):
        set_up(evaluation_config(data, **asked))


def test_folder_without_images_is_refused(data, tmp_path):
    shutil.copytree(data["evaluation.roots.folder"], tmp_path / "data")
    shutil.rmtree(tmp_path / "data/images")
    (tmp_path / "data/images").mkdir()
    config = evaluation_config(data | {"evaluation.roots.folder": str(tmp_path / "data")})
    with pytest.raises(ValueError, match="expected images"):
        find_evaluation_data(config)


def test_label_of_no_class_is_refused(data, tmp_path):
    shutil.copytree(data["evaluation.roots.folder"], tmp_path / "data")
    path = tmp_path / "data/annotations/scene_0001.png"
    with Image.open(path) as image:
        values = np.array(image)
    values[:] = 77
    Image.fromarray(values).save(path)
    config = evaluation_config(data | {"evaluation.roots.folder": str(tmp_path / "data")})
    with pytest.raises(ValueError, match=r"scene_0001\.png"):
        open_all(config)


def test_impossible_start_layer_is_refused_by_name(data):
    with pytest.raises(ValueError, match=r"config\.model does not suit these weights: mask_start"):
        set_up(evaluation_config(data, model__mask_start_layer=5))


def test_job_puts_the_name_of_the_data_set_into_the_path_of_training_too(data, tmp_path):
    settings = {
        "task": "train",
        "data.root": data["evaluation.roots.folder"],
        "evaluation.roots.folder": "",
        "proposals.generator": "external",
        "proposals.path": f"{tmp_path}/{{dataset}}",
    }
    (tmp_path / "folder").mkdir()
    assert job_from_config(evaluation_config(data | settings)).generator.name == "external"


@pytest.mark.slow
def test_command_prints_a_table(data, tmp_path):
    output = finish(start(command(data, tmp_path / "run", evaluation__max_images=3)))
    result = read_result(tmp_path / "run/evaluation/frozen/folder.json")
    assert f"{100 * result.metrics.miou_gt_or_pred:.2f}" in output
    assert "folder 3/3 images | " in output and "ETA 0:00" in output
    assert os.listdir(tmp_path / "run") == ["evaluation"]


@pytest.mark.slow
def test_command_that_gets_sigterm_leaves_and_continues(data, tmp_path):
    arguments = command(data, tmp_path / "run")
    process = start(arguments)
    wait_until(lambda: (tmp_path / "run/evaluation/frozen/config.json").exists(), process)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 143)
    assert "Traceback" not in output
    assert "folder 7/7 images | " in finish(start(arguments, warm=False))


def test_second_evaluation_into_the_same_results_is_refused(data, tmp_path):
    config = evaluation_config(data | {"evaluation.max_images": 1})
    folder = tmp_path / "evaluation/frozen"
    with only_writer(folder, "--workdir"), pytest.raises(FolderInUse, match=str(os.getpid())):
        evaluate_checkpoint(config, tmp_path)
    assert os.listdir(folder) == []


def test_data_set_that_is_not_there_is_refused_by_name(data, tmp_path):
    config = evaluation_config(data | {"evaluation.roots.folder": "nowhere"})
    with pytest.raises(ValueError, match="nowhere"):
        evaluate_checkpoint(config, tmp_path)
