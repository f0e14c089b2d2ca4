import pathlib
import re
import subprocess
import sys
from dataclasses import asdict

import pytest

from input_pipeline.class_lists import BUILT_IN
from input_pipeline.dataset_specs import SPECS
from input_pipeline.file_trees import open_tree
from maft_jax.config.evaluation_section import EvaluationRoots
from maft_jax.config.sections import DATASETS

REPOSITORY = pathlib.Path(__file__).parents[2]

# The published splits: class ids and names.
UNSEEN = {
    "coco_stuff": {
        19: "cow",
        23: "giraffe",
        28: "suitcase",
        29: "frisbee",
        36: "skateboard",
        51: "carrot",
        76: "scissors",
        88: "cardboard",
        94: "clouds",
        112: "grass",
        133: "playingfield",
        136: "river",
        137: "road",
        157: "tree",
        160: "wall-concrete",
    },
    "voc2012": {15: "pottedplant", 16: "sheep", 17: "sofa", 18: "train", 19: "tv"},
    "ade20k_150": {
        9: "grass",
        15: "table",
        30: "armchair",
        37: "tub",
        49: "fireplace",
        60: "river",
        74: "computer",
        81: "towel",
        89: "tv",
        99: "buffet, counter, sideboard",
        112: "basket, handbasket",
        128: "lake",
        136: "traffic light",
        143: "monitor",
        149: "flag",
    },
}


@pytest.mark.parametrize("name", UNSEEN)
def test_unseen_classes_are_the_published_ones(name):
    spec = SPECS[name]
    assert dict(zip(spec.unseen_ids, spec.unseen_classes, strict=True)) == UNSEEN[name]


NUMBERS = {
    "coco_stuff": (156, 15),
    "voc2012": (15, 5),
    "ade20k_150": (135, 15),
    "ade20k_full": (572, 275),
    "pascal_context_59": (59, 0),
    "pascal_context_459": (459, 0),
    "coco_panoptic": (133, 0),
    "ade20k_panoptic": (150, 0),
    "cityscapes": (19, 0),
    "shapes_world": (30, 12),
}


@pytest.mark.parametrize("name", SPECS)
def test_numbers_of_seen_and_unseen_classes(name):
    spec, (seen, unseen) = SPECS[name], NUMBERS[name]
    assert len(set(spec.unseen_ids)) == len(set(spec.unseen_classes)) == unseen
    assert spec.num_classes == len(set(spec.classes.names)) == seen + unseen


def test_rare_classes_of_the_full_vocabulary_are_unseen():
    """First, last and some between of ADE20K-Full's rare classes; common ones beside them."""
    spec = SPECS["ade20k_full"]
    assert (spec.unseen_ids[0], spec.unseen_ids[-1]) == (166, 846)
    assert spec.unseen_classes[:4] == (
        "catwalk",
        "inflatable bounce game",
        "confessional booth",
        "control panel",
    )
    assert {"wall", "tree", "person, individual, someone, somebody, mortal, soul"}.isdisjoint(
        spec.unseen_classes
    )
    assert {264, 703, 715} & set(spec.unseen_ids) == {264, 703}
    # Sums over the ids of the published table, so that no single id can be another one.
    assert sum(spec.unseen_ids) == 174_572
    assert sum(class_id**2 for class_id in spec.unseen_ids) == 117_729_022


SIZES = {
    "coco_stuff": ((255,), 118_287, 5_000),
    "voc2012": ((0, 255), 10_582, 1_449),
    "ade20k_150": ((0,), 20_210, 2_000),
    "ade20k_full": ((65535,), 25_574, 2_000),
    "pascal_context_59": ((255,), 4_998, 5_105),
    "pascal_context_459": ((65535,), 4_998, 5_105),
    "coco_panoptic": ((0,), 118_287, 5_000),
    "ade20k_panoptic": ((0,), 20_210, 2_000),
    "cityscapes": ((*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 255), 2_975, 500),
    "shapes_world": ((255,), 1_200, 300),
}


@pytest.mark.parametrize("name", SPECS)
def test_sizes_and_ignored_values_are_the_official_ones(name):
    spec, (ignored, train, val) = SPECS[name], SIZES[name]
    assert spec.ignore_labels == ignored
    assert (spec.num_images["train"][0], spec.num_images["val"][0]) == (train, val)


STUFF = {
    "coco_stuff": (91, {"grass", "sky-other", "wall-concrete"}),
    "voc2012": (0, set()),
    "ade20k_150": (50, {"wall", "sky", "lake", "shower"}),
    "coco_panoptic": (53, {"banner", "grass-merged", "rug-merged"}),
    "ade20k_panoptic": (50, {"wall", "sky", "lake", "shower"}),
    "cityscapes": (11, {"road", "pole", "sky"}),
    "shapes_world": (6, {"brick", "stone"}),
}


WITHOUT_PEOPLE = {"shapes_world"}


@pytest.mark.parametrize("name", [s.name for s in SPECS.values() if s.stuff_ids is not None])
def test_things_are_told_from_stuff_where_the_authors_do(name):
    spec, (stuff, some) = SPECS[name], STUFF[name]
    assert len(set(spec.stuff_ids)) == stuff
    assert some <= {spec.classes.names[class_id] for class_id in spec.stuff_ids}
    names = {spec.classes.names[i] for i in spec.thing_ids}
    assert len(names) == spec.num_classes - stuff and not names & some
    if name not in WITHOUT_PEOPLE:
        assert any(name.startswith("person") for name in names), "people are no stuff"
    assert spec.classes.things in (None, spec.thing_ids)


def test_all_else_follows_from_the_declaration(tmp_path):
    """Choices, roots, openers and the pages that list the data sets, in the order of papers."""
    assert (*SPECS, "folder") == tuple(asdict(EvaluationRoots()))
    assert set(DATASETS) == {*SPECS, "folder"}
    page = (REPOSITORY / "docs/evaluation.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (\d+) \|", page, re.MULTILINE)
    assert rows == [(s.name, s.short_title, str(s.num_classes)) for s in SPECS.values()]
    for spec in SPECS.values():
        assert f"`{spec.name}`" in (REPOSITORY / "README.md").read_text()
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
            spec.opener(open_tree(tmp_path), "train")


def test_both_counts_of_pascal_context_are_known():
    assert SPECS["pascal_context_59"].num_images["val"] == (5105, 5104)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_data_set_says_how_to_get_it(spec):
    assert spec.class_list in BUILT_IN
    assert spec.downloads or spec.obtaining
    for download in spec.downloads.values():
        assert download.url.endswith(download.file_name) and download.num_bytes > 10**7


def test_raw_values_of_coco_stuff_are_its_ids_less_one():
    classes = SPECS["coco_stuff"].classes
    values = dict(zip(classes.names, classes.label_values, strict=True))
    assert (values["person"], values["stop sign"], values["wood"]) == (0, 12, 181)
    assert set(range(182)) - set(classes.label_values) == {
        11,
        25,
        28,
        29,
        44,
        65,
        67,
        68,
        70,
        82,
        90,
    }


def test_facts_are_there_without_tensorflow():
    code = (
        "import sys, input_pipeline.dataset_specs, input_pipeline.downloads\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
