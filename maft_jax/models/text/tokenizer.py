"""CLIP's byte-pair encoding to fixed-length token rows, the same rows as open_clip's tokenizer.

The merges lie beside this file with their licence.
"""

import functools
import gzip
import html
import pathlib
from collections.abc import Sequence

import ftfy
import numpy as np
import regex
import tokenizers
from jaxtyping import Int

_MERGES = pathlib.Path(__file__).with_name("clip_merges.txt.gz")
VOCABULARY_SIZE = 49408
_END_OF_WORD = "</w>"
_SPECIAL_TOKENS = ("<start_of_text>", "<end_of_text>")
_WORDS = regex.compile(
    "|".join([*_SPECIAL_TOKENS, r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"]),
    regex.IGNORECASE,
)
"""What merges never cross. The library's own expressions know an older Unicode than `regex`."""


def tokenize(texts: Sequence[str], context_length: int = 77) -> Int[np.ndarray, "texts length"]:
    """Start-of-text, the cleaned text, end-of-text, zeros.

    Raises:
        ValueError: a text does not fit; it is named.
    """
    start, end = (_tokenizer().token_to_id(token) for token in _SPECIAL_TOKENS)
    rows = np.zeros((len(texts), context_length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        tokens = [start, *_encode(text), end]
        if len(tokens) > context_length:
            raise ValueError(
                f"text of {len(tokens)} tokens, CLIP's context holds {context_length}: {text!r}; "
                "shorten it"
            )
        row[: len(tokens)] = tokens
    return rows


def clean_text(text: str) -> str:
    """The text as CLIP was trained on it.

    Broken encodings, curly quotes, ligatures and full-width letters are mended by ftfy, HTML
    entities resolved twice, runs of white space become a space, and letters lower case.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _plain(text)


def needs_cleaning(text: str) -> bool:
    """Whether `clean_text` changes more than case and white space."""
    return clean_text(text) != _plain(text)


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()


def _encode(text: str) -> list[int]:
    words = _WORDS.findall(clean_text(text))
    return _tokenizer().encode(words, is_pretokenized=True).ids


def merges_and_vocabulary(
    special_tokens: tuple[str, str],
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """CLIP's byte-pair merges, and the number of each token, under these names of the last two."""
    with gzip.open(_MERGES, "rt", encoding="utf-8") as lines:
        merges = [tuple(line.split()) for line in lines]
    symbols = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *symbols,
        *(symbol + _END_OF_WORD for symbol in symbols),
        *("".join(pair) for pair in merges),
        *special_tokens,
    ]
    return merges, {token: number for number, token in enumerate(tokens)}


@functools.cache
def _tokenizer() -> tokenizers.Tokenizer:
    """Of words: bytes as symbols, byte-pair merges, and the two special tokens as they are."""
    merges, vocabulary = merges_and_vocabulary(_SPECIAL_TOKENS)
    model = tokenizers.models.BPE(vocabulary, merges, end_of_word_suffix=_END_OF_WORD)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    return tokenizer
