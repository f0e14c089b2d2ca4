"""The web page in a real browser: `pytest -m browser`; web_pages.py says which one."""

import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline.sample_folder import SAMPLE_CLASSES, draw_scene
from tests.web_page.web_pages import browser_page, serving

pytestmark = pytest.mark.browser

ALWAYS = 20_000  # milliseconds that anything may take
STRIPES = {"red disc": (0, 0, 255), "sand": (0, 128, 0), "grass": (255, 255, 255)}


@pytest.fixture(scope="module")
def address():
    with serving("--weights=random:tiny", "--num_proposals=25") as (address, _):
        yield address


@pytest.fixture
def tab(address):
    """The page in a tab; afterwards nothing was fetched from elsewhere, and no script failed."""
    with browser_page() as tab:
        tab.set_default_timeout(ALWAYS)
        fetched, failed = [], []
        tab.on("request", lambda request: fetched.append(request.url))
        tab.on("pageerror", lambda error: failed.append(error))
        tab.on("response", lambda answer: answer.ok or failed.append(answer.url))
        tab.goto(address)
        tab.wait_for_selector("#segment")
        yield tab
        elsewhere = [url for url in fetched if not url.startswith((address, "data:", "blob:"))]
        assert fetched and not elsewhere
        assert not failed


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "my photo.png"
    draw_scene(np.random.default_rng(3), (320, 240))[0].save(path)
    return str(path)


def fill(tab, picture: str | None, classes: str, background: str = ""):
    if picture:
        tab.set_input_files("#picture input[type=file]", picture)
        tab.wait_for_selector("#picture img")
    tab.fill("#classes textarea", classes)
    tab.fill("#background textarea", background)


def segment(tab, picture: str, classes: str, background: str = "") -> str:
    """The note below the picture, once there is one."""
    fill(tab, picture, classes, background)
    tab.click("#segment")
    tab.wait_for_function("document.querySelector('#viewer .note').textContent")
    return tab.inner_text("#viewer .note")


def entries(tab) -> list[tuple[str, float]]:
    """Names and percents of the legend."""
    names = tab.locator("#viewer .entry .name").all_inner_texts()
    shares = tab.locator("#viewer .entry .share").all_inner_texts()
    percents = [float(share.removeprefix("< ").removesuffix(" %")) for share in shares]
    return list(zip(names, percents, strict=True))


def seen(tab) -> np.ndarray:
    """The picture as it looks, [h, w, 3] of 0 to 255."""
    with Image.open(io.BytesIO(tab.locator("#viewer .stage").screenshot())) as image:
        return np.asarray(image.convert("RGB"), int)


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the eye would see it; browsers draw the same picture not always to the bit."""
    return np.abs(one - other).mean() > 2


def slide(tab, opacity: float):
    number = tab.locator("#opacity input[type=number]")
    number.fill(str(opacity))
    number.press("Tab")


def test_picture_and_names_become_colours_a_legend_and_downloads(tab, picture, tmp_path):
    assert "random:tiny" in tab.inner_text("body")
    note = segment(tab, picture, ", ".join(SAMPLE_CLASSES))
    assert note.startswith("320 x 240 pixels, 25 proposals")
    legend = entries(tab)
    assert {name for name, _ in legend} <= set(SAMPLE_CLASSES)
    assert sum(share for _, share in legend) == pytest.approx(100, abs=0.5)
    for kind in ("overlay", "labels"):
        with tab.expect_download() as download:
            tab.click(f"#{kind}")
        assert download.value.suggested_filename == f"my photo_{kind}.png"
        download.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_bytes().startswith(b"\x89PNG")


def test_opacity_changes_the_picture_without_another_segmentation(tab, picture, tmp_path):
    asked = []
    tab.on("request", lambda request: asked.append(request.post_data or ""))
    note = segment(tab, picture, "grass, sand, sky")
    segmentations = [data for data in asked if "grass, sand, sky" in data]
    assert len(segmentations) == 1
    looks = {}
    for opacity in (0, 0.6, 1):
        slide(tab, opacity)
        tab.wait_for_function(
            "opacity => getComputedStyle(document.querySelector('.colours')).opacity == opacity",
            arg=opacity,
        )
        looks[opacity] = seen(tab)
    assert all(differ(looks[one], looks[other]) for one, other in ((0, 0.6), (0.6, 1), (0, 1)))
    slide(tab, 0.6)
    assert [data for data in asked if "grass, sand, sky" in data] == segmentations
    assert tab.inner_text("#viewer .note") == note


def test_downloaded_overlay_is_as_opaque_as_the_slider_says(tab, picture):
    segment(tab, picture, "grass, sand, sky")
    overlays = {}
    for opacity in (0, 1):
        slide(tab, opacity)
        with tab.expect_download() as download:
            tab.click("#overlay")
        with Image.open(download.value.path()) as image:
            overlays[opacity] = np.asarray(image, int)[:240]
    with Image.open(picture) as image:
        plain = np.asarray(image, int)
    # Names are written over the picture at any opacity.
    assert np.mean(np.abs(overlays[0] - plain).max(-1) <= 1) > 0.8
    assert np.mean(np.abs(overlays[1] - plain).max(-1) <= 1) < 0.1


def test_hovering_tells_the_name_under_the_pointer(tab, picture):
    segment(tab, picture, "grass, sand, sky")
    shares = dict(entries(tab))
    box = tab.locator("#viewer .colours").bounding_box()
    plain = seen(tab)
    told = set()
    for x, y in ((0.1, 0.1), (0.5, 0.5), (0.9, 0.9), (0.3, 0.8)):
        tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        tip = tab.locator("#viewer .tip")
        tip.wait_for(state="visible")
        name, share = tip.inner_text().split(" · ")
        assert shares[name] == float(share.removesuffix(" %"))
        assert tab.inner_text("#viewer .entry.current .name") == name
        told.add(name)
    assert told <= {"grass", "sand", "sky"}
    tab.mouse.move(2, 2)
    tip.wait_for(state="hidden")
    assert not differ(seen(tab), plain)


def test_hovering_over_the_legend_fades_the_other_classes(tab, picture):
    segment(tab, picture, "grass, sand, sky", "wall")
    shares = dict(entries(tab))
    plain = seen(tab)
    for i, name in enumerate(shares):
        tab.hover(f"#viewer .entry >> nth={i}")
        others = 100 - shares[name] - shares.get("none of these", 0)
        assert differ(seen(tab), plain) == (others > 10 and name != "none of these")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cat, dog, cat", "'cat' comes twice"),
        ("", "no classes yet"),
        ("cat, <b>bold</b>, <b>bold</b>", "'<b>bold</b>' comes twice"),
        ("cat, " + "very " * 80 + "long", "class name 'very"),
    ],
)
def test_mistakes_are_explained_in_the_page(tab, picture, classes, message):
    fill(tab, picture, classes)
    tab.click("#segment")
    toast = tab.locator("[data-testid=toast-body]")
    toast.wait_for()
    assert message in toast.inner_text()
    assert "Traceback" not in tab.inner_text("body")


def test_missing_picture_is_explained_in_the_page(tab):
    fill(tab, None, "cat, dog")
    tab.click("#segment")
    toast = tab.locator("[data-testid=toast-body]")
    toast.wait_for()
    assert "no picture yet" in toast.inner_text()


def test_corrupt_picture_is_explained_in_the_page(tab, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    tab.set_input_files("#picture input[type=file]", tmp_path / "torn.jpg")
    tab.fill("#classes textarea", "cat, dog")
    tab.wait_for_selector("#picture img", state="attached")
    tab.click("#segment")
    toast = tab.locator("[data-testid=toast-body]")
    toast.wait_for()
    assert "torn.jpg" in toast.inner_text() and "component" not in toast.inner_text()


def test_names_are_shown_as_they_were_typed_and_never_run(tab, picture):
    names = ["<img src=x onerror=alert(1)>", "salt, pepper", "草", "${value}", "{{value}}"]
    segment(tab, picture, "\n".join(names))
    shown = [name for name, _ in entries(tab)]
    absent = tab.inner_text("#viewer .absent")
    assert shown and set(shown) <= set(names)
    assert all(name in shown or name in absent for name in names)


def test_background_stays_uncoloured(tab, picture):
    segment(tab, picture, "grass", "sand, sky, wall, red disc")
    assert set(dict(entries(tab))) <= {"grass", "none of these"}
    assert "none of these" in dict(entries(tab))


def test_example_fills_the_fields_and_enter_segments(tab):
    tab.click("#examples img >> nth=0")
    tab.wait_for_selector("#picture img")
    tab.wait_for_function("document.querySelector('#classes textarea').value")
    assert tab.input_value("#classes textarea") == ", ".join(SAMPLE_CLASSES)
    tab.press("#background textarea", "Enter")
    tab.wait_for_selector("#viewer .entry")
