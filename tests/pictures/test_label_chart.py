"""Bars of how often classes are shown."""

import io

import numpy as np
from PIL import Image

from input_pipeline.records.label_counts import LabelCounts
from maft_jax.pictures.label_chart import draw_label_counts


def drawn(counts):
    return np.asarray(Image.open(io.BytesIO(draw_label_counts(counts))).convert("RGB"), np.int32)


def red(picture):
    """Pixels of names in red."""
    return int(((picture[..., 0] > 200) & (picture[..., 1:].max(-1) < 60)).sum())


def test_absent_classes_have_red_names_and_no_bar():
    names = ("sky", "$5 bill", "été")
    full = drawn(LabelCounts(names, (3, 1, 9), (500, 20, 90), 7))
    absent = drawn(LabelCounts(names, (3, 0, 0), (500, 0, 0), 7))
    assert full.shape == absent.shape
    assert red(full) == 0 < red(absent)
    blue = [((picture[..., 2] - picture[..., 0]) > 100).sum() for picture in (full, absent)]
    assert blue[0] > 1.5 * blue[1] > 0


def test_pixels_that_were_not_counted_have_no_panel():
    known = drawn(LabelCounts(("sky", "sea"), (3, 1), (500, 20), 7))
    unknown = drawn(LabelCounts(("sky", "sea"), (3, 1), None, None))
    assert unknown.shape[0] == known.shape[0] and unknown.shape[1] < known.shape[1]
