"""PQ and AP of written results, by files alone and by code that shares nothing with ours."""

import contextlib
import io
import itertools
import json
import pathlib

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maft_jax.evaluators.panoptic_quality import LabelledSegments

APS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100")
APS = (*APS, "ar_small", "ar_medium", "ar_large")
"""In the order of COCOeval.stats."""


def ap_of_files(results: pathlib.Path, truth: pathlib.Path) -> dict[str, float]:
    """What pycocotools makes of a list of results."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        judged = COCOeval(coco, coco.loadRes(str(results)), "segm")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    stats = np.where(judged.stats < 0, np.nan, judged.stats)
    return dict(zip(APS, stats.tolist(), strict=True))


def pq_of_files(results: pathlib.Path, truth: pathlib.Path) -> dict[str, float]:
    """PQ, SQ and RQ of two JSONs with PNGs in folders of their names, pixel by pixel."""
    sides = [json.loads(path.read_text()) for path in (results, truth)]
    of_class = {row["id"]: i for i, row in enumerate(sides[1]["categories"])}
    by_image = {row["image_id"]: row for row in sides[0]["annotations"]}
    counts = 0
    for row in sides[1]["annotations"]:
        found, there = (
            _segments(path.with_suffix("") / one["file_name"], one["segments_info"], of_class)
            for path, one in ((results, by_image.pop(row["image_id"])), (truth, row))
        )
        counts = counts + np.array(slow_counts(found, there, len(of_class)))
    assert not by_image
    tp, fp, fn, iou_sum = counts
    there = tp + fp + fn > 0
    tp, fp, fn, iou_sum = (of[there] for of in (tp, fp, fn, iou_sum))
    whole = tp + fp / 2 + fn / 2
    sq = np.divide(iou_sum, tp, out=np.zeros(len(tp)), where=tp > 0)
    return {"pq": (iou_sum / whole).mean(), "sq": sq.mean(), "rq": (tp / whole).mean()}


def _segments(png: pathlib.Path, rows: list[dict], of_class: dict[int, int]) -> LabelledSegments:
    with Image.open(png) as image:
        ids = np.asarray(image).astype(np.int64) @ [1, 256, 256**2]
    classes = [of_class[row["category_id"]] for row in rows]
    crowds = [bool(row["iscrowd"]) for row in rows]
    return LabelledSegments(ids, [row["id"] for row in rows], classes, crowds)


def slow_counts(predicted, truth, num_classes):
    """The rules one after the other, with whole masks."""
    tp, fp, fn, iou_sum = np.zeros((4, num_classes))
    void = truth.id_map == 0
    hit = set()
    for (number, index), (true_number, true_index, crowd) in itertools.product(
        zip(predicted.ids, predicted.classes, strict=True),
        zip(truth.ids, truth.classes, truth.crowds, strict=True),
    ):
        mask, true_mask = predicted.id_map == number, truth.id_map == true_number
        union = (mask & ~void) | true_mask
        iou = (mask & true_mask).sum() / union.sum()
        if iou > 0.5 and not crowd and index == true_index:
            tp[index] += 1
            iou_sum[index] += iou
            hit |= {("true", true_number), ("predicted", number)}
    for number, index, crowd in zip(truth.ids, truth.classes, truth.crowds, strict=True):
        if ("true", number) not in hit and not crowd:
            fn[index] += 1
    for number, index in zip(predicted.ids, predicted.classes, strict=True):
        if ("predicted", number) in hit:
            continue
        unjudged = void.copy()
        crowds = [
            i
            for i, c, crowd in zip(truth.ids, truth.classes, truth.crowds, strict=True)
            if crowd and c == index
        ]
        for last in crowds[-1:]:
            unjudged |= truth.id_map == last
        mask = predicted.id_map == number
        fp[index] += (mask & unjudged).sum() <= mask.sum() / 2
    return tp, fp, fn, iou_sum
