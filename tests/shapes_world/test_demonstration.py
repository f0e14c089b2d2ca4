"""The main job in a small world: all is written, a stopped one goes on, a second call is free."""

import json
import logging
import os
import signal

import pytest
from PIL import Image

from input_pipeline.shapes_world.folder import write_shapes_world
from input_pipeline.shapes_world.vocabulary import unseen_classes
from maft_jax.configs.shapes_world import get_config
from maft_jax.evaluators.results import read_result
from maft_jax.runtime.stop_signals import TrainingInterrupted
from maft_jax.shapes_world import demonstration, panoptic_comparison, worlds

pytestmark = pytest.mark.slow


def short_config(variant):
    config = get_config(variant)
    config.update_from_flattened_dict(
        {"num_steps": 4, "batch_size": 8, "log_every_steps": 1, "checkpointing.every_steps": 2}
    )
    return config


@pytest.fixture(scope="module", autouse=True)
def little_is_done():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worlds, "get_config", short_config)
        patched.setattr(panoptic_comparison, "_NUM_IMAGES", 6)
        yield


def draw_world(workdir):
    """A world of a few pictures, which `demonstrate` finds as if it had drawn it."""
    write_shapes_world(workdir / "data", seed=3, num_train=24, num_val=8)
    return workdir


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory, steps_compiled_once):
    workdir = draw_world(tmp_path_factory.mktemp("demo"))
    return workdir, demonstration.demonstrate(workdir, seed=3, split=1)


def test_demonstration_writes_table_pictures_and_weights(demonstrated, caplog):
    workdir, said = demonstrated
    frozen, tuned = (
        read_result(workdir / "evaluation" / f"step_{step}" / "shapes_world.json")
        for step in (0, 4)
    )
    assert [tuned.class_names[index] for index in tuned.unseen_classes] == list(unseen_classes(1))
    for result in (frozen, tuned):
        assert result.num_images == 8
        assert f"{100 * result.zero_shot.unseen_miou:.2f}" in said
    assert "score against IoU" in said and "--config=configs/folder.py" in said
    assert "panoptic quality of 6 pictures" in said
    quality = json.loads((workdir / "panoptic.json").read_text())["pq"]
    assert 0 < quality["tuned"]["every"] < 1 and f"{100 * quality['frozen']['unseen']:.2f}" in said
    pictures = ("evaluation/shapes_world.png", "diagnosis/score_against_iou.png", "panoptic.png")
    for name in pictures:
        with Image.open(workdir / name) as picture:
            assert min(picture.size) > 100
    assert (workdir / "tuned.safetensors").stat().st_size > 1_000_000
    caplog.clear()
    with caplog.at_level(logging.INFO, "maft_jax"):
        assert demonstration.demonstrate(workdir, seed=3, split=1) == said
    assert "looking for objects" not in caplog.text
    assert "nothing to do: all 4 steps are done" in caplog.text


def test_interrupted_demonstration_goes_on(tmp_path, monkeypatch, steps_compiled_once):
    workdir = draw_world(tmp_path)
    write = demonstration.train_and_evaluate

    def interrupted(config, folder):
        from maft_jax.training import train_loop

        fetch = train_loop._fetch

        def fetch_and_stop(*arguments):
            fetch(*arguments)
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(train_loop, "_fetch", fetch)

        monkeypatch.setattr(train_loop, "_fetch", fetch_and_stop)
        return write(config, folder)

    monkeypatch.setattr(demonstration, "train_and_evaluate", interrupted)
    with pytest.raises(TrainingInterrupted):
        demonstration.demonstrate(workdir, seed=3)
    monkeypatch.setattr(demonstration, "train_and_evaluate", write)
    demonstration.demonstrate(workdir, seed=3)
    steps = [
        json.loads(line)["step"]
        for line in (workdir / "metrics.jsonl").read_text().split("\n")
        if line
    ]
    assert max(steps) == 4


def test_other_seed_in_the_same_folder_is_refused(demonstrated):
    workdir, _ = demonstrated
    with pytest.raises(ValueError, match="seed"):
        demonstration.demonstrate(workdir, seed=4, split=1)
