"""The table of papers, and what it refuses to call a gain."""

import dataclasses

import numpy as np
import pytest

from maft_jax.evaluators.results import EvaluationResult
from maft_jax.evaluators.tables import differences, format_table

FROZEN = np.array([[6, 2, 0], [2, 6, 0], [0, 0, 0]])
TUNED = np.array([[7, 1, 0], [1, 7, 0], [0, 0, 0]])


def result(dataset, confusion=FROZEN, class_names=("cat", "dog"), **changes):
    whole = EvaluationResult(
        dataset=dataset,
        split="val",
        class_names=class_names,
        unseen_classes=(),
        num_images=1449,
        confusion=confusion,
        provenance={"checkpoint": str(confusion[0, 0]), "proposals": "superpixels 8f3a"},
        mask_counts=np.array([[3, 3], *[[1, 0]] * (len(class_names) - 1)]),
    )
    return dataclasses.replace(whole, **changes)


def test_order_of_papers_then_own_folders():
    names = ["folder", "zoo", "coco_stuff", "voc2012", "ade20k_full", "pascal_context_59"]
    names += ["ade20k_150", "shapes_world", "pascal_context_459"]
    rows = format_table([result(name) for name in names]).splitlines()[2:]
    assert [row.split("  ")[0].strip() for row in rows] == [
        *("A-847", "PC-459", "A-150", "PC-59", "VOC-20 (PAS-20)", "COCO-171"),
        *("Shapes-42", "folder", "zoo"),
    ]


def test_one_line_per_data_set_aligned_in_percent():
    split = result("voc2012", unseen_classes=(1,))
    assert format_table([split, result("pascal_context_59", num_images=7)]) == (
        "data set         images  mIoU (gt_or_pred)  mIoU (gt_only)   seen  unseen   hIoU  "
        "fwIoU   mACC   pACC  maskACC  mMaskACC\n"
        "---------------  ------  -----------------  --------------  -----  ------  -----  "
        "-----  -----  -----  -------  --------\n"
        "PC-59                 7              60.00           60.00      -       -      -  "
        "60.00  75.00  75.00    75.00     50.00\n"
        "VOC-20 (PAS-20)   1,449              60.00           60.00  60.00   60.00  60.00  "
        "60.00  75.00  75.00    75.00     50.00"
    )


def test_both_conventions_in_a_row_where_they_differ():
    predicted_only = np.array([[6, 0, 0], [2, 0, 0], [0, 0, 0]])
    row = format_table([result("a", predicted_only)]).splitlines()[2]
    assert row.split()[2:4] == ["37.50", "75.00"]


def test_baseline_gives_frozen_tuned_and_gain():
    table = format_table([result("a", TUNED)], [result("a")])
    rows = [line.split() for line in table.splitlines()[2:]]
    undefined, masks = ["-", "-", "-"], ["75.00", "50.00"]
    assert rows == [
        ["a", "frozen", "1,449", "60.00", "60.00", *undefined, "60.00", "75.00", "75.00", *masks],
        ["a", "tuned", "1,449", "77.78", "77.78", *undefined, "77.78", "87.50", "87.50", *masks],
        ["gain", "+17.78", "+17.78", *undefined, "+17.78", "+12.50", "+12.50", "+0.00", "+0.00"],
    ]


def test_loss_is_a_negative_gain():
    assert "-17.78" in format_table([result("a", FROZEN)], [result("a", TUNED)])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"class_names": ("cat", "wolf")}, "class lists"),
        ({"unseen_classes": (0,)}, "unseen classes"),
        ({"num_images": 1448}, "numbers of images (1,449 and 1,448)"),
        ({"confusion": TUNED + np.eye(3, dtype=int)}, "ground-truth pixels per class"),
        ({"provenance": {"proposals": "sam"}}, "proposals (superpixels 8f3a and sam)"),
        ({"provenance": {}}, "proposals (superpixels 8f3a and none given)"),
        (
            {"provenance": {"proposals": "superpixels 8f3a", "protocol": {"size": 640}}},
            "protocol (none given and {'size': 640})",
        ),
    ],
)
def test_no_gain_is_shown_between_results_that_cannot_be_compared(changes, difference):
    tuned, frozen = result("a", **changes), result("a")
    assert differences(tuned, frozen) == [difference]
    table = format_table([tuned], [frozen])
    assert "gain" not in table.split("WARNING")[0]
    assert table.splitlines()[-1] == (
        f"WARNING: a: no gain, frozen and tuned cannot be compared: they differ in {difference}"
    )


def test_difference_inside_a_protocol_is_named():
    was, now = (
        result("a", provenance={"protocol": {"image": {"size": size}, "flip": False}})
        for size in (480, 640)
    )
    assert differences(now, was) == ["protocol.image.size (480 and 640)"]


def test_results_of_other_names_of_the_classes_are_not_compared():
    several, first = (
        result("a", provenance={"classes": {"unseen": []} | synonyms})
        for synonyms in ({"synonyms": {"cat": ["kitty"]}}, {})
    )
    for tuned, frozen in ((several, first), (first, several)):
        assert differences(tuned, frozen) == ["further names of the classes"]
    assert differences(several, several) == differences(first, first) == []


def test_frozen_clip_must_be_the_one_that_was_tuned():
    frozen = result("a", provenance={"weights": {"image_tower": "f00d"}})
    for tuned_from, difference in (
        ("f00d", []),
        (None, []),  # nobody said
        ("cafe", ["untuned image tower (f00d and cafe)"]),
    ):
        weights = {"image_tower": "beef", "tuned_from": tuned_from}
        assert (
            differences(result("a", TUNED, provenance={"weights": weights}), frozen) == difference
        )


def test_weights_alone_may_differ():
    assert differences(result("a", TUNED), result("a")) == []


def test_data_set_without_a_partner_is_shown_and_told():
    table = format_table([result("a", TUNED)], [result("b")])
    assert [line.split()[:2] for line in table.splitlines() if " 1,449 " in line] == [
        ["a", "tuned"],
        ["b", "frozen"],
    ]
    assert "WARNING: a: no gain, there is no frozen result" in table
    assert "WARNING: b: no gain, there is no tuned result" in table


def test_other_splits_are_rows_of_their_own():
    table = format_table([result("voc2012"), result("voc2012", split="train")])
    assert "VOC-20 (PAS-20) train" in table
    with pytest.raises(ValueError, match="one result per data set and split"):
        format_table([result("voc2012"), result("voc2012")])


def test_absent_classes_are_listed_with_the_table():
    names = ("cat", *(f"dog {i}" for i in range(12)), "cow")
    confusion = np.zeros((15, 15), np.int64)
    confusion[0, 0], confusion[13, 0], confusion[0, 5] = 5, 2, 1
    zoo = result("zoo", confusion, class_names=names)
    for table in (format_table([zoo]), format_table([zoo], [zoo])):
        assert table.splitlines()[-1] == (
            "zoo: no labelled pixel shows 12 of 14 classes: 'dog 0', 'dog 1', 'dog 2', 'dog 3', "
            "'dog 5', 'dog 6', 'dog 7', 'dog 8', 'dog 9', 'dog 10' and 2 more"
        )
    assert "no labelled pixel" not in format_table([result("a")])


def test_one_class_is_never_called_100_percent():
    """What black-and-white masks gave whose 255 was ignored: mIoU 100.00, gain +100."""
    of_one = np.array([[8, 0, 0], [0, 0, 0], [0, 0, 0]])
    alone, other = result("skin", of_one), np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]])
    table = format_table([alone], [result("skin", other)])
    lines = table.splitlines()
    assert lines[3].split() == ["skin", "tuned", "1,449", *["-"] * 10]
    assert "100.00" not in table and "+" not in table
    assert "WARNING: skin: the labels show fewer than two classes" in table
    assert alone.scalars() == {}


def test_class_list_of_one_class_is_never_called_100_percent():
    table = format_table([result("a", np.array([[8, 0], [0, 0]]), class_names=("cat",))])
    assert "100.00" not in table and "WARNING: a: the labels show fewer than two" in table
