"""The whole diagnosis on the sample folder: its files, its numbers, and what it refuses."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from input_pipeline.sample_folder import write_sample_folder
from maft_jax.config import Config, from_config_dict, preset
from maft_jax.diagnosis.diagnose import describe, diagnose
from maft_jax.inference.clip import Clip
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.weights import open_weights
from tests import runs

pytestmark = pytest.mark.slow

PICTURES = [
    "false_positives.png",
    "score_against_iou.png",
    "score_against_iou_of_classes.png",
    "similarity.png",
]
NUM_IMAGES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos, and two files of weights: random:tiny itself, and changed."""
    root = tmp_path_factory.mktemp("diagnosis")
    write_sample_folder(root / "data", num_images=NUM_IMAGES + 1)
    weights = open_weights("random:tiny")
    config, parameters = weights.config, weights.parameters()
    for name, factor in {"same": 1, "tuned": 1.5}.items():
        changed = jax.tree.map(lambda leaf: np.float32(factor) * leaf, parameters["visual"])  # noqa: B023
        clip = Clip(config, parameters | {"visual": changed}, 2, image_size=64)
        clip.save(root / f"{name}.safetensors")
    return root


def make_config(folder, **changes) -> Config:
    """An evaluation of the sample folder; "__" in a name stands for the dot of a section."""
    config = preset("official")
    settings = {
        "task": "evaluate",
        "model.pretrained": "random:tiny",
        "model.mask_start_layer": -1,
        "model.image_size": 0,
        "data.cache_dir": str(folder / "cache"),
        "proposals.num_proposals": 8,
        "evaluation.roots.folder": str(folder / "data"),
        "evaluation.short_side": 64,
    }
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(settings | changes)
    return from_config_dict(config)


def run(folder, weights, **options):
    config = make_config(folder, checkpoint=str(folder / weights) if weights else "")
    if not weights:
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, image_size=64, mask_start_layer=2)
        )
    out = epath.Path(folder / f"out of {weights}")
    return out, diagnose(config, out, num_images=NUM_IMAGES, **options)


@pytest.fixture(scope="module")
def command(folder):
    """What the command prints, the folder that it writes, and the numbers in it."""
    out = folder / "command"
    arguments = [
        "--config=configs/eval_only.py",
        f"--config.checkpoint={folder / 'tuned.safetensors'}",
        "--config.model.pretrained=random:tiny",
        f"--config.evaluation.roots.folder={folder / 'data'}",
        "--config.evaluation.short_side=64",
        f"--config.data.cache_dir={folder / 'cache'}",
        "--config.proposals.num_proposals=8",
        f"--out={out}",
        f"--num_images={NUM_IMAGES}",
    ]
    output = runs.finish(runs.start([sys.executable, "-m", "maft_jax.cli.diagnose", *arguments]))
    return output, out, json.loads((out / "diagnosis.json").read_text())


@pytest.fixture(scope="module")
def equal(folder):
    return run(folder, "same.safetensors")


def test_command_writes_figures_and_numbers(command):
    output, out, numbers = command
    assert "images/s" in output and "ETA" in output and describe(numbers) in output
    assert sorted(path.name for path in out.iterdir()) == sorted([*PICTURES, "diagnosis.json"])
    for name in PICTURES:
        with Image.open(out / name) as picture:
            assert len(set(picture.convert("L").get_flattened_data())) > 50, name
    assert (numbers["dataset"], numbers["num_images"]) == ("folder", NUM_IMAGES)
    assert list(numbers["columns"]) == ["frozen", "tuned"]
    assert numbers["columns"]["frozen"] != numbers["columns"]["tuned"]


def test_numbers_say_where_they_come_from(folder, command):
    provenance = command[2]["provenance"]
    towers = {name: origin["image_tower"] for name, origin in provenance["weights"].items()}
    for name, source in {
        "frozen": "random:tiny",
        "tuned": str(folder / "tuned.safetensors"),
    }.items():
        assert towers[name] == fingerprint(open_weights(source).parameters()["visual"])
    assert provenance["protocol"]["image_size"] == 64
    assert provenance["proposals"]["generator"] == "superpixels"
    assert provenance["versions"]["jax"] == jax.__version__


def test_false_positives_are_proposals_of_the_records(folder, command):
    top = command[2]["columns"]["tuned"]["false_positives"]["top"]
    assert 0 < len(top) <= NUM_IMAGES
    for one in top:
        assert (folder / "data" / "images" / f"{one['example_id']}.jpg").exists()
        assert 0 <= one["proposal"] < 8 and one["iou"] < 0.1 and one["majority_share"] > 0


def test_equal_weights_give_equal_columns(equal):
    out, numbers = equal
    assert json.loads((out / "diagnosis.json").read_text()) == numbers
    assert numbers["columns"]["frozen"] == numbers["columns"]["tuned"]


def test_clip_without_a_checkpoint_is_diagnosed_alone(folder, equal):
    _, numbers = run(folder, "", num_false_positives=1)
    frozen = equal[1]["columns"]["frozen"]
    alone = numbers["columns"].pop("clip")
    assert not numbers["columns"]
    assert alone["score_against_iou"] == frozen["score_against_iou"]
    assert alone["false_positives"]["top"] == frozen["false_positives"]["top"][:1]


def test_every_column_is_summed_up_in_a_line(equal):
    lines = describe(equal[1]).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["frozen", "tuned"]
    pearson = equal[1]["columns"]["tuned"]["score_against_iou"]["pearson"]
    assert f"Pearson {pearson:.3f}" in lines[1]


@pytest.mark.parametrize(
    ("changes", "dataset", "message"),
    [
        ({"model__pretrained": ""}, "", r"does not say what it was tuned from"),
        ({"evaluation__roots__voc2012": "VOC2012"}, "", r"say which one .*--dataset=voc2012"),
        ({}, "voc2012", r"--dataset=voc2012: expected one of \['folder'\]"),
        ({"checkpoint": "nowhere"}, "", r"nowhere: no such file"),
        (
            {"task": "train", "checkpoint": "", "evaluation__roots__folder": "", "data__root": "x"},
            "",
            r"roots: no data set",
        ),
        ({"evaluation__task": "panoptic"}, "", r"evaluation\.task=panoptic: a diagnosis is of"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_with_advice(folder, changes, dataset, message):
    changes = {"checkpoint": str(folder / "tuned.safetensors")} | changes
    with pytest.raises(ValueError, match=message):
        diagnose(make_config(folder, **changes), epath.Path(folder / "refused"), dataset=dataset)
