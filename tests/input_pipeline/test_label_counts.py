"""Counts of records whose shards say nothing of pixels, as earlier versions wrote them."""

import pathlib

from input_pipeline.records.label_counts import count_labels
from input_pipeline.records.record_source import RecordSource

FORMER = pathlib.Path(__file__).with_name("records_version_1")


def test_records_of_version_1_tell_which_classes_are_there():
    counts = RecordSource(FORMER).label_counts
    shown = [(i, images) for i, images in enumerate(counts.images) if images]
    assert shown == [(0, 2), (1, 1), (4, 1), (255, 1), (300, 1)]
    assert len(counts.absent) == 301 - 5
    assert (counts.pixels, counts.ignored_share) == (None, None)


def test_one_shard_without_pixels_leaves_them_unknown():
    counts = count_labels(["sky", "sea"], {0: 3, 1: 0}, [{"class_pixels": {"0": 9, "-1": 1}}, {}])
    assert (counts.images, counts.pixels, counts.ignored_pixels) == ((3, 0), None, None)
    assert counts.table().splitlines()[1].split() == ["sky", "3", "-", "-"]


def test_pixels_of_shards_are_added():
    shards = [{"class_pixels": {"0": 9, "-1": 1}}, {"class_pixels": {"0": 1, "1": 9}}]
    counts = count_labels(["sky", "sea"], {0: 2, 1: 1}, shards)
    assert (counts.pixels, counts.ignored_pixels, counts.ignored_share) == ((10, 9), 1, 0.05)
