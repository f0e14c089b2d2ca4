"""maft_jax.cli.predict: which images, which files, and how it ends."""

import io
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from skimage.measure import regionprops

from input_pipeline.image_files import read_label_map
from input_pipeline.sample_folder import draw_scene
from maft_jax.inference.files import (
    ImageFile,
    Interrupted,
    describe,
    encode_labels,
    find_images,
    predict_images,
    write_prediction,
)
from maft_jax.inference.overlay import overlay, segment_colors
from maft_jax.inference.result import Segmentation
from maft_jax.runtime import stop_requests
from tests import runs
from tests.command_lines import PREDICT_IN_TURN

REPOSITORY = pathlib.Path(__file__).parents[2]
NAMES = ("salt, pepper", "חתול", "a name of exactly forty characters, yes!")


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "maft_jax.cli.predict", *map(str, arguments)]


def scattered(num_classes: int) -> Segmentation:
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(-1, num_classes, (12, 16)).astype(np.int32)
    labels = labels.repeat(5, axis=0).repeat(5, axis=1)
    return Segmentation(
        image=rng.integers(0, 256, (60, 80, 3), np.uint8),
        class_names=tuple(f"class {i}" for i in range(num_classes)),
        label_map=labels,
        score=rng.random((60, 80), np.float32),
        proposals=np.zeros((0, 15, 20), np.uint8),
        proposal_probabilities=np.zeros((0, num_classes), np.float32),
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    """Four that can be read, in folders, of several pixel formats, and two that cannot."""
    folder = tmp_path_factory.mktemp("photos")
    scene = draw_scene(np.random.default_rng(0), (96, 72))[0]
    for place in ("one", "two", "two/below"):
        (folder / place).mkdir()
        scene.save(folder / place / "scene.jpg")
    scene.convert("CMYK").save(folder / "two" / "print.JPG", "jpeg")
    content = (folder / "one" / "scene.jpg").read_bytes()
    (folder / "one" / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "one" / ".hidden.jpg").write_bytes(b"")
    (folder / "one" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def predicted(photos, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The folder of results, and what the command printed."""
    out = tmp_path_factory.mktemp("predicted") / "new" / "out"
    (out.parent.parent / "names.txt").write_text("\n".join(NAMES))
    process = runs.start(
        command(
            *("--weights=random:tiny", f"--image={photos}", f"--out={out}", "missing.jpg"),
            f"--classes_file={out.parent.parent / 'names.txt'}",
            *("--background=wall, floor", "--template={}", "--template=a {}"),
            *("--num_proposals=16", "--image_size=96", "--picture_size=300"),
            *("--mask_rule=shared_patches", "--image_aspect=keep"),
            f"--cache_dir={out.parent.parent}",
        )
    )
    return out, runs.finish(process, exit_code=1)


def test_failures_are_listed_and_the_rest_is_done(photos, predicted):
    out, printed = predicted
    assert "4 of 5 images segmented" in printed and "2 failed:" in printed
    assert f"{photos / 'one' / 'cut.jpg'}: cannot be read as an image" in printed
    assert "missing.jpg: expected an image" in printed
    assert "Traceback" not in printed and "it/s" not in printed and "image/s" not in printed
    names = ["one/scene", "two/below/scene", "two/print", "two/scene"]
    kinds = (".json", "_labels.png", "_overlay.png")
    expected = sorted(f"{name}{kind}" for name in names for kind in kinds)
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert found == expected


def test_json_says_what_was_found_and_how(photos, predicted):
    out, _ = predicted
    content = json.loads((out / "two" / "scene.json").read_text(encoding="utf-8"))
    assert content["image"] == {
        "path": str(photos / "two" / "scene.jpg"),
        "width": 96,
        "height": 72,
    }
    assert content["weights"]["path"] == "random:tiny"
    assert len(content["weights"]["fingerprint"]) == 16
    assert content["proposals"]["generator"] == "superpixels" and content["num_proposals"] == 16
    assert content["settings"]["templates"] == ["{}", "a {}"]
    assert content["settings"]["image_size"] == 96
    assert content["settings"]["mask_start_layer"] == 2
    assert content["settings"]["mask_rule"] == "shared_patches"
    assert content["settings"]["image_aspect"] == "keep"
    assert content["settings"]["compute_dtype"] == "float32"
    assert content["class_names"] == list(NAMES) and content["background"] == ["wall", "floor"]
    assert content["versions"]["maft_jax"] and content["versions"]["devices"]
    labels = read_label_map(out / "two" / "scene_labels.png")
    assert labels.shape == (72, 96)
    pixels = {entry["index"]: entry["pixels"] for entry in content["classes"]}
    pixels |= {255: content["no_class"]["pixels"]}
    for index in {*np.unique(labels).tolist(), *pixels}:
        assert pixels.get(index, 0) == np.sum(labels == index)
    with Image.open(out / "two" / content["files"]["overlay"]) as picture:
        assert picture.width == 300 and picture.height > 225


@pytest.mark.slow
def test_broken_command_lines_exit_with_2_before_anything_is_written(photos, tmp_path):
    good = {"weights": "random:tiny", "image": photos, "classes": "cat, dog", "out": tmp_path / "o"}
    cases = [
        ({"weights": None}, "--weights: expected CLIP weights"),
        ({"image": None}, "--image: expected an image, a folder or a pattern"),
        ({"image": photos / "none"}, "no such file or folder"),
        ({"image": f"{photos}/*.bmp"}, "no file of this pattern"),
        ({"classes": None}, "expected either --classes"),
        ({"classes_file": "x.txt"}, "expected either --classes"),
        ({"classes": ""}, "--classes: expected at least one name, got none"),
        ({"classes": "cat, dog, cat"}, "--classes: 'cat' comes twice, as names 1 and 3"),
        ({"classes": "cat,,dog"}, "--classes: name 2 of 3 is empty"),
        ({"background": "cat"}, "background: 'cat' is one of the classes"),
        ({"generator": "external"}, "--generator=external and --proposals="),
        ({"proposals": photos / "none"}, "--proposals="),
        ({"scales": "big"}, "--scales: expected numbers"),
        ({"opacity": 3}, "opacity"),
        ({"template": "photo"}, "templates: expected one {} in 'photo'"),
        ({"weights": "no.pt"}, "no.pt"),
        ({"image_size": 3}, "expected at least one patch"),
        ({"mask_start_layer": 9}, "mask_start_layer=9"),
        ({"class_token": 1}, "class_token=1: expected a number below 1"),
        ({"mask_pooling": "soft"}, "mask_pooling=soft: for image towers that pool"),
        ({"classes": "cat " * 90 + ", dog"}, "shorten it"),
        ({"colour": 3}, "Unknown command line flag 'colour'"),
    ]
    arguments = [
        [f"--{name}={value}" for name, value in (good | change).items() if value is not None]
        for change, _ in cases
    ]
    process = runs.start([sys.executable, "-c", PREDICT_IN_TURN, json.dumps(arguments)])
    answers = runs.finish(process).split("code ")
    for (change, message), before, after in zip(cases, answers, answers[1:], strict=False):
        assert message in before and after.startswith("2"), (change, before, after)
        assert "Traceback" not in before
    assert len(answers) == len(cases) + 1 and not list((tmp_path / "o").glob("*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_whole_files_and_counts_them(tmp_path, monkeypatch, number):
    images = [ImageFile(tmp_path / f"{i}.jpg", f"id {i}", f"{i}") for i in range(4)]

    def segment(path, example_id):
        if example_id == "id 1":
            raise ValueError("is broken")
        if example_id == "id 2":
            monkeypatch.setattr(stop_requests._requests, "number", number)
        return scattered(2)

    with pytest.raises(Interrupted, match="stopped: 2 of 4 images are finished") as caught:
        predict_images(segment, images, tmp_path / "out", {})
    assert caught.value.exit_code == 128 + number
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"0.json", "2.json"}
    assert len(list((tmp_path / "out").iterdir())) == 6
    (tmp_path / "out/.3_overlay.png.0a1b2c3d").write_bytes(b"of a killed process")
    assert predict_images(segment, images[:2], tmp_path / "out", {}) == [
        f"{tmp_path / '1.jpg'}: is broken"
    ]
    assert len(list((tmp_path / "out").iterdir())) == 6


@pytest.mark.slow
def test_interrupted_command_counts_what_is_finished(photos, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    content = (photos / "one" / "scene.jpg").read_bytes()
    for i in range(300):
        (folder / f"{i:03d}.jpg").write_bytes(content)
    out = tmp_path / "out"
    process = runs.start(
        command(
            *("--weights=random:tiny", f"--image={folder}", f"--out={out}", "--template={}"),
            *("--classes=cat, dog", "--num_proposals=16", "--image_size=96"),
            f"--cache_dir={tmp_path}",
        )
    )
    end = time.monotonic() + 100
    while not list(out.glob("*.json")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed = runs.finish(process, exit_code=130)
    finished = len(list(out.glob("*.json")))
    assert 0 < finished < 300
    assert f"stopped: {finished} of 300 images are finished" in printed
    for path in out.iterdir():
        assert not path.name.startswith(".")
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()


def test_help_says_everything():
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    usage = subprocess.run(command("--help"), env=environment, capture_output=True, text=True)
    assert usage.returncode == 0
    for flag in ("weights", "image", "classes", "background", "template", "proposals", "opacity"):
        assert f"--{flag}" in usage.stdout or f"--[no]{flag}" in usage.stdout
    assert "Exit codes" in usage.stdout and "(default: '0.6')" in usage.stdout


@pytest.mark.parametrize("num_classes", [1, 3, 255])
def test_label_png_has_the_labels_and_the_overlays_colours(num_classes):
    segmentation = scattered(num_classes)
    content = encode_labels(segmentation)
    expected = np.where(segmentation.label_map < 0, 255, segmentation.label_map)
    np.testing.assert_array_equal(read_label_map(content), expected)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "P"
        shown = np.asarray(image.convert("RGB"))
    colors = segment_colors(segmentation)
    for index in np.unique(segmentation.label_map):
        color = colors.get(int(index), (0, 0, 0))
        assert np.all(shown[segmentation.label_map == index] == color)


@pytest.mark.parametrize("num_classes", [256, 847])
def test_label_png_of_many_classes_has_16_bits(num_classes):
    segmentation = scattered(num_classes)
    expected = np.where(segmentation.label_map < 0, 65535, segmentation.label_map)
    np.testing.assert_array_equal(read_label_map(encode_labels(segmentation)), expected)
    described = describe(segmentation)["label_map"]
    assert (described["bits"], described["no_class"]) == (16, 65535)
    assert "too many classes" in described["note"]


def test_areas_scores_and_boxes_are_those_of_scikit_image():
    segmentation = scattered(9)
    described = describe(segmentation)
    theirs = regionprops(segmentation.label_map + 1, segmentation.score)
    assert len(described["classes"]) == len(theirs)
    for region in theirs:
        (ours,) = (c for c in described["classes"] if c["index"] == region.label - 1)
        top, left, bottom, right = region.bbox
        assert ours["pixels"] == region.area
        assert ours["box"] == [left, top, right - left, bottom - top]
        np.testing.assert_allclose(ours["mean_score"], region.intensity_mean, atol=1e-4)
        np.testing.assert_allclose(ours["share"], region.area / (60 * 80), atol=1e-6)
    shares = [c["share"] for c in described["classes"]]
    assert shares == sorted(shares, reverse=True)
    np.testing.assert_allclose(sum(shares) + described["no_class"]["share"], 1, atol=1e-4)


def test_overlay_can_be_a_jpg(tmp_path):
    segmentation = scattered(3)
    write_prediction(segmentation, tmp_path, "a/photo", {}, picture_format="jpg", opacity=0.3)
    with Image.open(tmp_path / "a" / "photo_overlay.jpg") as image:
        difference = np.abs(np.asarray(image, int) - overlay(segmentation, 0.3))
    assert difference.mean() < 6


def test_images_of_equal_names_get_names_of_their_own(tmp_path):
    places = ["a/x.jpg", "b/x.jpg", "b/x.png", "c/X.jpg", "c/y.jpg"]
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"")
    images, problems = find_images([str(tmp_path / place) for place in places])
    assert [image.name for image in images] == ["a/x", "b/x_jpg", "b/x_png", "c/X", "y"]
    assert [image.example_id for image in images] == ["x", "x", "x", "X", "y"] and not problems
    again, _ = find_images([str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "x.jpg")])
    assert [image.path for image in again] == [tmp_path / place for place in places]
    assert [image.name for image in again] == ["a/x", "b/x_jpg", "b/x_png", "c/X", "c/y"]


def test_pictures_that_are_not_read_are_counted_and_named(tmp_path, caplog):
    for name in ("a.jpg", "b.psd", "c.cr2", "sub/d.PSD", "names.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with caplog.at_level(logging.INFO):
        images, problems = find_images([str(tmp_path)])
    assert [image.name for image in images] == ["a"]
    (problem,) = problems
    assert f"{tmp_path}: left out 3 files" in problem and "(2 .psd, 1 .cr2)" in problem
    assert "d.PSD" in problem and "c.cr2" in problem
    (message,) = caplog.messages
    assert "left out 1 files that are no images" in message and "names.txt" in message
    (tmp_path / "a.jpg").unlink()
    assert find_images([str(tmp_path)]) == ([], problems)


def test_patterns_folders_and_our_own_pictures(tmp_path):
    for name in ("a.jpg", "b.tif", "[c].png", ".d.jpg", "e.txt", "sub/f.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("a.json", "a_overlay.png", "a_labels.png", "g_labels.png"):
        (tmp_path / name).write_bytes(b"")

    def found(place: str) -> list[str]:
        images, problems = find_images([str(tmp_path / place)])
        assert bool(images) != bool(problems)
        return [image.name for image in images]

    assert found("") == ["[c]", "a", "b", "g_labels", "sub/f"]
    assert found("*.*g") == ["[c]", "a", "g_labels"]
    assert found("[c].png") == ["[c]"]
    assert found("**/*.webp") == ["sub/f"]
    assert found("s*/*") == ["sub/f"]
    assert found("nothing*") == []
