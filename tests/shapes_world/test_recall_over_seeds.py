"""Recall over seeds: what is measured of records, and what the page says is above what."""

import pytest

from input_pipeline.layouts import open_dataset
from input_pipeline.shapes_world.folder import write_shapes_world
from input_pipeline.shapes_world.vocabulary import unseen_classes
from maft_jax.config.sections import ProposalsConfig
from maft_jax.convert.generators import BUILT_IN
from maft_jax.proposals.generators import make_generator
from maft_jax.proposals.precompute_summary import best_ious
from maft_jax.shapes_world import proposal_recall
from maft_jax.shapes_world.proposal_recall import measure_recall, render_recall

METRICS = ("best_iou_seen", "best_iou_unseen", "recall_at_half_seen", "recall_at_half_unseen")


def by_hand(world, generator, number):
    """Mean IoU and share of at least a half over regions of unseen classes, of masks as made."""
    source = open_dataset("shapes_world", str(world), "val")
    unseen = [source.class_names.index(name) for name in unseen_classes(0)]
    found = [
        millionths / 1e6
        for example in (source[index] for index in range(len(source)))
        for made in [generator(example, number)]
        for label, millionths in best_ious(made.masks, example.label_map, (128, 128)).items()
        if label in unseen
    ]
    return sum(found) / len(found), sum(iou >= 0.5 for iou in found) / len(found)


@pytest.mark.slow
def test_a_seed_has_its_own_pictures_and_its_own_generator(tmp_path, monkeypatch):
    world = tmp_path / "worlds/seed_2"
    write_shapes_world(world, 2, num_train=1, num_val=10)
    path, asked = BUILT_IN["built-in:shapes_world"], []
    monkeypatch.setattr(
        proposal_recall, "train_generator", lambda _, *which: asked.append(which) or path
    )
    records = measure_recall(tmp_path, (2,))
    assert asked == [(0, 2)]
    rows = [("trained", 32), ("superpixels", 32), ("superpixels", 64), ("superpixels", 100)]
    assert [(one["seed"], one["row"], one["proposals"]) for one in records] == [
        (2, *row) for row in rows
    ]
    trained = make_generator(ProposalsConfig(generator="mask2former", path=str(path)), [])
    measured = [records[0][f"{metric}_unseen"] for metric in ("best_iou", "recall_at_half")]
    assert measured == pytest.approx(by_hand(world, trained, 32), abs=1e-6)
    ious = [one["best_iou_unseen"] for one in records[1:]]
    assert 0.3 < ious[0] <= ious[1] <= ious[2]


def record(row, number, seed, *values):
    measured = dict(zip(METRICS, values, strict=True))
    return {"row": row, "proposals": number, "seed": seed, **measured}


def test_page_says_in_how_many_seeds_what_is_above_what():
    records = [
        record("trained", 16, 0, 0.9, 0.8, 0.9, 0.9),
        record("trained", 16, 1, 0.8, 0.7, 0.9, 0.88),
        record("superpixels", 16, 0, 0.7, 0.6, 0.9, 0.9),
        record("superpixels", 16, 1, 0.7, 0.71, 0.9, 0.8),
        record("superpixels", 100, 0, 0.75, 0.65, 0.95, 0.91),
        record("superpixels", 100, 1, 0.75, 0.65, 0.95, 0.92),
    ]
    _, table, sentence = render_recall(records)
    lines = table.splitlines()
    assert lines[2].startswith("| trained, 16 queries | 2 | 85.0 ± 7.1 | 75.0 ± 7.1 | 90.0 ± 0.0 |")
    assert lines[3].startswith("| superpixels, the coarsest 16 | 2 |")
    assert lines[4].startswith("| superpixels, the coarsest 100 | 2 |")
    sentence = " ".join(sentence.split())
    assert (
        "best_iou of the trained generator is above that of superpixels, the coarsest 16 in 1 of 2 "
        "(80.0 and 60.0, 70.0 and 71.0), of superpixels, the coarsest 100 in 2 of 2"
    ) in sentence
    assert (
        "recall_at_half of the trained generator is above that of superpixels, the coarsest 16 in "
        "1 of 2 (90.0 and 90.0, 88.0 and 80.0), of superpixels, the coarsest 100 in 0 of 2"
    ) in sentence
