"""Tokenizers beside weights: found when weights are read, and written along with them."""

import dataclasses
import os
import pathlib

from etils import epath

from maft_jax.convert.foreign_format import Choices, WeightsSource
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text.sentencepiece_tokenizer import (
    TOKENIZER_FILES,
    TokenizerFile,
    find_tokenizer,
)
from maft_jax.models.text.tokenizer import VOCABULARY_SIZE
from maft_jax.runtime.atomic_files import atomic_write_bytes


def with_tokenizer(config: ClipConfig, source: WeightsSource, choices: Choices) -> ClipConfig:
    """The same, its text tower with the tokenizer that is stated, else the one beside the weights.

    There may be none, until texts are to be read. Towers of CLIP's own vocabulary need none.

    Raises:
        ValueError: it is no tokenizer, not the one that our own metadata names, does not fit the
            tower, or is stated for a tower that has CLIP's.
    """
    text = config.text
    if not takes_tokenizer(text):
        if choices.tokenizer is not None:
            raise ValueError(
                f"tokenizer={choices.tokenizer}: has no meaning for these weights, whose texts are "
                "read by CLIP's own"
            )
        return config
    path = pathlib.Path(source.path)
    if choices.tokenizer is not None:
        file = TokenizerFile.open(choices.tokenizer)
    elif text.tokenizer is None and text.vocab_size == VOCABULARY_SIZE:
        return config
    else:
        file = find_tokenizer(path if path.is_dir() else path.parent)
    if file is not None and text.tokenizer not in (None, file):
        raise ValueError(
            f"{file.path}: another tokenizer than that of the weights: expected the digest "
            f"{text.tokenizer.digest}, got {file.digest}; put the right one beside the weights"
        )
    text = dataclasses.replace(text, tokenizer=None) if file is None else text.with_tokenizer(file)
    return dataclasses.replace(config, text=text)


def takes_tokenizer(text) -> bool:
    """Whether a text tower has a field for one."""
    return any(field.name == "tokenizer" for field in dataclasses.fields(text)) if text else False


def without_path(config: ClipConfig) -> ClipConfig:
    """The same, in which a tokenizer is known by its digest alone."""
    file = tokenizer_of(config)
    if file is None:
        return config
    text = dataclasses.replace(config.text, tokenizer=TokenizerFile(file.digest))
    return dataclasses.replace(config, text=text)


def tokenizer_of(config: ClipConfig) -> TokenizerFile | None:
    """The text tower's, if it has one."""
    return config.text.tokenizer if takes_tokenizer(config.text) else None


def check_room_for_tokenizer(config: ClipConfig, folder: str | os.PathLike) -> None:
    """Raises ValueError where another tokenizer lies in the folder, which readers would take."""
    file, there = tokenizer_of(config), find_tokenizer(folder)
    if file is not None and there not in (None, file):
        raise ValueError(
            f"{there.path}: is another tokenizer than that of the weights, {file.path}, which is "
            "written beside them; choose another folder"
        )


def write_tokenizer(config: ClipConfig, folder: str | os.PathLike) -> None:
    """A copy of the text tower's tokenizer, if it has one, under a name by which it is found."""
    file = tokenizer_of(config)
    if file is None or find_tokenizer(folder) == file:
        return
    path = pathlib.Path(file.path)
    name = path.name if path.name in TOKENIZER_FILES else f"tokenizer{path.suffix}"
    atomic_write_bytes(epath.Path(folder) / name, path.read_bytes())
