"""Whatever happens to the files of a record set, they give the same data or an error says where."""

import dataclasses
import hashlib
import itertools
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from input_pipeline.image_files import read_image
from input_pipeline.records import proposal_records, sealed_json
from input_pipeline.records.record_shards import (
    done_path,
    index_path,
    read_done,
    read_index,
    record_path,
)
from input_pipeline.records.record_source import RecordSource
from input_pipeline.records.record_verification import verify_records
from input_pipeline.records.shard_index import encode_index
from tests.record_sets import encode_image, make_record, write_record_set, write_shard

STEMS = ("train-00000-of-00002", "train-00001-of-00002")
SUFFIXES = (".tfrecord", ".idx", ".done.json")
FILES = ("dataset.json", *(stem + suffix for stem in STEMS for suffix in SUFFIXES))
RECORDS = [
    make_record(seed, size=(6, 7), num_proposals=seed, example_id=f"bär {seed}")
    for seed in range(6)
]


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return write_record_set(tmp_path_factory.mktemp("intact"), RECORDS, num_shards=2)


@pytest.fixture
def folder(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "records")


def _flip(path, rng):
    """Changes one byte; returns where."""
    content = bytearray(path.read_bytes())
    position = int(rng.integers(len(content)))
    content[position] ^= int(rng.integers(1, 256))
    path.write_bytes(bytes(content))
    return position


def _contents(folder):
    """Everything that can be read of a set."""
    source = RecordSource(folder)
    arrays = [
        (
            e.example_id,
            e.image.tobytes(),
            e.label_map.tobytes(),
            e.proposals.tobytes(),
            e.scores.tobytes(),
        )
        for e in map(source.__getitem__, range(len(source)))
    ]
    return source.fingerprint, source.class_names, source.image_sizes.tolist(), arrays


@pytest.mark.parametrize("stem", STEMS)
def test_flipped_byte_in_a_shard_damages_one_record_and_names_it(intact, folder, stem):
    rng = np.random.default_rng(STEMS.index(stem))
    path, first = folder / f"{stem}.tfrecord", 3 * STEMS.index(stem)
    entries = read_index(intact, stem)
    expected = RecordSource(intact)
    for _ in range(80):
        shutil.copy(intact / path.name, path)
        position = _flip(path, rng)
        hit = next(i for i, e in enumerate(entries) if position < e.offset + e.length)
        source = RecordSource(folder)
        where = f"{path}, byte {entries[hit].offset}, example 'bär {first + hit}'"
        for index in range(6):
            if index == first + hit:
                with pytest.raises(
                    ValueError, match=f"^{re.escape(where)}: .*; delete .*run maft_jax"
                ):
                    _ = source[index]
            else:
                np.testing.assert_array_equal(source[index].proposals, expected[index].proposals)
        (problem,) = verify_records(folder, progress=False)
        assert problem.startswith(where)


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".tfrecord")])
def test_flipped_byte_elsewhere_is_refused_or_changes_nothing(intact, folder, name):
    rng = np.random.default_rng(FILES.index(name))
    expected, path = _contents(intact), folder / name
    refused = 0
    for _ in range(80):
        shutil.copy(intact / name, path)
        _flip(path, rng)
        try:
            assert _contents(folder) == expected
        except ValueError as error:
            assert str(path) in str(error)
            assert any(str(path) in problem for problem in verify_records(folder, progress=False))
            refused += 1
    assert refused > 40


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", ["nothing", "half", "all but one byte"])
def test_truncated_file_is_named(intact, folder, name, kept):
    content = (folder / name).read_bytes()
    size = {"nothing": 0, "half": len(content) // 2, "all but one byte": len(content) - 1}[kept]
    (folder / name).write_bytes(content[:size])
    if name.endswith(".json") and kept == "all but one byte":  # the newline at the end
        assert _contents(folder) == _contents(intact)
        return
    with pytest.raises(ValueError, match=re.escape(name)):
        RecordSource(folder)
    assert any(name in problem for problem in verify_records(folder, progress=False))


@pytest.mark.parametrize("name", FILES)
def test_deleted_file_is_named(folder, name):
    (folder / name).unlink()
    stem_or_name = name.removesuffix(".done.json")
    with pytest.raises(ValueError, match=re.escape(stem_or_name)):
        RecordSource(folder)
    assert any(stem_or_name in problem for problem in verify_records(folder, progress=False))


@pytest.mark.parametrize(
    "suffixes", [c for r in (1, 2, 3) for c in itertools.combinations(SUFFIXES, r)]
)
def test_swapped_shards_are_refused(folder, suffixes):
    for suffix in suffixes:
        first, second = (folder / (stem + suffix) for stem in STEMS)
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    with pytest.raises(ValueError, match="train-0000"):
        RecordSource(folder)
    assert len(verify_records(folder, progress=False)) == 2


def test_shard_that_vanishes_while_it_is_read_is_named(folder):
    source = RecordSource(folder)
    record_path(folder, STEMS[0]).unlink()
    with pytest.raises(ValueError, match=r"00000-of-00002\.tfrecord, byte 0, example 'bär 0'"):
        _ = source[0]


def test_every_corrupt_record_of_a_set_is_reported(folder):
    path = record_path(folder, STEMS[1])
    content = bytearray(path.read_bytes())
    entries = read_index(folder, STEMS[1])
    for entry in entries:
        content[entry.offset + 50] ^= 1
    path.write_bytes(content)
    problems = verify_records(folder, progress=False)
    assert len(problems) == 3
    for problem, entry in zip(problems, entries, strict=True):
        assert f"byte {entry.offset}," in problem


def _reseal(folder, stem, **changes):
    """Forges a done-file, as an error in the writer would make it."""
    done = read_done(folder, stem) | changes
    done_path(folder, stem).write_bytes(sealed_json.seal(done))


def test_verification_compares_each_shard_with_its_done_file(folder):
    _reseal(folder, STEMS[0], tfrecord_sha256="00" * 32)
    _reseal(folder, STEMS[1], num_examples=4)
    first, second = verify_records(folder, progress=False)
    assert first.startswith(f"{record_path(folder, STEMS[0])}: the SHA-256")
    assert second.startswith(f"{record_path(folder, STEMS[1])}: the done-file says 4 examples")


def test_verification_finds_bytes_that_the_index_does_not_know(folder):
    stem = STEMS[0]
    index = encode_index([e for i, e in enumerate(read_index(folder, stem)) if i != 1])
    index_path(folder, stem).write_bytes(index)
    _reseal(folder, stem, idx_sha256=hashlib.sha256(index).hexdigest(), num_examples=2)
    (problem,) = verify_records(folder, progress=False)
    assert re.search(r"tfrecord, byte \d+: the index goes on at byte \d+$", problem)


def test_verification_compares_records_with_the_index(folder):
    stem = STEMS[0]
    first, *others = read_index(folder, stem)
    index = encode_index([dataclasses.replace(first, num_proposals=9), *others])
    index_path(folder, stem).write_bytes(index)
    _reseal(folder, stem, idx_sha256=hashlib.sha256(index).hexdigest())
    (problem,) = verify_records(folder, progress=False)
    assert "byte 0, example 'bär 0': the index says" in problem


def test_files_of_a_future_version_say_so(folder, monkeypatch):
    monkeypatch.setattr(sealed_json, "SCHEMA_VERSION", 2)
    write_shard(folder, STEMS[1], RECORDS[3:])
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"done\.json: .*version 2, this code reads .* up to 1; update"
    ):
        RecordSource(folder)


def test_record_of_a_future_version_among_others_is_named(folder, monkeypatch):
    monkeypatch.setattr(proposal_records, "SCHEMA_VERSION", 2)
    write_shard(folder, STEMS[1], RECORDS[3:])
    monkeypatch.undo()
    source = RecordSource(folder)
    assert source[2].example_id == "bär 2"
    with pytest.raises(
        ValueError, match=r"byte 0, example 'bär 3': the record has schema version 2"
    ):
        _ = source[3]
    assert len(verify_records(folder, progress=False)) == 3


def test_image_that_cannot_be_decoded_is_named(tmp_path):
    cut = RECORDS[1].image_bytes[:300]
    write_record_set(tmp_path, [RECORDS[0], dataclasses.replace(RECORDS[1], image_bytes=cut)])
    source = RecordSource(tmp_path)
    assert source[0].image.shape == (6, 7, 3)
    with pytest.raises(ValueError, match=r"tfrecord, byte \d+, example 'bär 1': cannot be read as"):
        _ = source[1]
    (problem,) = verify_records(tmp_path, progress=False)
    assert "'bär 1'" in problem


def test_unusual_examples_pass_unharmed(tmp_path):
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    sixteen = Image.fromarray(rng.integers(0, 65536, (20, 24)).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "CMYK": encode_image(pixels.convert("CMYK"), "jpeg"),
        "16 bits": encode_image(sixteen, "png"),
        "EXIF": encode_image(pixels.transpose(Image.Transpose.ROTATE_90), "jpeg", exif=turned),
        "WebP": encode_image(pixels, "webp"),
    }
    records = [make_record(0, example_id=name, image_bytes=data) for name, data in images.items()]
    records += [
        make_record(1, size=(1, 1), label_map=np.array([[3]], np.int32)),
        make_record(2, num_proposals=0),
        make_record(3, num_proposals=1000),
        make_record(4, size=(1, 2), label_map=np.array([[846, -1]], np.int32)),
    ]
    write_record_set(tmp_path, records, 3, class_names=[f"class {i}" for i in range(847)])
    assert verify_records(tmp_path, progress=False) == []
    source = RecordSource(tmp_path)
    assert len(source) == len(records)
    for index, record in enumerate(records):
        example = source[index]
        assert example.image.shape == (*record.image_size, 3)
        np.testing.assert_array_equal(example.image, read_image(record.image_bytes))
        np.testing.assert_array_equal(example.label_map, record.label_map)
        np.testing.assert_array_equal(example.proposals, record.proposals)
        assert source.record(index).image_bytes == record.image_bytes
