"""Class names x prompt templates -> the frozen classifier, computed once and cached by content."""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from maft_jax.models.encoder import TextArchitecture
from maft_jax.models.text.tokenizer import needs_cleaning
from maft_jax.runtime.atomic_files import atomic_write
from maft_jax.tree_rules import fingerprint

_BATCH_SIZE = 256

logger = logging.getLogger(__name__)


def embed_classes(
    config: TextArchitecture, parameters: Mapping, names: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "c e"]:
    """One L2-normalised row per class: templates normalised, averaged, normalised again.

    Args:
        parameters: the text tower's.
        names: used as they are.
        templates: prompts in which {} stands for the name.

    Raises:
        ValueError: no names, no templates, or a prompt that is too long, naming the class.
    """
    if isinstance(names, str) or isinstance(templates, str) or not names or not templates:
        raise ValueError(
            f"expected a list of class names and a list of templates, got {names!r}, {templates!r}"
        )
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"templates: expected one {{}} in {template!r}")
    tokens = np.concatenate([_tokenize_class(name, templates, config) for name in names])
    rows = np.concatenate([config.encode(parameters, part) for part in _batches(tokens)])
    rows = rows[: len(tokens)].reshape(len(names), len(templates), -1).mean(1)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def cached_class_embeddings(
    config: TextArchitecture,
    parameters: Mapping,
    names: Sequence[str],
    templates: Sequence[str],
    cache_dir: str | os.PathLike,
) -> Float[np.ndarray, "c e"]:
    """embed_classes, kept in `cache_dir` under a digest of all that they depend on."""
    key = [repr(config), fingerprint(parameters), list(names), list(templates)]
    key += cleaning(names, templates).items()
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    path = pathlib.Path(cache_dir) / "text_embeddings" / f"{digest}.npy"
    shape = (len(names), config.embed_dim)
    if path.exists():
        try:
            rows = np.load(path, allow_pickle=False)
            if rows.shape == shape:
                return rows
        except (ValueError, EOFError, OSError):
            pass
        logger.warning("%s is corrupt; computing the text embeddings again", path)
    rows = embed_classes(config, parameters, names, templates)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside, aside.open("wb") as file:
        np.save(file, rows)
    return rows


def cleaning(names: Sequence[str], templates: Sequence[str]) -> dict[str, str]:
    """What keys of caches need beside names and templates: an entry where cleaning changes them.

    Version 0.1 did not clean, so that what it kept stays valid for all others.
    """
    changed = any(needs_cleaning(part.replace("{}", name)) for name in names for part in templates)
    return {"texts": "cleaned"} if changed else {}


def _tokenize_class(name: str, templates: Sequence[str], config: TextArchitecture):
    try:
        return config.tokenize([template.replace("{}", name) for template in templates])
    except ValueError as error:
        raise ValueError(f"class name {name!r}: {error}") from error


def _batches(tokens):
    """Equal batches, the last one filled up with repetitions so that one program serves all."""
    size = min(_BATCH_SIZE, len(tokens))
    count = -(-len(tokens) // size)
    return np.resize(tokens, (count, size, tokens.shape[1]))
