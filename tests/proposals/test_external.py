"""Files of one image each, as other tools write them, against literal masks."""

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from skimage.draw import disk

from input_pipeline.examples import IGNORE, Example
from maft_jax.proposals.external import ExternalProposals


def _example(example_id="000000000139", height=40, width=60):
    image = np.zeros((height, width, 3), np.uint8)
    return Example(example_id, image, np.full((height, width), IGNORE, np.int32))


def _masks(height=40, width=60):
    masks = np.zeros((3, height, width), bool)
    masks[0][disk((15, 20), 9)] = True
    masks[1, 20:, 30:] = True
    masks[2, 0, 0] = True
    return masks


def _compressed(mask):
    run_lengths = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": run_lengths["counts"].decode()}


def _annotations():
    return [{"segmentation": _compressed(mask), "predicted_iou": 0.9} for mask in _masks()]


def _write_json(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def _propose(path, example=None, num_proposals=100):
    return ExternalProposals(str(path))(example or _example(), num_proposals)


def test_json_as_sam_writes_it(tmp_path):
    annotations = [
        {"segmentation": _compressed(mask), "predicted_iou": iou, "stability_score": 0.96}
        for mask, iou in zip(_masks(), [0.9, 0.98, 0.95], strict=True)
    ]
    content = {"image": {"height": 40, "width": 60}, "annotations": annotations}
    _write_json(tmp_path / "000000000139.json", content)
    proposals = _propose(tmp_path)
    np.testing.assert_array_equal(proposals.masks, _masks()[[1, 2, 0]])
    np.testing.assert_allclose(proposals.scores, [0.98, 0.95, 0.9])


def test_json_without_annotations_is_an_image_without_proposals(tmp_path):
    _write_json(tmp_path / "000000000139.json", [])
    proposals = _propose(tmp_path)
    assert proposals.masks.shape == (0, 40, 60) and proposals.scores.shape == (0,)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (_masks(), _masks()),
        (_masks().astype(np.uint8), _masks()),
        (_masks().astype(np.uint8) * 200, _masks().astype(np.uint8) * 200),
        (_masks().astype(np.float16) / 2, _masks().astype(np.float32) / 2),
        (_masks().astype(np.float64), _masks().astype(np.float32)),
        (np.zeros((0, 40, 60), np.float32), np.zeros((0, 40, 60), bool)),
        (np.ones((2, 10, 15), bool), np.ones((2, 10, 15), bool)),
        (np.ones((1, 13, 20), bool), np.ones((1, 13, 20), bool)),
    ],
)
def test_npz_masks_of_any_kind_and_resolution(tmp_path, stored, expected):
    np.savez_compressed(tmp_path / "000000000139.npz", masks=stored)
    proposals = _propose(tmp_path)
    assert proposals.masks.dtype == expected.dtype
    np.testing.assert_array_equal(proposals.masks, expected)
    np.testing.assert_allclose(proposals.scores, [1, 1 / 2, 1 / 3][: len(expected)])


def test_npz_scores_and_class_logits(tmp_path):
    (tmp_path / "val").mkdir()
    logits = np.arange(12.0).reshape(3, 4)
    np.savez(tmp_path / "val" / "a.b.npz", masks=_masks(), scores=[3, 1, 2], class_logits=logits)
    proposals = _propose(tmp_path, _example("val/a.b"))
    np.testing.assert_array_equal(proposals.scores, [3, 1, 2])
    np.testing.assert_array_equal(proposals.class_logits, logits)
    assert proposals.class_logits.dtype == proposals.scores.dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mask": _masks()}, r"expected masks and perhaps .*got \['mask'\]"),
        ({"masks": _masks(), "score": np.ones(3)}, r"got \['masks', 'score'\]"),
        ({"masks": _masks()[0]}, r"expected \[n, h, w\], got shape \(40, 60\)"),
        ({"masks": _masks(60, 40)}, r"masks of 60 x 40.* do not cover the image of 40 x 60"),
        ({"masks": np.ones((1, 60, 60), bool)}, "do not cover the image"),
        ({"masks": np.ones((1, 10, 17), bool)}, "crop padding away"),
        ({"masks": np.ones((1, 0, 0), bool)}, "do not cover the image"),
        ({"masks": _masks().astype(np.int64)}, "expected bool, uint8 or float, got int64"),
        ({"masks": _masks() * np.float32(np.nan)}, "masks: expected finite numbers"),
        ({"masks": _masks() * 2.0}, r"probabilities in \[0, 1\], got 0 to 2; logits need a"),
        (
            {"masks": _masks(), "scores": np.ones(2)},
            r"scores: expected \[3\], got shape \(2,\)",
        ),
        ({"masks": _masks(), "scores": [1, np.inf, 0]}, "scores: expected finite numbers"),
        ({"masks": _masks(), "scores": ["a", "b", "c"]}, "scores: expected numbers"),
        ({"masks": _masks(), "class_logits": np.ones(3)}, r"expected \[3, classes\]"),
        ({"masks": np.array([None, {}])}, r"not a readable \.npz file of plain arrays"),
    ],
)
def test_impossible_npz_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "000000000139.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        _propose(tmp_path)
    assert "000000000139.npz" in str(error.value)


def test_png_masks_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "000000000139"
    folder.mkdir()
    masks = np.zeros((12, 40, 60), bool)
    for i, mask in enumerate(masks):
        mask[: 3 * i + 1] = True
        pixels = Image.fromarray(mask) if i % 2 else Image.fromarray(mask.astype(np.uint8) * 255)
        pixels.save(folder / f"{i}.png")
    (folder / "metadata.csv").write_text("id,area\n")
    proposals = _propose(tmp_path, None, 11)
    np.testing.assert_array_equal(proposals.masks, 255 * masks[:11].astype(np.uint8))
    np.testing.assert_allclose(proposals.scores, 1 / np.arange(1, 12))


@pytest.mark.parametrize("scores", [[1, 5, 3], {"0.png": 1, "2.png": 3, "1.png": 5}])
def test_png_masks_with_scores(tmp_path, scores):
    folder = tmp_path / "000000000139"
    folder.mkdir()
    for i, mask in enumerate(_masks()):
        Image.fromarray(mask).save(folder / f"{i}.png")
    _write_json(folder / "scores.json", scores)
    proposals = _propose(tmp_path, None, 2)
    np.testing.assert_array_equal(proposals.masks, 255 * _masks()[[1, 2]].astype(np.uint8))
    np.testing.assert_array_equal(proposals.scores, [5, 3])


def test_folder_without_png_files_is_an_image_without_proposals(tmp_path):
    (tmp_path / "000000000139").mkdir()
    assert _propose(tmp_path).masks.shape == (0, 40, 60)


@pytest.mark.parametrize("scores", [[1, 2], {"0.png": 1}, "high", [1, 2, None]])
def test_scores_that_do_not_fit_the_png_files_are_refused(tmp_path, scores):
    folder = tmp_path / "000000000139"
    folder.mkdir()
    for i, mask in enumerate(_masks()):
        Image.fromarray(mask).save(folder / f"{i}.png")
    _write_json(folder / "scores.json", scores)
    with pytest.raises(ValueError, match=r"scores\.json: expected a list of 3 scores"):
        _propose(tmp_path)


def test_png_masks_of_several_sizes_are_refused(tmp_path):
    folder = tmp_path / "000000000139"
    folder.mkdir()
    Image.fromarray(np.ones((40, 60), bool)).save(folder / "0.png")
    Image.fromarray(np.ones((20, 30), bool)).save(folder / "1.png")
    with pytest.raises(ValueError, match="expected masks of one size"):
        _propose(tmp_path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_index_map_has_a_mask_per_value_largest_first(tmp_path, dtype):
    values = np.zeros((40, 60), dtype)
    values[:, :10] = 255
    values[:5, 10:20] = 7 if dtype == np.uint8 else 40000
    Image.fromarray(values).save(tmp_path / "000000000139.png")
    proposals = _propose(tmp_path)
    pieces = [values == value for value in (0, 255, values.flat[10])]
    np.testing.assert_array_equal(proposals.masks, pieces)
    np.testing.assert_allclose(proposals.scores, np.mean(pieces, axis=(1, 2)))
    assert len(_propose(tmp_path, None, 2).masks) == 2


def test_coloured_png_files_are_refused(tmp_path):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "000000000139.png")
    with pytest.raises(ValueError, match=r"expected an index map of one channel .*got mode RGB"):
        _propose(tmp_path)


@pytest.mark.parametrize("ending", [".npz", ".json", ".png"])
@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, ending, keep):
    path = tmp_path / f"000000000139{ending}"
    noise = np.random.default_rng(0).integers(0, 2, (40, 60)).astype(np.uint8)
    if ending == ".npz":
        np.savez_compressed(path, masks=noise[None])
    elif ending == ".json":
        _write_json(path, {"annotations": _annotations()})
    else:
        Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep in (0, 20) else int(keep * len(data))])
    with pytest.raises(ValueError, match=rf"000000000139{ending}: "):
        _propose(tmp_path)


def test_missing_files_are_named_with_what_was_looked_for(tmp_path):
    (tmp_path / "other.npz").touch()
    with pytest.raises(ValueError, match=r"got 0; looked for .*val/1\.npz, .*/1\.json, .*1$"):
        _propose(tmp_path, _example("val/1"))


def test_several_files_for_an_example_are_refused(tmp_path):
    np.savez(tmp_path / "1.npz", masks=_masks())
    _write_json(tmp_path / "1.json", [])
    with pytest.raises(ValueError, match=r"got 2; found .*1\.npz, .*1\.json"):
        _propose(tmp_path, _example("1"))


def test_fingerprint_follows_names_sizes_and_times(tmp_path):
    np.savez(tmp_path / "1.npz", masks=_masks())
    fingerprints = [ExternalProposals(str(tmp_path)).fingerprint]
    (tmp_path / "log.txt").write_text("not a proposal")
    assert ExternalProposals(str(tmp_path)).fingerprint == fingerprints[0]
    np.savez(tmp_path / "2.npz", masks=_masks())
    fingerprints.append(ExternalProposals(str(tmp_path)).fingerprint)
    (tmp_path / "2.npz").rename(tmp_path / "3.npz")
    fingerprints.append(ExternalProposals(str(tmp_path)).fingerprint)

    os.utime(tmp_path / "3.npz", (0, 0))
    fingerprints.append(ExternalProposals(str(tmp_path)).fingerprint)
    assert len(set(fingerprints)) == 4


@pytest.mark.parametrize("name", ["nothing.json", "masks.zip"])
def test_paths_of_other_kinds_are_refused(tmp_path, name):
    (tmp_path / "masks.zip").touch()
    with pytest.raises(ValueError, match=rf"path=.*{name}: expected a \.json file or a folder"):
        ExternalProposals(str(tmp_path / name))


def test_scores_of_sams_table_beside_its_masks(tmp_path):
    folder = tmp_path / "000000000139"
    folder.mkdir()
    for i, mask in enumerate(_masks()):
        Image.fromarray(mask).save(folder / f"{i}.png")
    before = ExternalProposals(str(tmp_path)).fingerprint
    table = (
        "id,area,bbox_x0,predicted_iou,stability_score\n2,1,0,0.75,1\n0,9,0,0.5,1\n1,9,0,0.9,1\n"
    )
    (folder / "metadata.csv").write_text(table)
    assert ExternalProposals(str(tmp_path)).fingerprint != before
    proposals = _propose(tmp_path, None, 2)
    np.testing.assert_array_equal(proposals.masks == 255, _masks()[[1, 2]])
    np.testing.assert_allclose(proposals.scores, [0.9, 0.75])
    (folder / "metadata.csv").write_text("id,predicted_iou\n0,0.5\n1,high\n")
    with pytest.raises(ValueError, match=r"metadata\.csv: expected id and a number predicted_iou"):
        _propose(tmp_path)
    (folder / "scores.json").write_text("[3, 2, 1]")
    np.testing.assert_array_equal(_propose(tmp_path).scores, [3, 2, 1])


def test_annotations_with_an_empty_segmentation_are_no_proposals(tmp_path):
    square = [[5, 5, 30, 5, 30, 20, 5, 20], []]
    annotations = [
        {"segmentation": [], "score": 0.9},
        {"segmentation": square, "score": 0.5},
        {"segmentation": [[]]},
    ]
    path = tmp_path / "000000000139.json"
    _write_json(path, annotations)
    proposals = _propose(tmp_path)
    assert proposals.masks.shape == (1, 40, 60) and proposals.masks[0, 10, 10]
    np.testing.assert_array_equal(proposals.scores, [0.5])


@pytest.mark.parametrize(("on_disk", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_are_the_same_however_they_are_written(tmp_path, on_disk, asked):
    name = "caf\u00e9"
    _write_json(tmp_path / f"{unicodedata.normalize(on_disk, name)}.json", _annotations())
    example = _example(unicodedata.normalize(asked, name))
    assert len(_propose(tmp_path, example).masks) == 3
