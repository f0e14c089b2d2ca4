import json

import numpy as np
import pytest

from input_pipeline.layouts import open_dataset
from input_pipeline.layouts.base import MissingFiles
from input_pipeline.shapes_world.captions import describe
from input_pipeline.shapes_world.folder import write_shapes_world
from input_pipeline.shapes_world.scenes import draw_scene
from input_pipeline.shapes_world.splits import WORLD_VERSION
from input_pipeline.shapes_world.vocabulary import CLASS_NAMES

NUMBERS = {"train": range(4), "val": range(1_000_000, 1_000_003)}


@pytest.fixture
def root(tmp_path):
    write_shapes_world(tmp_path / "world", seed=6, num_train=4, num_val=3)
    return tmp_path / "world"


@pytest.mark.parametrize("split", NUMBERS)
def test_what_is_read_is_what_was_drawn(root, split, caplog):
    source = open_dataset("shapes_world", root, split)
    assert source.name == "shapes_world" and source.class_names == CLASS_NAMES
    assert source.example_ids == tuple(f"{number:06d}" for number in NUMBERS[split])
    for index, number in enumerate(NUMBERS[split]):
        scene, example = draw_scene(6, number), source[index]
        np.testing.assert_array_equal(example.image, scene.image)
        np.testing.assert_array_equal(example.label_map, scene.label_map)
    assert caplog.text == ""


def test_labels_come_with_the_objects_of_the_scene(root):
    source = open_dataset("shapes_world", root, "val")
    for index, number in enumerate(NUMBERS["val"]):
        scene, (label_map, instances) = draw_scene(6, number), source.labels(index)
        np.testing.assert_array_equal(label_map, scene.label_map)
        assert instances.max() == len(scene.objects) > 0
        for one, (class_id, _) in enumerate(scene.objects, start=1):
            assert set(label_map[instances == one]) == {class_id}
        assert source[index].instances is None


def test_objects_of_another_scene_are_refused(root):
    world = root / "world.json"
    world.write_text(world.read_text().replace('"seed": 6', '"seed": 7'))
    for removed in (False, True):
        with pytest.raises(ValueError, match=r"1000000.png: expected the label map of the scene"):
            open_dataset("shapes_world", root, "val").labels(0)
        if not removed:
            world.unlink()


@pytest.mark.parametrize("split", NUMBERS)
def test_captions_are_those_of_the_seed_and_the_number(root, split):
    lines = (root / split / "captions.tsv").read_text().splitlines()
    assert lines == [
        f"{number:06d}\t{describe(draw_scene(6, number), words(number)).text}"
        for number in NUMBERS[split]
    ]


def words(number):
    return np.random.RandomState([6, number, 1])


def test_folder_says_what_it_holds(root):
    assert sorted(path.name for path in root.iterdir()) == [
        *("classes.txt", "train", "val", "world.json")
    ]
    assert json.loads((root / "world.json").read_text()) == {
        "world_version": WORLD_VERSION,
        "seed": 6,
        "num_train": 4,
        "num_val": 3,
    }
    assert tuple((root / "classes.txt").read_text().splitlines()) == CLASS_NAMES
    assert root.stat().st_mode & 0o777 == 0o755


def test_folder_is_a_data_set_of_ones_own_too(root):
    places = {"images": "train/images", "annotations": "train/annotations"}
    own = open_dataset("folder", root, "train", **places)
    source = open_dataset("shapes_world", root, "train")
    assert own.example_ids == source.example_ids and own.class_names == source.class_names
    np.testing.assert_array_equal(own[2].label_map, source[2].label_map)


def test_more_scenes_begin_with_the_same_ones(root, tmp_path):
    write_shapes_world(tmp_path / "more", seed=6, num_train=5, num_val=4)
    few, more = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*.png")}
        for top in (root, tmp_path / "more")
    )
    assert len(few) == 14 and len(more) == 18
    assert few.items() <= more.items()


def test_other_seeds_draw_other_scenes(root, tmp_path):
    write_shapes_world(tmp_path / "other", seed=7, num_train=1, num_val=1)
    sources = [open_dataset("shapes_world", top, "val") for top in (root, tmp_path / "other")]
    assert not np.array_equal(sources[0][0].image, sources[1][0].image)


def test_progress_counts_both_splits(tmp_path):
    seen = []
    write_shapes_world(
        tmp_path / "world", num_train=2, num_val=1, progress=lambda *counts: seen.append(counts)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("when", [1, 4, 5])
def test_interrupted_writing_leaves_nothing(tmp_path, error, when):
    def interrupt(done, total):
        assert total == 5
        if done == when:
            raise error

    with pytest.raises(error):
        write_shapes_world(tmp_path / "world", num_train=3, num_val=2, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_existing_root_is_left_alone(tmp_path):
    (tmp_path / "world").mkdir()
    with pytest.raises(ValueError, match=r"world: expected a folder yet to be made, it exists"):
        write_shapes_world(tmp_path / "world")
    assert list(tmp_path.rglob("*")) == [tmp_path / "world"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train=0: expected 1 to 1,000,000 scenes"),
        ({"num_val": -1}, "num_val=-1: expected 1 to"),
        ({"num_train": 1_000_001}, "num_train=1000001: expected 1 to"),
        ({"seed": -1}, "[Ss]eed"),
    ],
)
def test_impossible_worlds_are_refused_and_leave_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_shapes_world(tmp_path / "world", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_missing_split_is_an_error_that_says_how_to_draw_it(root):
    (root / "val" / "captions.tsv").unlink()
    with pytest.raises(
        MissingFiles, match=r"(?s)val/captions\.tsv.*maft_jax\.cli\.demo.*write_shapes_world"
    ):
        open_dataset("shapes_world", root, "val")
    assert len(open_dataset("shapes_world", root, "train")) == 4


@pytest.mark.parametrize(("part", "name"), [("images", "image"), ("annotations", "label map")])
def test_missing_file_is_named(root, part, name):
    (root / "train" / part / "000002.png").unlink()
    with pytest.raises(ValueError, match=rf"1 of the 4 .*no {name}.*train/{part}/000002\.png"):
        open_dataset("shapes_world", root, "train")
