"""SentencePiece vocabularies of text towers that do not share CLIP's: a file, and rows of its ids.

A vocabulary comes with the checkpoint: as a .model, which the package sentencepiece reads, or as a
tokenizer.json, which tokenizers reads. Only pieces of the text are asked of either: what ends a
text and what fills its row is the text tower's to say.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import string
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

TOKENIZER_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.model", "tokenizer.json")
"""The names that such a file has beside weights, in the order in which they are looked for."""

_ENDS = ("</s>", "<eos>")
_UNKNOWN = "<unk>"


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A vocabulary, which is what its content is, wherever it lies."""

    digest: str
    """Of the content."""
    path: str = dataclasses.field(default="", compare=False, repr=False)
    """Where it lies now; empty where only the digest is known."""

    @classmethod
    def open(cls, path: str | os.PathLike) -> "TokenizerFile":
        """The file, known by its content.

        Raises:
            ValueError: there is no such file, or it is no vocabulary.
        """
        path = os.path.abspath(path)
        if pathlib.PurePath(path).suffix not in (".model", ".json"):
            raise ValueError(
                f"{path}: expected the file of a tokenizer, a .model of SentencePiece or a "
                "tokenizer.json"
            )
        try:
            digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise ValueError(f"{path}: cannot read the tokenizer: {error}") from error
        file = cls(digest, path)
        file.vocabulary  # noqa: B018  reads it, which raises where it is none
        return file

    @property
    def vocabulary(self) -> "Vocabulary":
        """Its content, read once in a process.

        Raises:
            ValueError: the file is absent, has changed, or is no vocabulary.
        """
        return _read(self.path, self.digest)


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """What a tokenizer's file says."""

    size: int
    """Number of its pieces."""
    end: int | None
    """Id of the piece that ends a text, if there is one."""
    unknown: int
    """Id of what has no piece."""
    encode: Callable[[Sequence[str]], list[list[int]]]
    """Ids of each text, without any of the pieces that mark a start or an end."""
    piece: Callable[[int], str]
    """The piece of an id."""


def find_tokenizer(folder: str | os.PathLike) -> TokenizerFile | None:
    """The tokenizer in a folder, if there is one."""
    for name in TOKENIZER_FILES:
        if (path := pathlib.Path(folder) / name).is_file():
            return TokenizerFile.open(path)
    return None


def as_rows(
    encoded: Sequence[Sequence[int]], length: int, *, end: int | None, padding: int
) -> Int[np.ndarray, "texts length"]:
    """Ids, `end` if any, then padding; of too many ids the first, and `end` all the same."""
    rows = np.full((len(encoded), length), padding, np.int32)
    ends = [] if end is None else [end]
    for row, ids in zip(rows, encoded, strict=True):
        whole = [*ids[: length - len(ends)], *ends]
        row[: len(whole)] = whole
    return rows


def canonical(text: str) -> str:
    """The text as big_vision and open_clip give it to SigLIP when they classify.

    Underscores become spaces, other ASCII punctuation vanishes, letters lower case, and runs of
    white space one space.
    """
    text = text.replace("_", " ").translate(_WITHOUT_PUNCTUATION)
    return " ".join(text.lower().split())


_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.cache
def _read(path: str, digest: str) -> Vocabulary:
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the tokenizer: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{path}: the tokenizer is not the one that the weights were opened with, its content "
            "has changed; put the former file back, or open the weights again"
        )
    if pathlib.PurePath(path).suffix == ".model":
        return _of_sentencepiece(content, path)
    return _of_tokenizers(content, path)


def _of_sentencepiece(content: bytes, path: str) -> Vocabulary:
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError(
            f"{path}: reading this tokenizer needs sentencepiece: pip install "
            "'maft_jax[sentencepiece]' (or pip install sentencepiece); a tokenizer.json needs "
            "nothing more"
        ) from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError) as error:  # the latter, of messages that are no text
        raise ValueError(f"{path}: no model of SentencePiece: {error}") from error
    end = model.eos_id() if model.eos_id() >= 0 else None
    return Vocabulary(
        model.vocab_size(),
        end,
        model.unk_id(),
        lambda texts: model.encode([*texts]),
        model.id_to_piece,
    )


def _of_tokenizers(content: bytes, path: str) -> Vocabulary:
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises this very class
        raise ValueError(f"{path}: no tokenizer.json: {error}") from error
    model.no_truncation()
    model.no_padding()
    ends = [number for number in map(model.token_to_id, _ENDS) if number is not None]
    unknown = model.token_to_id(_UNKNOWN)
    if unknown is None:
        raise ValueError(
            f"{path}: expected the vocabulary of a SentencePiece model, with a piece {_UNKNOWN}; "
            "this is another tokenizer"
        )

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [row.ids for row in model.encode_batch([*texts], add_special_tokens=False)]

    return Vocabulary(
        model.get_vocab_size(), ends[0] if ends else None, unknown, encode, model.id_to_token
    )
