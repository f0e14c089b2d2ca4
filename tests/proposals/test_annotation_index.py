"""One JSON file for all images, encoded by pycocotools."""

import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco
from skimage.draw import disk

from input_pipeline.examples import IGNORE, Example
from maft_jax.proposals import annotation_index
from maft_jax.proposals.external import ExternalProposals
from maft_jax.proposals.generator import ProposalGenerator


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


def _uncompressed(mask):
    """Alternating lengths down the columns, the first of what is outside."""
    pixels = mask.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *changes, len(pixels)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def _results(image_id=139, encode=_compressed):
    scores = [0.5, 0.9, 0.25]
    return [
        {"image_id": image_id, "category_id": 1, "segmentation": encode(mask), "score": score}
        for mask, score in zip(_masks(), scores, strict=True)
    ]


def _write_json(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def _propose(path, example=None, num_proposals=100):
    return ExternalProposals(str(path))(example or _example(), num_proposals)


@pytest.mark.parametrize("encode", [_compressed, _uncompressed])
@pytest.mark.parametrize("image_id", [139, "139", "000000000139", "val/000000000139"])
def test_results_come_best_first(tmp_path, encode, image_id):
    path = _write_json(tmp_path / "results.json", _results(image_id, encode))
    proposals = _propose(path, _example("val/000000000139"))
    np.testing.assert_array_equal(proposals.masks, _masks()[[1, 0, 2]])
    np.testing.assert_allclose(proposals.scores, [0.9, 0.5, 0.25])
    assert proposals.class_logits is None and proposals.input_size is None


def test_only_the_best_are_decoded(tmp_path):
    results = _results()
    results[2]["segmentation"]["counts"] = "corrupt"
    path = _write_json(tmp_path / "results.json", results)
    np.testing.assert_array_equal(_propose(path, None, 2).masks, _masks()[[1, 0]])
    with pytest.raises(ValueError, match=r"results\.json.*139.*annotation 2: counts: "):
        _propose(path)


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_images_with_a_table_whatever_the_layout_of_the_file(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(annotation_index, "_CHUNK_BYTES", chunk)
    content = {
        "info": {"note": 'brackets ] } and "quotes" and Übung', "year": 2017},
        "annotations": _results(8) + _results("é"),
        "images": [
            {"id": 7, "file_name": "train/empty.jpg", "height": 40, "width": 60},
            {"id": 8, "file_name": "train/büro.01.jpg"},
            {"id": "é", "file_name": "val/büro.01.jpg"},
        ],
        "version": 12345,
    }
    path = tmp_path / "instances.json"
    text = json.dumps(content, indent=indent, ensure_ascii=chunk == 7)
    path.write_text(text, encoding="utf-8")
    for name in ("train/büro.01", "val/büro.01"):
        np.testing.assert_array_equal(_propose(path, _example(name)).masks, _masks()[[1, 0, 2]])
    assert _propose(path, _example("train/empty")).masks.shape == (0, 40, 60)
    with pytest.raises(ValueError, match=r'expected one entry of "images".*büro.*büro'):
        _propose(path, _example("test/büro.01"))
    with pytest.raises(ValueError, match=r"'test/other', got none"):
        _propose(path, _example("test/other"))


def test_images_of_one_file_keep_their_own_annotations(tmp_path):
    results = [
        {"image_id": i % 7, "segmentation": _compressed(_masks()[i % 3]), "score": i}
        for i in range(50)
    ]
    path = _write_json(tmp_path / "results.json", results)
    for image_id in range(7):
        proposals = _propose(path, _example(str(image_id)))
        own = [i for i in reversed(range(50)) if i % 7 == image_id]
        np.testing.assert_array_equal(proposals.scores, own)
        np.testing.assert_array_equal(proposals.masks, _masks()[[i % 3 for i in own]])


def test_polygons_without_scores_count_by_their_order(tmp_path):
    polygons = [[[0, 0, 30, 0, 30, 20]], [[0, 0, 60, 0, 60, 40]]]
    annotations = [{"image_id": 139, "segmentation": polygon} for polygon in polygons]
    # Drawn at the size of the table, which may be that of a larger original.
    images = [{"id": 139, "file_name": "000000000139.jpg", "height": 80, "width": 120}]
    path = _write_json(tmp_path / "a.json", {"images": images, "annotations": annotations})
    proposals = _propose(path)
    assert proposals.masks.shape == (2, 80, 120)
    np.testing.assert_allclose(proposals.masks.sum(axis=(1, 2)), [300, 1200], rtol=0.05)
    np.testing.assert_allclose(proposals.scores, [1, 1 / 2])


def test_missing_image_is_named_with_what_was_looked_for(tmp_path):
    path = _write_json(tmp_path / "results.json", _results(140))
    with pytest.raises(ValueError, match=r"'val/000000000139'.*val/0+139 or 0+139 or 139"):
        _propose(path, _example("val/000000000139"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"byte 0: expected \{"),
        ("7", r"byte 0: expected \{"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "expected a list or an object"),
        ('{"images": []}', 'with "annotations"'),
        ("[{}]", "expected an annotation with image_id"),
        ('[{"image_id": 139, "segmentation"', "corrupt or incomplete"),
        ('[{"image_id": 139}, ', "corrupt or incomplete"),
        ('[{"image_id": 139} {"image_id": 139}]', "expected , or ]"),
        ('[{"image_id": 139}] x', "expected the end of the file, got x"),
        ('{"images": [{"id": 1}], "annotations": []}', "an image with id and file_name"),
        ('[{"image_id": 139}]', "annotation 0: expected run lengths or polygons, got None"),
        ('[{"image_id": 139, "score": NaN}]', "scores: expected finite numbers"),
        ('[{"image_id": 139, "score": "high"}]', "score: expected a number, .* got 'high'"),
        ('[{"image_id": 139, "score": 1}, {"image_id": 139}]', "a score in all annotations"),
    ],
)
def test_corrupt_files_are_refused_with_the_place(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        _propose(path)
    assert str(path) in str(error.value)


def test_file_is_indexed_once_per_process(tmp_path, monkeypatch):
    path = _write_json(tmp_path / "results.json", _results())
    generator = pickle.loads(pickle.dumps(ExternalProposals(path)))
    generator(_example(), 5)
    monkeypatch.setattr(annotation_index, "_read_sections", None)
    assert len(generator(_example(), 5).masks) == 3


def test_text_that_is_not_utf8_is_refused_with_the_place(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b'[{"image_id": "b\xfcro", "segmentation": []}]')
    with pytest.raises(ValueError, match=r"results\.json, byte 1: .*utf-8.*corrupt"):
        _propose(path)


def test_file_that_changed_since_it_was_indexed_is_refused(tmp_path):
    path = tmp_path / "results.json"
    generator = ExternalProposals(_write_json(path, _results()))
    generator(_example(), 5)
    path.write_text("[" * 5000)
    with pytest.raises(ValueError, match=r"results\.json: changed since it was first read"):
        generator(_example(), 5)


def test_fingerprint_follows_the_content(tmp_path):
    path = _write_json(tmp_path / "results.json", _results())
    first = ExternalProposals(path)
    assert isinstance(first, ProposalGenerator)
    _write_json(tmp_path / "results.json", _results()[:2])
    second = ExternalProposals(path)
    assert first.fingerprint != second.fingerprint
    assert len(second(_example(), 5).masks) == 2
    _write_json(tmp_path / "results.json", _results())
    assert ExternalProposals(path).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "file_name",
    [
        "images\\img\u00e9.jpg",
        "..\\..\\media\\4\\img\u00e9.jpg",
        "C:\\images/img\u00e9.jpg",
        "imge\u0301.jpg",
    ],
)
def test_file_names_of_other_systems_are_understood(tmp_path, file_name):
    images = [{"id": 7, "file_name": file_name}, {"id": 8, "file_name": "x\\other.jpg"}]
    content = {"images": images, "annotations": _results(image_id=7)}
    path = _write_json(tmp_path / "result.json", content)
    assert len(_propose(path, _example("img\u00e9")).masks) == 3
    with pytest.raises(ValueError, match=r"got none; the 2 names there are such as .*other\.jpg"):
        _propose(path, _example("absent"))


def test_backslashes_tell_images_of_one_name_apart(tmp_path):
    images = [{"id": 7, "file_name": "a\\1.jpg"}, {"id": 8, "file_name": "b\\1.jpg"}]
    content = {"images": images, "annotations": _results(image_id=8)}
    path = _write_json(tmp_path / "result.json", content)
    assert len(_propose(path, _example("b/1")).masks) == 3
    assert len(_propose(path, _example("a/1")).masks) == 0
