"""Files of an evaluation say everything, survive a round trip, and refuse to be mixed up."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from etils import epath

from maft_jax.evaluators.results import (
    DEFINITIONS,
    SCALARS,
    SUMMARY_FILE,
    EvaluationResult,
    read_result,
    write_results,
)
from tests.evaluators.label_maps import golden_maps
from tests.golden_files import golden

NAMES = ("cat, or kitten", 'the "dog"', "小猫", "d", "e", "f", "building-other | x", "h")
MASK_COUNTS = np.array([[4, 1], [2, 2], [3, 0], [0, 0], [5, 4], [1, 1], [2, 1], [3, 3]])
PROVENANCE = {"checkpoint": "runs/a", "proposals": {"generator": "superpixels", "number": 100}}


def golden_result(**changes):
    result = EvaluationResult(
        dataset="voc2012",
        split="val",
        class_names=NAMES,
        unseen_classes=(2, 5),
        num_images=3,
        confusion=golden_maps()[2],
        provenance=PROVENANCE,
        mask_counts=MASK_COUNTS,
    )
    return dataclasses.replace(result, **changes)


NOTHING = golden_result(confusion=np.zeros((9, 9), np.int64), mask_counts=0 * MASK_COUNTS)


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_scalars_are_the_golden_fractions():
    arrays = golden("pipeline_ops")
    expected = {
        "miou_gt_or_pred": arrays["eval_mIoU_gt_or_pred"],
        "miou_gt_only": arrays["eval_mIoU_gt_only"],
        "seen_miou": arrays["eval_seen_mIoU"],
        "unseen_miou": arrays["eval_unseen_mIoU"],
        "hiou": arrays["eval_hIoU"],
        "fwiou": arrays["eval_fwIoU"],
        "macc": arrays["eval_mACC"],
        "pacc": arrays["eval_pACC"],
        "mask_accuracy": 60.0,  # 12 of 20
        "mean_mask_accuracy": 100 * (1 / 4 + 1 + 0 + 4 / 5 + 1 + 1 / 2 + 1) / 7,
        "seen_mask_accuracy": 100 * (1 / 4 + 1 + 4 / 5 + 1 / 2 + 1) / 5,
        "unseen_mask_accuracy": 50.0,  # of classes 2 and 5: none of 3, 1 of 1
    }
    scalars = golden_result().scalars()
    assert tuple(scalars) == SCALARS == tuple(expected)
    for name, value in scalars.items():
        np.testing.assert_allclose(100 * value, expected[name], rtol=1e-12, err_msg=name)


def test_undefined_scalars_are_left_out():
    without_split = golden_result(unseen_classes=())
    of_groups = {"seen_miou", "unseen_miou", "hiou", "seen_mask_accuracy", "unseen_mask_accuracy"}
    assert {*SCALARS} - {*without_split.scalars()} == of_groups
    before = {name for name in golden_result(mask_counts=None).scalars()}
    assert {*SCALARS} - before == {name for name in SCALARS if "mask" in name}
    assert NOTHING.scalars() == {}


def test_what_is_written_is_read(tmp_path):
    result = golden_result()
    write_results([result], tmp_path)
    back = read_result(tmp_path / "voc2012.json")
    np.testing.assert_array_equal(back.confusion, result.confusion)
    np.testing.assert_array_equal(back.mask_counts, MASK_COUNTS)
    for name in ("dataset", "split", "class_names", "unseen_classes", "num_images", "provenance"):
        assert getattr(back, name) == getattr(result, name)
    assert back.numbers() == result.numbers()


def test_result_from_before_masks_were_counted_is_read_and_says_nothing_of_them(tmp_path):
    write_results([golden_result(mask_counts=None)], tmp_path)
    assert "ground_truth_masks" not in (tmp_path / "voc2012_classes.csv").read_text()
    assert read_result(tmp_path / "voc2012.json").mask_counts is None


@pytest.mark.parametrize("counts", [MASK_COUNTS[:7], MASK_COUNTS[:, ::-1]])
def test_impossible_counts_of_masks_are_refused(counts):
    with pytest.raises(ValueError, match=r"voc2012: expected .*masks"):
        golden_result(mask_counts=counts)


def test_result_without_its_seal_passes_as_one_of_version_0_1_alone(tmp_path):
    write_results([golden_result()], tmp_path)
    path = tmp_path / "voc2012.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content | {"num_images": 7}))
    with pytest.raises(ValueError, match=r"voc2012\.json: is corrupt, or was edited: sha256"):
        read_result(path)
    path.write_text(json.dumps(content | {"format": "maft_jax evaluation 1"}))
    assert read_result(path).num_images == 3


def test_json_is_self_contained_and_strict(tmp_path):
    provenance = {"loss": float("nan"), "seed": np.int64(3), "path": pathlib.Path("a"), "s": (1.0,)}
    write_results([golden_result(provenance=provenance)], tmp_path)
    stored = strict_json(tmp_path / "voc2012.json")
    assert stored["provenance"] == {"loss": None, "seed": 3, "path": "a", "s": [1.0]}
    assert stored["metrics"] == golden_result().numbers()
    assert list(stored["definitions"]) == list(stored["metrics"]) == list(DEFINITIONS)
    counts = golden_maps()[2]
    assert stored["pixels"] == {
        "labelled": counts[:, :-1].sum(),
        "labelled_without_prediction": 0,
        "unlabelled_with_prediction": counts[:, -1].sum(),
    }
    rows = stored["classes"]
    assert tuple(row["name"] for row in rows) == NAMES
    assert [row["id"] for row in rows if row["group"] == "unseen"] == [2, 5]
    assert rows[3]["iou"] is None and rows[3]["accuracy"] is None
    ious = [row["iou"] for row in rows if row["iou"] is not None]
    expected = golden("pipeline_ops")["eval_iou"]
    np.testing.assert_allclose(ious, expected[~np.isnan(expected)], rtol=1e-12)
    assert [row["predicted_pixels"] for row in rows] == counts[:-1, :-1].sum(axis=1).tolist()
    of_masks = [(row["ground_truth_masks"], row["correct_masks"]) for row in rows]
    np.testing.assert_array_equal(of_masks, MASK_COUNTS)
    assert rows[3]["mask_accuracy"] is None and rows[4]["mask_accuracy"] == 4 / 5


def test_data_set_without_a_label_gives_null(tmp_path):
    write_results([NOTHING], tmp_path)
    assert set(strict_json(tmp_path / "voc2012.json")["metrics"].values()) == {None}
    assert read_result(tmp_path / "voc2012.json").scalars() == {}


def test_class_list_hash_is_that_of_a_file_of_names():
    # printf 'aeroplane\nsky\n' | sha256sum
    expected = "be8f00d3155c2a4113e2d337dc1bacb7e819ecc34d80ef68ab16df570271e08f"
    result = EvaluationResult("a", "val", ("aeroplane", "sky"), (), 1, np.eye(3, dtype=np.int64))
    assert result.class_list_sha256 == expected


def test_csv_of_classes_and_summary(tmp_path):
    write_results([golden_result(), golden_result(dataset="folder", unseen_classes=())], tmp_path)
    with (tmp_path / "voc2012_classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(row["name"] for row in rows) == NAMES
    assert [row["group"] for row in rows[:3]] == ["seen", "seen", "unseen"]
    assert rows[3]["iou"] == "" and float(rows[0]["iou"]) == golden_result().metrics.iou[0]
    with (tmp_path / SUMMARY_FILE).open(newline="") as file:
        voc, own = csv.DictReader(file)
    assert (voc["dataset"], own["dataset"]) == ("voc2012", "folder")
    assert float(voc["hiou"]) == golden_result().numbers()["hiou"]
    assert own["hiou"] == "" and own["miou_gt_or_pred"] == voc["miou_gt_or_pred"]


def test_writing_again_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    write_results([golden_result()], epath.Path(tmp_path) / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_results([golden_result()], folder)
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}
    stems = {"voc2012.json", "voc2012_classes.csv", "voc2012_confusion.npz", "summary.csv"}
    assert set(first) == stems


def test_counts_of_another_evaluation_are_noticed(tmp_path):
    write_results([golden_result()], tmp_path / "a")
    write_results([golden_result(confusion=golden_maps()[2] + 1)], tmp_path / "b")
    (tmp_path / "b" / "voc2012_confusion.npz").rename(tmp_path / "a" / "voc2012_confusion.npz")
    with pytest.raises(ValueError, match=r"voc2012_confusion\.npz: its counts are not those"):
        read_result(tmp_path / "a" / "voc2012.json")
    (tmp_path / "a" / "voc2012_confusion.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"voc2012_confusion\.npz: expected the counts"):
        read_result(tmp_path / "a" / "voc2012.json")
    (tmp_path / "a" / "voc2012_confusion.npz").unlink()
    with pytest.raises(ValueError, match=r"voc2012_confusion\.npz: expected the counts"):
        read_result(tmp_path / "a" / "voc2012.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "another"}'])
def test_file_that_is_no_evaluation_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"x\.json: expected the JSON of an evaluation"):
        read_result(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": NAMES[:-1]}, r"voc2012: expected counts of 7 classes.*got \(9, 9\)"),
        ({"unseen_classes": (8,)}, r"different class ids of 0 \.\. 7, got 8"),
        ({"dataset": "../voc"}, "can name a file"),
        ({"dataset": ""}, "can name a file"),
        ({"provenance": {"a": {"b": object()}}}, r"voc2012: provenance\.a\.b: expected what JSON"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        golden_result(**changes)


def test_two_results_of_one_data_set_are_not_written_over_each_other(tmp_path):
    with pytest.raises(ValueError, match="one result per data set"):
        write_results([golden_result(), golden_result(split="train")], tmp_path)
    assert not list(tmp_path.iterdir())
