"""Mask recall against hand-counted overlaps, and summaries that do not depend on the order."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline.examples import IGNORE
from maft_jax.proposals.precompute_summary import (
    Statistics,
    Summary,
    best_ious,
    draw_summary,
    write_summary,
)
from maft_jax.proposals.soft_masks import soften_masks

SIZE = (40, 80)
"""Its grid has 10 rows and 20 columns."""


def columns(start, stop):
    """A soft mask of whole columns of the grid."""
    mask = np.zeros((10, 20), np.uint8)
    mask[:, start:stop] = 255
    return mask


def label_columns(*starts):
    """Class i from pixel column starts[i] to the next start; ends in column 80."""
    label_map = np.full(SIZE, IGNORE, np.int32)
    for i, start in enumerate(starts):
        label_map[:, start:] = i
    return label_map


def test_best_iou_is_that_of_hand_counted_columns():
    # The classes cover the columns 0-9 and 10-19 of the grid.
    label_map = label_columns(0, 40)
    proposals = np.stack([columns(0, 8), columns(0, 16), columns(9, 20)])
    assert best_ious(proposals, label_map, SIZE) == {0: 800_000, 1: 909_091}


def test_unlabelled_points_count_nowhere():
    # Columns 0-4 are unlabelled, 5-9 are class 0, 10-19 class 1.
    label_map = label_columns(20, 40)
    proposals = np.stack([columns(0, 10), columns(3, 15)])
    assert best_ious(proposals, label_map, SIZE) == {0: 1_000_000, 1: 333_333}


@pytest.mark.parametrize(("threshold", "expected"), [(127, 0), (128, 1_000_000)])
def test_masks_are_cut_at_128(threshold, expected):
    proposals = columns(0, 20)[None] // 255 * np.uint8(threshold)
    assert best_ious(proposals, label_columns(0), SIZE) == {0: expected}


def test_image_without_proposals_or_labels():
    none = np.zeros((0, 10, 20), np.uint8)
    assert best_ious(none, label_columns(0, 40), SIZE) == {0: 0, 1: 0}
    assert best_ious(columns(0, 3)[None], np.full(SIZE, IGNORE, np.int32), SIZE) == {}


def test_regions_thinner_than_the_grid_cannot_be_recalled():
    label_map = label_columns(0)
    label_map[:, 41] = 1
    regions = soften_masks(np.stack([label_map == 0, label_map == 1]), SIZE)
    assert best_ious(regions, label_map, SIZE) == {0: 1_000_000, 1: 0}


@pytest.mark.parametrize("input_size", [SIZE, (63, 127), (20, 41)])
def test_regions_themselves_are_recalled_completely_at_any_resolution(input_size):
    rng = np.random.default_rng(0)
    label_map = rng.integers(-1, 4, (4, 8)).repeat(10, 0).repeat(10, 1).astype(np.int32)
    classes = np.unique(label_map[label_map != IGNORE])
    regions = soften_masks(np.stack([label_map == i for i in classes]), input_size)
    assert best_ious(regions, label_map, input_size) == dict.fromkeys(classes.tolist(), 1_000_000)


def some_statistics(seed, num_images=5):
    rng = np.random.default_rng(seed)
    statistics = Statistics()
    for _ in range(num_images):
        proposals = rng.integers(0, 256, (rng.integers(0, 5), 10, 20), np.uint8)
        statistics.add(proposals, label_columns(0, int(rng.integers(20, 70))), SIZE)
    return statistics


def merged(parts):
    total = Statistics()
    for part in parts:
        total.merge(part)
    return total


def test_statistics_merge_in_any_order_and_survive_json():
    parts = [some_statistics(seed) for seed in range(6)]
    stored = [json.loads(json.dumps(part.to_json())) for part in parts]
    assert [Statistics.from_json(part) for part in stored] == parts
    assert merged(parts) == merged(parts[::-1])
    assert merged(parts).proposal_counts.total() == 30


def summary_of(statistics, **changes):
    fields = {
        "class_names": ("sky", "été", "sea"),
        "num_shards": 2,
        "total_shards": 2,
        "num_bytes": 3000,
        "statistics": statistics,
    }
    return Summary(**(fields | changes))


def test_figures_of_a_summary_are_those_of_two_images():
    statistics = Statistics()
    label_map = label_columns(0, 40)
    statistics.add(np.stack([columns(0, 8), columns(0, 16), columns(9, 20)]), label_map, SIZE)
    statistics.add(columns(10, 15)[None], np.where(label_map == 0, 2, 1).astype(np.int32), SIZE)
    summary = summary_of(statistics)
    assert summary.num_images == 2
    assert summary.proposals_per_image == (2.0, 1, 3)
    # IoUs: class 0 0.8; class 1 10 / 11 and 0.5; class 2 0.
    assert summary.mask_recall == pytest.approx((0.8 + 10 / 11 + 0.5 + 0) / 4, abs=1e-6)
    expected = {"sky": 0.8, "été": (10 / 11 + 0.5) / 2, "sea": 0.0}
    assert summary.class_recalls == pytest.approx(expected, abs=1e-6)
    assert statistics.iou_histogram == {16: 1, 18: 1, 10: 1, 0: 1}
    text = summary.describe()
    for part in ("2 in 2 shards", "2.0 (1 to 3)", "3,000, 1,500 per image", "0.552", "3 classes"):
        assert part in text
    assert "not finished" not in text
    assert "3 of 5 shards" in summary_of(statistics, total_shards=5).describe()


def test_equal_summaries_are_written_as_equal_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_summary(tmp_path / name, summary_of(some_statistics(0)))
    for name in ("summary.json", "summary.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    stored = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert stored["num_images"] == 5 and list(stored["class_recalls"]) == ["sky", "été"]


def test_changed_summary_is_drawn_again(tmp_path):
    write_summary(tmp_path, summary_of(some_statistics(0)))
    before = (tmp_path / "summary.png").read_bytes()
    write_summary(tmp_path, summary_of(some_statistics(1)))
    assert (tmp_path / "summary.png").read_bytes() != before


def ink(picture):
    return (np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) != 255).any(-1).mean()


def test_picture_shows_bars_and_can_be_drawn_of_nothing():
    full, empty = (
        draw_summary(summary_of(some_statistics(0))),
        draw_summary(summary_of(Statistics())),
    )
    assert ink(full) > 2 * ink(empty) > 0


def test_many_classes_are_cut_to_the_lowest():
    statistics = Statistics()
    label_map = np.arange(64, dtype=np.int32).reshape(8, 8).repeat(8, 0).repeat(16, 1)
    statistics.add(np.zeros((1, 16, 32), np.uint8), label_map, (64, 128))
    picture = draw_summary(summary_of(statistics, class_names=tuple(map(str, range(64)))))
    assert Image.open(io.BytesIO(picture)).size == (1080, 720)
