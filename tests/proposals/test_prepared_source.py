import os

import numpy as np
import pytest

from input_pipeline.examples import PreparedSource
from input_pipeline.folder_source import FolderSource
from input_pipeline.sample_folder import write_sample_folder
from maft_jax.proposals import prepared_source
from maft_jax.proposals.prepared_source import prepare


@pytest.fixture
def folder(tmp_path):
    write_sample_folder(tmp_path / "data", num_images=4, size=(48, 32))
    return tmp_path / "data"


@pytest.fixture
def computed(monkeypatch):
    """Example ids in the order in which the generator saw them."""
    seen = []
    generate = prepared_source.GENERATORS["superpixels"]

    def watched(example, num_proposals):
        seen.append(example.example_id)
        return generate(example, num_proposals)

    monkeypatch.setitem(prepared_source.GENERATORS, "superpixels", watched)
    return seen


def _prepare(folder, cache_dir, generator="superpixels", n=6):
    return prepare(FolderSource(folder), generator, n, cache_dir, num_workers=1)


def test_prepared_examples_carry_proposals(folder, tmp_path):
    source = _prepare(folder, tmp_path / "cache")
    assert isinstance(source, PreparedSource)
    assert len(source) == 4 and source.num_proposals == 6
    assert source[1].proposals.shape == (6, 8, 12)
    plain = FolderSource(folder)
    most = max(len(np.unique(plain[i].label_map)) for i in range(4))
    assert source.max_classes_per_image == most


def test_cached_start_decodes_nothing(folder, tmp_path, monkeypatch):
    first = _prepare(folder, tmp_path / "cache")
    monkeypatch.setattr(FolderSource, "__getitem__", lambda *_: pytest.fail("decoded an image"))
    again = _prepare(folder, tmp_path / "cache")
    assert again.fingerprint == first.fingerprint


def test_interrupted_run_continues(folder, tmp_path, computed, monkeypatch):
    write = prepared_source.os.replace

    def interrupt_third(source, target):
        if len(computed) == 3:
            raise KeyboardInterrupt
        write(source, target)

    monkeypatch.setattr(prepared_source.os, "replace", interrupt_third)
    with pytest.raises(KeyboardInterrupt):
        _prepare(folder, tmp_path / "cache")
    monkeypatch.undo()
    _prepare(folder, tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 4
    assert computed == ["scene_0000", "scene_0001", "scene_0002"]


def test_changed_file_is_computed_again(folder, tmp_path, computed):
    before = _prepare(folder, tmp_path / "cache")
    image = folder / "images" / "scene_0002.jpg"
    image.write_bytes((folder / "images" / "scene_0001.jpg").read_bytes())
    computed.clear()
    after = _prepare(folder, tmp_path / "cache")
    assert computed == ["scene_0002"]
    assert after.fingerprint != before.fingerprint


def test_copied_data_set_keeps_its_fingerprint(folder, tmp_path, computed):
    before = _prepare(folder, tmp_path / "cache")
    os.utime(folder / "images" / "scene_0002.jpg", (1, 1))
    computed.clear()
    assert _prepare(folder, tmp_path / "cache").fingerprint == before.fingerprint
    assert computed == ["scene_0002"]


def test_generator_and_number_of_proposals_are_part_of_the_fingerprint(folder, tmp_path):
    prints = {
        _prepare(folder, tmp_path / "cache", generator, n).fingerprint
        for generator in ("superpixels", "ground_truth")
        for n in (3, 4)
    }
    assert len(prints) == 4


def test_truncated_cache_file_is_computed_again(folder, tmp_path, computed):
    _prepare(folder, tmp_path / "cache")
    victim = next((tmp_path / "cache").rglob("*.npz"))
    victim.write_bytes(victim.read_bytes()[:100])
    computed.clear()
    _prepare(folder, tmp_path / "cache")
    assert len(computed) == 1


def test_cache_file_damaged_after_the_check_is_computed_again(folder, tmp_path, computed):
    source = _prepare(folder, tmp_path / "cache")
    expected = source[0].proposals
    for path in (tmp_path / "cache").rglob("*.npz"):
        content = bytearray(path.read_bytes())
        content[150:160] = bytes(10)
        path.write_bytes(content)
    np.testing.assert_array_equal(source[0].proposals, expected)


def test_all_bad_examples_are_reported_at_once(folder, tmp_path):
    for name in ("scene_0001", "scene_0003"):
        (folder / "images" / f"{name}.jpg").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"(?s)2 of 4 examples.*scene_0001.*scene_0003"):
        _prepare(folder, tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2


def test_worker_processes_give_the_same_proposals(folder, tmp_path):
    (folder / "images" / "scene_0003.jpg").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"1 of 4 examples.*\n.*scene_0003"):
        prepare(FolderSource(folder), "superpixels", 6, tmp_path / "pool", num_workers=2)
    for name in ("images/scene_0003.jpg", "annotations/scene_0003.png"):
        (folder / name).unlink()
    pool = prepare(FolderSource(folder), "superpixels", 6, tmp_path / "pool", num_workers=2)
    alone = _prepare(folder, tmp_path / "alone")
    assert pool.fingerprint == alone.fingerprint
    for i in range(3):
        np.testing.assert_array_equal(pool[i].proposals, alone[i].proposals)


def test_unknown_generator_error_lists_the_known_ones(folder, tmp_path):
    with pytest.raises(ValueError, match="superpixels, ground_truth, got 'sam'"):
        _prepare(folder, tmp_path / "cache", generator="sam")
