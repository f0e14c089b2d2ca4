"""Ids of SentencePiece vocabularies against those that sentencepiece and transformers gave."""

import json
import pathlib
import sys

import numpy as np
import pytest

from maft_jax.models.text.sentencepiece_tokenizer import (
    TokenizerFile,
    as_rows,
    canonical,
    find_tokenizer,
)
from tests.siglip_files import GOLDEN, unpacked

FILES = [
    ("tokenizer_siglip", "spiece.model"),
    ("tokenizer_siglip", "tokenizer.json"),
    ("tokenizer_gemma", "tokenizer.model"),
    ("tokenizer_gemma", "tokenizer.json"),
]


@pytest.mark.parametrize("folder, name", FILES)
def test_ids_are_those_of_the_libraries(folder, name, tmp_path):
    expected = json.loads((GOLDEN / folder / "expected.json").read_text("utf-8"))
    vocabulary = TokenizerFile.open(unpacked(folder, name, tmp_path)).vocabulary
    assert vocabulary.size == expected["vocab_size"] and vocabulary.end == expected["eos_id"]
    assert vocabulary.unknown == (3 if folder == "tokenizer_gemma" else 2)
    for clean, key in ((str.lower, "lower_only"), (canonical, "canonicalised")):
        rows = as_rows(
            vocabulary.encode([clean(text) for text in expected["texts"]]),
            expected["length"],
            end=vocabulary.end,
            padding=expected["pad_id"],
        )
        np.testing.assert_array_equal(rows, expected[key])


def test_rows_without_an_end_keep_the_first_ids():
    rows = as_rows([[5, 6], [7, 8, 9, 10], []], 3, end=None, padding=0)
    np.testing.assert_array_equal(rows, [[5, 6, 0], [7, 8, 9], [0, 0, 0]])


def test_a_file_is_its_content(tmp_path):
    one = TokenizerFile.open(unpacked(*FILES[2], tmp_path))
    copy = tmp_path / "elsewhere.model"
    copy.write_bytes(pathlib.Path(one.path).read_bytes())
    other = TokenizerFile.open(copy)
    assert one == other and hash(one) == hash(other) and repr(one) == repr(other)
    assert str(tmp_path) not in repr(one) and one.digest in repr(one)


def test_it_is_found_beside_weights(tmp_path):
    assert find_tokenizer(tmp_path) is None
    path = unpacked(*FILES[3], tmp_path)
    assert find_tokenizer(tmp_path).path == str(path)
    path = unpacked(*FILES[2], tmp_path)
    assert find_tokenizer(tmp_path).path == str(path), "the original goes before its conversion"


def test_what_is_no_tokenizer_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"absent.model: cannot read"):
        TokenizerFile.open(tmp_path / "absent.model")
    with pytest.raises(ValueError, match=r"a .model of SentencePiece or a tokenizer.json"):
        TokenizerFile.open(tmp_path / "vocab.txt")
    for name, message in (
        ("a.model", "no model of SentencePiece"),
        ("a.json", "no tokenizer.json"),
    ):
        (tmp_path / name).write_bytes(b"\x00nonsense")
        with pytest.raises(ValueError, match=message):
            TokenizerFile.open(tmp_path / name)
    path = unpacked(*FILES[3], tmp_path)
    file = TokenizerFile.open(path)
    content = json.loads(path.read_text("utf-8"))
    del content["model"]["vocab"]["<unk>"]
    content["model"]["unk_token"] = None
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match="with a piece <unk>; this is another tokenizer"):
        TokenizerFile.open(path)
    moved = TokenizerFile(file.digest, str(path.with_name("moved.json")))
    with pytest.raises(ValueError, match=r"moved.json: cannot read"):
        moved.vocabulary  # noqa: B018
    with pytest.raises(ValueError, match="its content has changed"):
        TokenizerFile("0" * 64, str(path)).vocabulary  # noqa: B018
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"pip install 'maft_jax\[sentencepiece\]'"):
        TokenizerFile.open(unpacked(*FILES[0], tmp_path))
