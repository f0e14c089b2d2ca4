"""maft_jax.cli.predict --task=panoptic and --task=instance."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from PIL import Image

import maft_jax
from input_pipeline.class_lists import load_class_list
from input_pipeline.run_lengths import decode_segmentation
from input_pipeline.sample_folder import draw_scene
from maft_jax.inference.segment_masks import masks_of, segments_of
from maft_jax.inference.segment_rules import RULES
from maft_jax.inference.vocabulary import things_of_list
from tests import runs
from tests.command_lines import PREDICT_IN_TURN
from tests.fcclip_files import class_names, write_checkpoint

CLASSES, THINGS = ("red disc", "sand", "grass"), ("red disc", "sand")
STRIPES = np.repeat(np.eye(3, dtype=bool)[:, None], 72, axis=1).repeat(32, axis=2)
"""[3, 72, 96]"""


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "scene.png"
    draw_scene(np.random.default_rng(0), (96, 72))[0].save(path)
    return path


def run(*commands) -> list[tuple[str, int]]:
    """What each says, and its exit code: one process for all, as flags are of one command."""
    arguments = json.dumps([list(map(str, command)) for command in commands])
    answers = runs.finish(runs.start([sys.executable, "-c", PREDICT_IN_TURN, arguments])).split(
        "code "
    )
    codes = [int(after.split("\n")[0]) for after in answers[1:]]
    assert len(codes) == len(commands), answers
    return list(zip(answers[:-1], codes, strict=True))


def common(tmp_path, photo, *more):
    """Arguments for a small CLIP and three masks beside each other."""
    (tmp_path / "masks").mkdir(exist_ok=True)
    np.savez(tmp_path / "masks/scene.npz", masks=STRIPES, scores=np.array([3, 2, 1], np.float32))
    return (
        *("--weights=random:tiny", f"--image={photo}", f"--out={tmp_path}", "--template={}"),
        *(f"--classes={', '.join(CLASSES)}", f"--proposals={tmp_path / 'masks'}"),
        *("--image_size=96", f"--cache_dir={tmp_path / 'cache'}", *more),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "rows", "function"),
    [
        ("panoptic", "segments", maft_jax.segment_panoptic),
        ("instance", "instances", maft_jax.segment_instances),
    ],
)
def test_objects_are_those_of_the_function(tmp_path, photo, task, rows, function):
    of_objects = (f"--task={task}", "--things=red disc, sand", "--rules=fcclip", "--min_score=0.1")
    [(_, code)] = run(common(tmp_path, photo, *of_objects))
    assert code == 0
    content = json.loads((tmp_path / "scene.json").read_text())
    rules = dataclasses.replace(
        RULES["fcclip"], **{f"{'object' if task == 'panoptic' else 'instance'}_threshold": 0.1}
    )
    assert content["settings"]["rules"] == dataclasses.asdict(rules)
    assert content["settings"]["things"] == ["red disc", "sand"]
    expected = function(
        dataclasses.replace(maft_jax.load("random:tiny"), image_size=96),
        photo,
        CLASSES,
        STRIPES,
        things=THINGS,
        rules=rules,
        templates=["{}"],
    )
    found = zip(content[rows], segments_of(expected), masks_of(expected), strict=True)
    for row, segment, mask in found:
        assert (row["name"], row["thing"]) == (segment.class_name, segment.is_thing)
        np.testing.assert_array_equal(decode_segmentation(row["segmentation"], (1, 1)), mask)
    assert content[rows] and (tmp_path / "scene_panoptic.png").exists() == (task == "panoptic")


@pytest.mark.slow
def test_the_whole_of_fcclip_finds_objects_by_its_own_rules(tmp_path, photo):
    checkpoint = write_checkpoint(tmp_path / "fcclip.pth")
    names = [names[0] for names in class_names()]
    kinds = ["thing", *["stuff"] * (len(names) - 1)]
    lines = (
        f"{i}\t{name}\t{kind}" for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    )
    (tmp_path / "names.txt").write_text("\n".join(lines))
    arguments = (
        *(f"--weights={checkpoint}", "--generator=fcclip", f"--image={photo}", "--task=panoptic"),
        *(f"--classes_file={tmp_path / 'names.txt'}", f"--out={tmp_path / 'out'}"),
        f"--cache_dir={tmp_path}",
    )
    [(_, code)] = run(arguments)
    content = json.loads((tmp_path / "out/scene.json").read_text())
    assert code == 0 and content["settings"]["rules"] == dataclasses.asdict(RULES["fcclip"])
    assert content["things"] == names[:1]
    with Image.open(tmp_path / "out/scene_panoptic.png") as image:
        assert image.size == (96, 72)


REFUSED = [
    (["--things=red disc"], "--things: only with --task=panoptic or --task=instance"),
    (["--min_score=0.3"], "--min_score: only with --task=panoptic"),
    (["--rules=fcclip"], "--rules: only with"),
    (["--task=panoptic", "--things=cat"], "--things: 'cat' is none of the 3 classes"),
    (["--task=panoptic", "--things=sand, sand"], "--things: 'sand' comes twice"),
    (["--task=instance", "--things="], "--things: expected at least one class"),
    (["--task=objects"], "--task=objects"),
]


@pytest.mark.slow
def test_what_cannot_be_meant_is_refused(tmp_path, photo):
    answers = run(*(common(tmp_path, photo, *more) for more, _ in REFUSED))
    for (more, message), (said, code) in zip(REFUSED, answers, strict=True):
        assert code == 2 and message in said, (more, said)
    assert not list(tmp_path.glob("*.json"))


def test_pasted_lists_may_say_their_things():
    assert things_of_list("1:cat,kitten\tthing\n\n2:sky\tstuff\n") == {0}
    assert things_of_list("1:cat,kitten\n2:sky") is None and things_of_list("cat\nsky") is None


def test_built_in_lists_know_their_things():
    counts = {"ade20k_150": 100, "coco_stuff_171": 80, "voc_20": 20, "shapes_world": 36}
    for name, count in counts.items():
        assert len(things_of_list(name)) == count
    names = load_class_list("ade20k_150").names
    assert names.index("person") in things_of_list("ade20k_150")
    assert names.index("sky") not in things_of_list("ade20k_150")
    assert things_of_list("ade20k_847") is None and things_of_list("cat, sofa") is None
