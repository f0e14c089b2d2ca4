"""Every byte of a sealed file counts, and its place too."""

import hashlib
import json
import os

import pytest

from maft_jax.runtime.sealed_files import (
    read_sealed,
    read_sealed_json,
    write_sealed,
    write_sealed_json,
)

CONTENT = b"what took an hour to compute"


def test_the_seal_is_what_sha256sum_says_of_key_and_content(tmp_path):
    write_sealed(tmp_path / "cache", CONTENT, b"key ")
    expected = hashlib.sha256(b"key " + CONTENT).digest()
    assert (tmp_path / "cache").read_bytes() == CONTENT + expected
    assert read_sealed(tmp_path / "cache", b"key ") == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_no_bit_can_change_without_notice(tmp_path, caplog):
    write_sealed(tmp_path / "cache", CONTENT)
    whole = (tmp_path / "cache").read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        (tmp_path / "cache").write_bytes(changed)
        assert read_sealed(tmp_path / "cache") is None
    assert f"{tmp_path / 'cache'} is corrupt" in caplog.text


@pytest.mark.parametrize("content", [b"", CONTENT, b"x" * 32])
def test_what_was_never_sealed_is_computed_again(tmp_path, content):
    (tmp_path / "cache").write_bytes(content)
    assert read_sealed(tmp_path / "cache") is None


def test_a_file_under_the_name_of_another_does_not_pass(tmp_path, caplog):
    assert read_sealed(tmp_path / "cache", b"mine") is None and not caplog.text
    write_sealed(tmp_path / "cache", CONTENT, b"theirs")
    assert read_sealed(tmp_path / "cache", b"mine") is None and "is corrupt" in caplog.text


def test_sealed_json_is_read_as_it_was_written_and_can_be_read_by_people(tmp_path):
    path = tmp_path / "plan.json"
    written = write_sealed_json(path, {"chips": (2, 4), 7: 0.1})
    assert written == read_sealed_json(path) == {"chips": [2, 4], "7": 0.1}
    assert json.loads(path.read_text())["chips"] == [2, 4]
    assert read_sealed_json(tmp_path / "other.json") is None


def test_no_value_of_sealed_json_can_change_without_notice(tmp_path, caplog):
    path = tmp_path / "plan.json"
    written = write_sealed_json(path, {"seen": 0.25, "settings": {"steps": 50}})
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 7
        path.write_bytes(changed)
        assert read_sealed_json(path) in (None, written)  # other white space is no other value
    assert f"{path} is corrupt" in caplog.text and f"{path}: not readable as JSON" in caplog.text
    for unsealed in (json.dumps(written), "[1]", ""):
        path.write_text(unsealed)
        assert read_sealed_json(path) is None
    path.write_bytes(whole)
    os.rename(path, tmp_path / "other.json")
    assert read_sealed_json(tmp_path / "other.json") is None
