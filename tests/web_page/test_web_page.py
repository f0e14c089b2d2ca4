"""The web page without a browser: what it computes, says, writes, and how its server ends."""

import base64
import contextlib
import dataclasses
import gzip
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import maft_jax
from input_pipeline.class_lists import load_class_list
from input_pipeline.examples import Example
from input_pipeline.sample_folder import SAMPLE_CLASSES, draw_scene
from maft_jax.inference.overlay import overlay
from maft_jax.inference.segmentation import ImageSegmenter
from maft_jax.web_page import make_page
from maft_jax.web_page.session import PageSession, Result, read_classes, read_field
from maft_jax.web_page.viewer import NO_CLASS, viewer_data
from tests.precompute_jobs import BlockProposals
from tests.toy_generators import toy_generator
from tests.web_page.web_pages import serving

pytestmark = pytest.mark.slow

CLASSES = ", ".join(SAMPLE_CLASSES)


@pytest.fixture(scope="module")
def clip():
    return dataclasses.replace(maft_jax.load("random:tiny"), image_size=96)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A file of 160 x 120 pixels."""
    path = tmp_path_factory.mktemp("pictures") / "my photo.png"
    draw_scene(np.random.default_rng(3), (160, 120))[0].save(path)
    return str(path)


@pytest.fixture
def session(clip, tmp_path):
    return PageSession(clip, tmp_path)


@pytest.fixture(scope="module")
def result(clip, picture):
    segmenter = ImageSegmenter(clip, SAMPLE_CLASSES[:6], background="grass", num_proposals=25)
    return Result(segmenter(picture), "my photo", 1.0)


def shown_labels(data: dict) -> np.ndarray:
    """The label map as the browser has it, in places of `classes`."""
    plain = gzip.decompress(base64.b64decode(data["labels"]))
    return np.frombuffer(plain, "<u2").reshape(data["height"], data["width"])


def ask(address: str, path: str) -> str:
    """What the server answers to who asks it for the segmentation of any file of its own."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    content = json.dumps({"data": [file, CLASSES, "", 25, "semantic", ""]}).encode()
    url = f"{address}gradio_api/call/segment"
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        number = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{number}") as answer:
        return answer.read().decode()


def test_field_holds_names_between_commas_or_one_a_line_or_a_list_by_name():
    assert read_field(' cat, "salt, pepper" ', "classes") == ("cat", "salt, pepper")
    assert read_field("cat\n\n salt, pepper \n", "classes") == ("cat", "salt, pepper")
    assert read_field("voc_20", "classes") == load_class_list("voc_20").names
    assert read_field(" \n ", "background") == ()
    assert read_classes("1:cat,kitty\n2:sofa\n") == (("cat", "sofa"), {"cat": ("kitty",)})
    assert read_classes("cat\nsalt, pepper") == (("cat", "salt, pepper"), {})
    assert read_classes("cat, sofa") == (("cat", "sofa"), {})


def test_viewer_gets_the_label_map_with_names_and_shares(result):
    segmentation = result.segmentation
    data = json.loads(json.dumps(viewer_data(result)))
    labels = shown_labels(data)
    names = [entry["name"] for entry in data["classes"]]
    for place, entry in enumerate(data["classes"]):
        index = segmentation.class_names.index(entry["name"])
        np.testing.assert_array_equal(labels == place, segmentation.label_map == index)
        assert entry["share"] == pytest.approx(np.mean(labels == place))
    np.testing.assert_array_equal(labels == NO_CLASS, segmentation.label_map == -1)
    shares = [entry["share"] for entry in data["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) + data["rest"] == pytest.approx(1)
    absent = [name for name in segmentation.class_names if name not in names]
    assert data["absent"] == (f"Not found: {' · '.join(absent)}" if absent else "")


def test_names_are_written_inside_their_own_regions(result):
    data = viewer_data(result)
    labels = shown_labels(data)
    names = [entry["name"] for entry in data["classes"]]
    assert data["written"]
    for written in data["written"]:
        x, y = int(written["x"] * data["width"]), int(written["y"] * data["height"])
        around = labels[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7]
        assert names.index(written["name"]) in around


def test_vocabularies_share_the_image_tower_on_the_device(session):
    towers = [session._segmenter((name,), ("sky",), 25)._tower for name in ("cat", "dog")]
    assert towers[0]["proj"] is towers[1]["proj"]


def test_name_without_a_font_on_the_server_is_the_browsers_to_draw(result):
    names = ("\U000f0000", *result.segmentation.class_names[1:])
    everywhere = np.zeros_like(result.segmentation.label_map)
    changed = dataclasses.replace(
        result.segmentation, class_names=names, label_map=everywhere, background=()
    )
    data = viewer_data(dataclasses.replace(result, segmentation=changed))
    assert [entry["name"] for entry in data["classes"]] == [names[0]]
    assert [written["name"] for written in data["written"]] == [names[0]]


def test_large_picture_reaches_the_browser_smaller_and_its_shares_are_exact(result):
    repeat = 3000 // 160
    large = dataclasses.replace(
        result.segmentation,
        image=result.segmentation.image.repeat(repeat, 0).repeat(repeat, 1),
        label_map=result.segmentation.label_map.repeat(repeat, 0).repeat(repeat, 1),
        score=result.segmentation.score.repeat(repeat, 0).repeat(repeat, 1),
    )
    data = viewer_data(dataclasses.replace(result, segmentation=large))
    small = viewer_data(result)
    assert (data["width"], data["height"]) == (1600, 1200)
    assert shown_labels(data).shape == (1200, 1600)
    for one, other in zip(data["classes"], small["classes"], strict=True):
        assert one["name"] == other["name"]
        assert one["share"] == pytest.approx(other["share"])


def test_session_segments_as_the_library_does(session, clip, picture):
    mine = session.segment(picture, CLASSES, "sky", 25).segmentation
    expected = maft_jax.segment(clip, picture, SAMPLE_CLASSES, background=["sky"], num_proposals=25)
    np.testing.assert_array_equal(mine.label_map, expected.label_map)
    assert mine.class_names == SAMPLE_CLASSES


def test_proposals_of_a_picture_are_made_once_for_all_names(session, picture, monkeypatch):
    made = []
    prepare = ImageSegmenter.prepare
    monkeypatch.setattr(
        ImageSegmenter, "prepare", lambda *given: made.append(given) or prepare(*given)
    )
    for names in (CLASSES, "grass, sand", CLASSES):
        session.segment(picture, names, "", 25)
    assert len(made) == 1
    session.segment(picture, CLASSES, "", 50)
    assert len(made) == 2


@pytest.mark.parametrize(
    ("classes", "background", "message"),
    [
        ("", "", "no classes yet"),
        ("cat, dog, Cat", "", "classes: 'Cat' comes twice"),
        ("cat,, dog", "", "classes: name 2 of 3 is empty"),
        ("cat, " + "very " * 80 + "long", "", "class name 'very very .* long'"),
        ("cat, dog", "dog", "background: 'dog' is one of the classes"),
        ('cat, "dog', "", "classes: .*quotes"),
    ],
)
def test_wrong_names_are_explained(session, picture, classes, background, message):
    with pytest.raises(ValueError, match=message):
        session.segment(picture, classes, background, 25)


def test_missing_and_corrupt_pictures_are_explained(session, tmp_path):
    with pytest.raises(ValueError, match="no picture yet"):
        session.segment(None, CLASSES, "", 25)
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(ValueError, match=r"^torn\.jpg: "):
        session.segment(str(tmp_path / "torn.jpg"), CLASSES, "", 25)


def test_downloads_are_the_overlay_and_the_label_map(session, result):
    path = session.write_overlay(result, 0.3)
    assert path.endswith("/my photo_overlay.png")
    with Image.open(path) as image:
        np.testing.assert_array_equal(image, overlay(result.segmentation, 0.3))
    with Image.open(session.write_labels(result)) as image:
        labels = np.asarray(image).astype(int)
    np.testing.assert_array_equal(
        np.where(labels == 255, -1, labels), result.segmentation.label_map
    )


def test_what_scripts_leave_out_is_asked_for(session, picture):
    with pytest.raises(ValueError, match="There are no classes yet"):
        session.segment(picture, None, None, 25)
    for write, more in ((session.write_overlay, (0.5,)), (session.write_labels, ())):
        with pytest.raises(ValueError, match="There is no result yet"):
            write(None, *more)


def test_old_downloads_are_removed(session, result, monkeypatch):
    monkeypatch.setattr("maft_jax.web_page.session._RESULTS_KEPT", 3)
    paths = [session.write_labels(result) for _ in range(5)]
    assert [pathlib.Path(path).exists() for path in paths] == [False, False, True, True, True]
    assert len(list((session.folder / "results").iterdir())) == 3


def test_page_needs_a_text_tower(clip, tmp_path):
    config = dataclasses.replace(clip.config, text=None)
    image_only = dataclasses.replace(clip, config=config)
    with pytest.raises(ValueError, match=r"mine\.pt: these weights have no text tower"):
        make_page(image_only, "mine.pt", tmp_path)


def test_page_without_gradio_says_what_to_install(clip, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"pip install 'maft_jax\[demo\]'"):
        make_page(clip, "random:tiny", tmp_path)


@pytest.mark.parametrize("given", [{"classes": "cat, cat"}, {"num_proposals": 0}])
def test_page_refuses_what_its_fields_cannot_hold(clip, tmp_path, given):
    with pytest.raises(ValueError, match=r"twice|num_proposals: expected"):
        make_page(clip, "random:tiny", tmp_path, **given)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --weights=tuned.safetensors"),
        (["--weights=random:tiny", "--port=70000"], "port"),
        (["--weights=random:tiny", "--class_token=1"], "class_token=1: expected a number below 1"),
        (["--weights=random:tiny", "cat"], r"unexpected \['cat'\]"),
    ],
)
def test_wrong_command_line_is_refused_in_a_line(flags, message):
    command = [sys.executable, "-m", "maft_jax.cli.web_page", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(message, done.stderr) and "Traceback" not in done.stderr


def test_taken_port_is_told_before_weights_are_read():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "maft_jax.cli.web_page", "--weights=none.pt"]
        done = subprocess.run([*command, f"--port={port}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"--port={port}: Address already in use" in done.stderr


def test_server_segments_explains_mistakes_and_ends_by_ctrl_c(picture):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    with serving("--weights=random:tiny", "--classes=cat, dog") as (address, process):
        with urllib.request.urlopen(address) as answer:
            page = answer.read().decode()
        assert "random:tiny" in page and "cat, dog" in page
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            with pytest.raises(urllib.error.HTTPError, match="403") as refused:
                urllib.request.urlopen(urllib.request.Request(address, headers=headers))
            refused.value.close()
        client = Client(address, verbose=False)
        uploaded = handle_file(picture)
        data = client.predict(uploaded, CLASSES, "", 25, api_name="/segment")
        assert shown_labels(data).shape == (120, 160)
        with Image.open(client.predict(api_name="/labels")) as image:
            assert image.size == (160, 120)
        asked = (uploaded, "red disc, sand", "", 25, "panoptic", "red disc")
        objects = client.predict(*asked, api_name="/segment")
        assert objects["outlines"] and all("score" in o["detail"] for o in objects["classes"])
        with pytest.raises(AppError, match="'cat' is none of the 2 classes"):
            client.predict(*asked[:-1], "cat", api_name="/segment")
        with pytest.raises(AppError, match="'cat' comes twice"):
            client.predict(uploaded, "cat, cat", "", 25, api_name="/segment")
        with pytest.raises(AppError, match="no picture yet"):
            client.predict(None, CLASSES, "", 25, api_name="/segment")
        client.close()
        assert "event: error" in ask(address, picture)  # never uploaded: a file of the server's
        assert "this page fetches nothing" in ask(address, "https://elsewhere.example/photo.png")
        with contextlib.closing(HTTPConnection(urlsplit(address).netloc)) as flood:
            flood.putrequest("POST", "/gradio_api/call/segment")
            flood.putheader("Content-Length", str(5 * 2**20))
            flood.endheaders()
            assert flood.getresponse().status == 413
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read().endswith(
            "\nstopped by SIGINT; what was finished is kept, the same command goes on\n"
        )
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(address)


def test_proposals_are_those_of_the_given_generator(clip, picture, tmp_path):
    session = PageSession(clip, tmp_path, lambda names: toy_generator())
    result = session.segment(picture, CLASSES, "", 25)
    image = result.segmentation.image
    expected = toy_generator()(Example("photo", image, np.zeros(image.shape[:2], np.int32)), 25)
    corners = np.s_[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # on those of the picture, at any size
    np.testing.assert_array_equal(result.segmentation.proposals[corners], expected.masks[corners])


def test_a_generator_that_reads_names_is_asked_again_for_other_names(clip, picture, tmp_path):
    read, made = [], []

    class Recording(BlockProposals):
        def __call__(self, example, num_proposals):
            made.append(example.example_id)
            return super().__call__(example, num_proposals)

    def generator_of(names):
        read.append(names)
        return Recording()

    session = PageSession(clip, tmp_path, generator_of)
    for classes, background in (("cat, dog", "sky"), ("cat, dog", "sky"), ("cat, lamp", "")):
        session.segment(picture, classes, background, 25)
    assert read == [("cat", "dog", "sky"), ("cat", "lamp")]
    assert len(made) == 2
