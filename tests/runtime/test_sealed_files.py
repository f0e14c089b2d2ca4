"""Every byte of a sealed file counts, and its place too."""

import hashlib

import pytest

from maft_jax.runtime.sealed_files import read_sealed, write_sealed

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
