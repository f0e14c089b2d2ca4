"""Token rows against literal numbers of OpenAI's tokenizer, and against open_clip's."""

import random

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from maft_jax.models.text.tokenizer import clean_text, tokenize

LENGTH = 4096
"""Long enough for 64 characters of any alphabet, which are up to four tokens each."""


@pytest.fixture(scope="module")
def reference():
    return SimpleTokenizer(context_length=LENGTH)


def assert_same_rows(texts, reference):
    for text, ours in zip(texts, tokenize(texts, LENGTH), strict=True):
        np.testing.assert_array_equal(ours, reference([text])[0].numpy(), err_msg=repr(text))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a photo of a cat.", [320, 1125, 539, 320, 2368, 269]),
        ("A  Photo of\na CAT", [320, 1125, 539, 320, 2368]),
        ("a diagram", [320, 22697]),
        ("a dog", [320, 1929]),
        ("hello world!", [3306, 1002, 256]),
        ("", []),
    ],
)
def test_tokens_are_those_of_openai(text, tokens):
    (row,) = tokenize([text])
    expected = [49406, *tokens, 49407]
    assert row.shape == (77,) and row.dtype == np.int32
    assert row.tolist() == expected + [0] * (77 - len(expected))


def test_text_of_exactly_the_context_fits():
    assert tokenize(["cat " * 75])[0, -1] == 49407
    with pytest.raises(ValueError, match="text of 78 tokens, CLIP's context holds 77: 'cat cat"):
        tokenize(["dog", "cat " * 76])


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("men\u2019s shoes", "men's shoes"),
        ("\u201cquoted\u201d sign", '"quoted" sign'),
        ("cafe\u0301", "caf\u00e9"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("rock &amp;amp; roll", "rock & roll"),
        ("\ufb01re hydrant", "fire hydrant"),
        ("\uff26\uff55\uff4c\uff4c No. \uff12", "full no. 2"),
        ("\ufefflamp\ufeff", "lamp"),
        ("T\u00fcrk&uuml;\r\n\t cup\u00a0 ", "t\u00fcrk\u00fc cup"),
    ],
)
def test_names_are_cleaned_as_clip_was_trained(given, clean):
    assert clean_text(given) == clean
    np.testing.assert_array_equal(tokenize([given]), tokenize([clean]))


@pytest.mark.slow
def test_every_character_of_unicode_is_read_as_open_clip_reads_it(reference):
    """64 neighbours at a time; surrogates are no characters."""
    blocks = [range(first, first + 64) for first in range(0, 0x110000, 64)]
    blocks = [block for block in blocks if not 0xD800 <= block.start < 0xE000]
    # Planes 3 to 16 hold ideographs, private use and nothing: every 16th block stands for all.
    blocks = [block for block in blocks if block.start < 0x30000 or block.start // 64 % 16 == 0]
    rng = random.Random(0)
    texts = []
    for block in blocks:
        characters = list(map(chr, block))
        rng.shuffle(characters)
        texts.append("".join(characters[:32]) + " ".join(characters[32:]))
    assert_same_rows(texts, reference)


def test_random_texts_are_read_as_open_clip_reads_them(reference):
    rng = random.Random(1)
    pieces = [
        *["<|endoftext|>", "<|startoftext|>", "<start_of_text>", "<End_of_Text>", "</w>"],
        *["&amp;", "&lt;b&gt;", "&#39;", "&#x1F600;", "&amp;eacute;", "&nbsp;", "&notanentity;"],
        *["\n", "\r\n", "\t", "\u2028", "\u200b", "\u00ad", "\ufeff", "\x1c", "\x00", "\x85"],
        *["'s", "'LL", "\u2019re", "'\u017f", "n't", "\u0130", "\u1e9e", "\u03a3\u03a3", "\u01c5"],
        *["\U0001f600", "\U0001f468\u200d\U0001f469", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea"],
        *["\u00c3\u00a9", "\u00e2\u20ac\u2122", "\ufb03", "\uff21", "\u0661", "\u00bd", "\u2167"],
        *["cat", "Dog", "wall-other", "photo of a", "3000m", "caf\u00e9", "\u732b", "\u0643"],
    ]
    ranges = [(32, 127), (0, 0x250), (0x250, 0x3000), (0x3000, 0xD800), (0x1F300, 0x1FB00)]

    def piece() -> str:
        if rng.random() < 0.4:
            return rng.choice(pieces)
        return chr(rng.randrange(*rng.choice(ranges)))

    texts = ["".join(piece() for _ in range(rng.randrange(1, 16))) for _ in range(10_000)]
    assert_same_rows(texts, reference)
