"""CLIP's byte-pair encoding to fixed-length token rows."""

import functools
from collections.abc import Sequence

import instant_clip_tokenizer
import numpy as np
from jaxtyping import Int


def tokenize(texts: Sequence[str], context_length: int = 77) -> Int[np.ndarray, "texts length"]:
    """Start-of-text, the text, end-of-text, zeros.

    Raises:
        ValueError: a text does not fit; it is named.
    """
    tokenizer = _tokenizer()
    start, end = tokenizer.start_of_text(), tokenizer.end_of_text()
    rows = np.zeros((len(texts), context_length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        tokens = [start, *tokenizer.encode(text), end]
        if len(tokens) > context_length:
            raise ValueError(
                f"text of {len(tokens)} tokens, CLIP's context holds {context_length}: {text!r}; "
                "shorten it"
            )
        row[: len(tokens)] = tokens
    return rows


@functools.cache
def _tokenizer() -> instant_clip_tokenizer.Tokenizer:
    return instant_clip_tokenizer.Tokenizer()
