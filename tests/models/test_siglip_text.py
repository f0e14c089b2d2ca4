"""What SigLIP's text tower makes of texts, by T5's vocabulary and by Gemma's."""

import json
import logging

import numpy as np
import pytest

from maft_jax.models.clip import CLIP_SIZES
from maft_jax.models.text.sentencepiece_tokenizer import TokenizerFile
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.text.tokenizer import tokenize
from tests.siglip_files import GOLDEN, unpacked

HYPHENATED = 2
"""Of the golden texts, wall-other-merged, of which ours is that of wall other merged."""


def tower(folder, name, where, vocab_size=None):
    expected = json.loads((GOLDEN / folder / "expected.json").read_text("utf-8"))
    size = vocab_size or expected["vocab_size"]
    config = SigLipTextConfig(32, 1, size, expected["length"], 16, head_width=16)
    return config.with_tokenizer(TokenizerFile.open(unpacked(folder, name, where))), expected


@pytest.mark.parametrize(
    "folder, name", [("tokenizer_siglip", "spiece.model"), ("tokenizer_gemma", "tokenizer.json")]
)
def test_texts_are_canonical_and_padded_as_their_vocabulary_is(folder, name, tmp_path):
    config, expected = tower(folder, name, tmp_path)
    texts = [text for i, text in enumerate(expected["texts"]) if i != HYPHENATED]
    rows = [row for i, row in enumerate(expected["canonicalised"]) if i != HYPHENATED]
    np.testing.assert_array_equal(config.tokenize(texts), rows)
    assert config.has_gemma_vocabulary == (folder == "tokenizer_gemma")


def test_hyphens_and_underscores_are_spaces(tmp_path):
    config, _ = tower("tokenizer_gemma", "tokenizer.model", tmp_path)
    rows = config.tokenize(["wall-other", "wall_other", "Wall  other.", "wallother"])
    assert (rows[:3] == rows[0]).all() and (rows[3] != rows[0]).any()


def test_a_text_that_is_too_long_is_said_to_be_cut(tmp_path, caplog):
    config, expected = tower("tokenizer_siglip", "tokenizer.json", tmp_path)
    with caplog.at_level(logging.WARNING):
        config.tokenize(["cat", expected["texts"][7]])
    (record,) = caplog.records
    assert "of which SigLIP reads the first 15" in record.getMessage()


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"of 70 pieces; expected one of 256000, .*gemma_tokeni"):
        tower("tokenizer_siglip", "spiece.model", tmp_path, vocab_size=256_000)


def test_the_digest_is_part_of_what_caches_go_by_and_the_path_is_not(tmp_path):
    config, _ = tower("tokenizer_gemma", "tokenizer.model", tmp_path)
    assert config.tokenizer.digest in repr(config) and str(tmp_path) not in repr(config)


def test_without_a_tokenizer_texts_are_refused_unless_the_vocabulary_is_clips():
    config = SigLipTextConfig(32, 1, 32_000, 64, 32, head_width=16)
    with pytest.raises(ValueError, match=r"of 32000 pieces beside the weights .*cc_en\.32000"):
        config.tokenize(["cat"])
    random = CLIP_SIZES["siglip_tiny-random"].text
    np.testing.assert_array_equal(random.tokenize(["a cat"]), tokenize(["a cat"], 64))


def test_rows_that_are_shorter_are_refused():
    config = SigLipTextConfig(32, 1, 10, 8, 32, head_width=16)
    with pytest.raises(ValueError, match="rows of 7 tokens; SigLIP reads all of 8"):
        config.encode({}, np.zeros((1, 7), np.int32))


def test_a_tower_without_a_head_is_as_wide_as_its_embedding():
    with pytest.raises(ValueError, match="without a head; expected embeddings of as many"):
        SigLipTextConfig(32, 1, 10, 8, 16, head_width=16, has_head=False)
