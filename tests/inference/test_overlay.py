"""Overlays: colours that belong to names, and text that can be read and stays in the picture."""

import dataclasses
import itertools
import pathlib

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import label

from input_pipeline.class_lists import load_class_list
from maft_jax.inference.overlay import blend, borders, overlay, place_names, segment_colors
from maft_jax.inference.result import Segmentation
from maft_jax.pictures import lettering
from maft_jax.pictures.legend import LegendEntry, draw_legend, format_share, lay_out_legend
from maft_jax.pictures.lettering import letter_size, letters_for, readable, shortened, wrapped
from maft_jax.pictures.name_colors import name_color, picture_colors

pytestmark = pytest.mark.slow

ADE = load_class_list("ade20k_847").names
LONG = (
    "a long wooden bench with an iron armrest",
    "electric-kettle/with/many/slashes/in-it",
    "supercalifragilisticexpialidociousxxxxxx",
    "cat",
)
WORLD = (
    "חתול",
    "قطة سوداء",
    "बिल्ली",
    "แมว",
    "고양이",
    "黒い猫",
    "e\u0301" * 12,
    "a\u200db",
    "\U0001f431 cat",
)
UNPRINTABLE = "\U000f0000\U000f0001"
"""Letters of a private use area, which no font has."""


def mosaic(height: int, width: int, names, seed: int = 0) -> Segmentation:
    """Every name in a block of its own, more or less, and a strip without a class."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(len(names))))
    blocks = rng.permutation(np.resize(np.arange(len(names)), side * side)).reshape(side, side)
    rows, columns = np.arange(height) * side // height, np.arange(width) * side // width
    labels = blocks[np.ix_(rows, columns)].astype(np.int32)
    labels[: height // 12] = -1
    return Segmentation(
        image=rng.integers(0, 256, (height, width, 3), np.uint8),
        class_names=tuple(names),
        label_map=labels,
        score=np.where(labels >= 0, 0.5, 0).astype(np.float32),
        proposals=np.zeros((0, 1, 1), np.uint8),
        proposal_probabilities=np.zeros((0, len(names)), np.float32),
    )


def test_colour_belongs_to_the_name_alone():
    assert name_color("cat") == (85, 159, 217)
    assert name_color("wall-other") == (131, 207, 251)
    assert name_color("猫") == (131, 107, 57)
    assert name_color("Cat") == name_color("cat")
    assert picture_colors(["dog", "cat", "tree"], [1])[1] == name_color("cat")
    assert picture_colors([*ADE, "cat"], [len(ADE), 3])[len(ADE)] == name_color("cat")


def test_names_of_a_small_vocabulary_keep_their_colours_in_every_order_and_picture():
    names = list(ADE[:32])
    colors = picture_colors(names, [3, 1])
    backwards = picture_colors(names[::-1], [])
    assert [colors[i] for i in range(32)] == [backwards[31 - i] for i in range(32)]


@pytest.mark.parametrize("names", [ADE[:24], load_class_list("coco_stuff_171").names[80:104]])
def test_names_of_a_small_vocabulary_look_different(names):
    colors = picture_colors(names, [])
    distances = [
        np.linalg.norm(np.subtract(colors[i], colors[j]))
        for i, j in itertools.combinations(range(24), 2)
    ]
    pure = [name_color(name) for name in names]
    assert min(distances) > 20
    assert sum(colors[i] == color for i, color in enumerate(pure)) >= 12


def test_present_names_of_a_large_vocabulary_look_different():
    present = list(range(0, 800, 40))
    colors = picture_colors(ADE, present)
    assert colors[present[0]] == name_color(ADE[0]) and colors[1] == name_color(ADE[1])
    distances = [
        np.linalg.norm(np.subtract(colors[i], colors[j]))
        for i, j in itertools.combinations(present, 2)
    ]
    assert min(distances) > 20


def test_opacity_goes_from_the_image_to_the_colours():
    segmentation = mosaic(120, 160, ["cat", "dog", "tree", "sky"])
    colors = segment_colors(segmentation)
    image, labels = segmentation.image, segmentation.label_map
    np.testing.assert_array_equal(blend(image, labels, colors, 0.0), image)
    opaque = blend(image, labels, colors, 1.0)
    inside = ~borders(labels, 1)
    for index, color in colors.items():
        assert np.all(opaque[inside & (labels == index)] == color)
    half = blend(image, labels, colors, 0.5)
    np.testing.assert_array_equal(half[(labels < 0) & inside], image[(labels < 0) & inside])
    for opacity in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"opacity: expected 0 to 1, got {opacity}"):
            overlay(segmentation, opacity)


def test_borders_lie_between_classes():
    labels = np.zeros((6, 8), np.int32)
    labels[2:4, 3:6] = 1
    expected = np.zeros((6, 8), bool)
    expected[1, 3:6] = expected[3, 3:6] = expected[2:4, 2] = expected[2:4, 5] = True
    np.testing.assert_array_equal(borders(labels, 1), expected)
    assert borders(labels, 3).sum() > expected.sum()


PICTURES = {
    "one class": (200, 300, ["cat"]),
    "small": (225, 300, ADE[:40]),
    "long names": (225, 300, LONG),
    "world": (300, 400, WORLD),
    "large": (1000, 3000, ADE[:6]),
    "all of ADE": (225, 300, ADE),
    "narrow": (400, 40, LONG),
    "wide": (60, 900, LONG),
    "icon": (8, 8, LONG),
    "pixel": (1, 1, ["cat"]),
    "no font": (150, 200, [UNPRINTABLE, "cat"]),
}


@pytest.mark.parametrize("case", PICTURES)
def test_names_stay_inside_and_apart(case):
    height, width, names = PICTURES[case]
    segmentation = mosaic(height, width, names)
    texts = {i: readable(name, i) for i, name in enumerate(names)}
    placed = place_names(segmentation.label_map, texts, letter_size(height, width))
    boxes = []
    for name in placed:
        left, top, box_width, box_height = name.box
        assert left >= 0 and top >= 0
        assert left + box_width <= width and top + box_height <= height
        for i, line in enumerate(name.lines):
            center = left + box_width / 2, top + (i + 0.5) * box_height / len(name.lines)
            ink_left, _, ink_right, _ = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox(
                center, line, name.font, "mm", stroke_width=name.outline
            )
            assert ink_left >= 0 and ink_right <= width
        for other_left, other_top, other_width, other_height in boxes:
            assert (
                left + box_width <= other_left
                or other_left + other_width <= left
                or top + box_height <= other_top
                or other_top + other_height <= top
            )
        boxes.append(name.box)
    if case in ("one class", "small", "long names", "world", "large"):
        assert len(placed) >= min(len(names), 9) - 1
    picture = overlay(segmentation)
    assert picture.shape[1] == max(width, 200) and picture.shape[0] > height
    assert overlay(segmentation, legend=False).shape == (height, width, 3)


def test_name_lies_where_its_region_is_widest():
    labels = np.full((240, 320), -1, np.int32)
    labels[20:40, 10:300] = 0
    labels[100:220, 200:310] = 0
    texts = {0: "cat"}
    thin, wide = sorted(place_names(labels, texts, 14), key=lambda name: name.box[1])
    for name, rows, columns in ((thin, (20, 40), (10, 300)), (wide, (100, 220), (200, 310))):
        x, y = name.box[0] + name.box[2] / 2, name.box[1] + name.box[3] / 2
        assert abs(y - sum(rows) / 2) < 12 and columns[0] < x < columns[1]


def test_specks_have_no_name():
    labels = np.zeros((240, 320), np.int32)
    labels[100:104, 100:104] = 1
    assert [name.index for name in place_names(labels, {0: "cat", 1: "dog"}, 14)] == [0]


@pytest.mark.parametrize("width", [200, 300, 3000])
@pytest.mark.parametrize("names", [["cat"], LONG, ADE[:40], ADE, WORLD], ids=len)
def test_legend_stays_inside_and_tells_of_everything(width, names):
    size = letter_size(2 * width // 3, width)
    entries = [
        LegendEntry(readable(name, i), 0.5**i, name_color(name)) for i, name in enumerate(names)
    ]
    cells, height = lay_out_legend(entries, width, size, width // 3)
    for cell in cells:
        assert cell.x > 0 and cell.x + cell.width < width
        assert cell.y > 0 and cell.y + cell.height < height
    places = {(cell.x, cell.y) for cell in cells}
    assert len(places) == len(cells)
    np.testing.assert_allclose(
        sum(cell.entry.share for cell in cells), sum(entry.share for entry in entries)
    )
    if len(cells) < len(names):
        assert cells[-1].entry.text == f"and {len(names) - len(cells) + 1} more"
    strip = draw_legend(entries, width, size, width // 3)
    assert strip.shape == (height, width, 3)
    for edge in (strip[:2], strip[-2:], strip[:, :2], strip[:, -2:]):
        assert np.all(edge == 255)
    _, num_pieces = label((strip < 200).any(axis=-1))
    assert num_pieces >= 2 * len(cells)  # swatches, letters and numbers do not run together


def test_shares_are_short_and_never_zero():
    shares = [1.0, 0.5, 0.0999, 0.0994, 0.012, 0.001, 0.0009]
    expected = ["100%", "50%", "10%", "9.9%", "1.2%", "0.1%", "<0.1%"]
    assert [format_share(share) for share in shares] == expected


def test_unlabelled_pixels_are_in_the_legend():
    segmentation = mosaic(240, 320, ["cat", "dog"])
    without = dataclasses.replace(
        segmentation, label_map=np.where(segmentation.label_map < 0, 0, segmentation.label_map)
    )
    assert overlay(segmentation).shape[0] > overlay(without).shape[0]
    nothing = dataclasses.replace(segmentation, label_map=np.full((240, 320), -1, np.int32))
    assert overlay(nothing).shape[0] > 240


def test_picture_can_be_scaled():
    segmentation = mosaic(120, 160, ["cat", "dog"])
    assert overlay(segmentation, legend=False, long_side=400).shape == (300, 400, 3)
    assert overlay(segmentation, legend=False, long_side=80).shape == (60, 80, 3)


def test_name_without_font_becomes_its_number_and_that_is_said_once(caplog):
    lettering._warn_once.cache_clear()
    assert [readable(UNPRINTABLE, 3), readable(UNPRINTABLE, 3)] == ["#3", "#3"]
    assert caplog.text.count("no font on this machine") == 1
    assert readable("cat", 3) == "cat"


def test_letters_that_the_bold_font_lacks_are_written_with_the_regular_one(monkeypatch):
    monkeypatch.setattr(lettering, "_system_fonts", lambda: [])
    lettering._font_with.cache_clear()
    name = "\U0001d5a0\U0001d5a1"
    assert readable(name, 3) == name
    assert letters_for(name, 14, bold=True).path.endswith("DejaVuSans.ttf")
    overlay(mosaic(120, 160, [name]))
    lettering._font_with.cache_clear()


def test_other_fonts_of_the_system_are_used_for_their_letters(monkeypatch):
    other = str(pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"))
    monkeypatch.setattr(lettering, "_system_fonts", lambda: ["/no/such.ttf", other])
    lettering._font_with.cache_clear()
    assert letters_for("a\u1d8d", 20).path == other
    assert letters_for("cat", 20).path.endswith("DejaVuSans.ttf")
    assert letters_for("cat", 20, bold=True).path.endswith("DejaVuSans-Bold.ttf")
    lettering._font_with.cache_clear()


@pytest.mark.parametrize("text", [*LONG, "日本語の長い名前です", "a b c d e f g h", "a-b/c,d;e"])
@pytest.mark.parametrize("most_lines", [1, 2, 3])
def test_wrapped_text_fits_and_loses_nothing_without_need(text, most_lines):
    font = letters_for("cat", 14)
    for room in (30, 90, 2000):
        lines = wrapped(text, font, room, most_lines)
        assert len(lines) <= most_lines
        assert all(font.getlength(line) <= room for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_shortened_text_shows_as_much_as_fits():
    font = letters_for("cat", 14)
    assert shortened("cat", font, 200) == "cat"
    short = shortened("a very long name", font, 60)
    assert short.endswith("…") and "a very long name".startswith(short[:-1])
    assert font.getlength(short) <= 60
    assert shortened("cat", font, 1) == ""
