"""Class names x prompt templates -> the frozen classifier, computed once and cached by content."""

import functools
import hashlib
import io
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from maft_jax.models.encoder import TextArchitecture
from maft_jax.models.text.tokenizer import needs_cleaning, tokenize
from maft_jax.runtime.atomic_files import clear_leftovers
from maft_jax.runtime.sealed_files import read_sealed, write_sealed
from maft_jax.runtime.tree_rules import fingerprint

_BATCH_SIZE = 256
_MOST_SHOWN = 10
_SECONDS_OF_SILENCE = 5.0
_SECONDS_BETWEEN_LOG_LINES = 10.0

logger = logging.getLogger(__name__)

Tokenize = Callable[[Sequence[str]], np.ndarray]


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
    if any(isinstance(given, str) or not len(given) for given in (names, templates)):
        raise ValueError(
            f"expected a list of class names and a list of templates, got {names!r}, {templates!r}"
        )
    names = checked_texts(names, "class names")
    for template in checked_texts(templates, "templates"):
        if template.count("{}") != 1:
            raise ValueError(f"templates: expected one {{}} in {template!r}")
    tokens = np.concatenate([_tokenize_class(name, templates, config.tokenize) for name in names])
    batches = tqdm(
        _batches(tokens),
        desc=f"embedding {len(names)} names in {len(templates)} prompts",
        unit="batch",
        delay=_SECONDS_OF_SILENCE,
        mininterval=0.5 if sys.stderr.isatty() else _SECONDS_BETWEEN_LOG_LINES,
    )
    rows = np.concatenate([np.asarray(config.encode(parameters, part)) for part in batches])
    rows = rows[: len(tokens)].reshape(len(names), len(templates), -1).mean(1)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def cached_class_embeddings(
    config: TextArchitecture,
    parameters: Mapping,
    names: Sequence[str],
    templates: Sequence[str],
    cache_dir: str | os.PathLike,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> Float[np.ndarray, "c *names e"]:
    """embed_classes, kept in `cache_dir` under a digest of all that they depend on, and sealed.

    With `synonyms`, further names of some classes, [c, names, e]: see `embed_synonyms`.

    What killed writers left there is removed by who writes next.

    Raises:
        ValueError: as embed_classes, or CLIP cannot tell two of the names apart.
    """
    if synonyms:
        embed = functools.partial(cached_class_embeddings, config, parameters)
        return embed_synonyms(
            lambda every: embed(every, templates, cache_dir), names, synonyms, config.tokenize
        )
    check_distinct(names, "class names", config.tokenize)
    key = [repr(config), fingerprint(parameters), list(names), list(templates)]
    key += cleaning(names, templates).items()
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    path = pathlib.Path(cache_dir) / "text_embeddings" / f"{digest}.npy"
    shape = (len(names), config.embed_dim)
    sealed_with = f"{digest} {shape}".encode()
    if (content := read_sealed(path, sealed_with)) is not None:
        return np.load(io.BytesIO(content), allow_pickle=False)
    rows = embed_classes(config, parameters, names, templates)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    file = io.BytesIO()
    np.save(file, rows)
    write_sealed(path, file.getvalue(), sealed_with)
    return rows


def embed_synonyms(
    embed: Callable[[Sequence[str]], Float[np.ndarray, "every e"]],
    names: Sequence[str],
    synonyms: Mapping[str, Sequence[str]],
    tokenize: Tokenize = tokenize,
) -> Float[np.ndarray, "c names e"]:
    """Rows of every name of every class, for `encoder.class_logits`.

    A class has its name first and then its synonyms, of which those that CLIP cannot tell apart
    count once, and repeats of them up to the class with the most names: these change no maximum.
    `embed` is given every name once. A name that several classes have is warned of: FC-CLIP's own
    lists share some.

    Raises:
        ValueError: as check_distinct for the classes' names; or two classes have the same names.
    """
    check_distinct(names, "class names", tokenize)
    place_of: dict[bytes, int] = {}
    every: list[str] = []
    places: list[tuple[int, ...]] = []
    for class_name in names:
        of_class = {}
        for name in (class_name, *checked_texts(synonyms.get(class_name, ()), "synonyms")):
            (row,) = _tokenize_class(name, ("{}",), tokenize)
            place = place_of.setdefault(row.tobytes(), len(every))
            if place == len(every):
                every.append(name)
            of_class[place] = None
        places.append(tuple(of_class))
    _check_classes_apart(names, every, places)
    most = max(map(len, places))
    return embed(every)[np.stack([np.resize(of_class, most) for of_class in places])]


def _check_classes_apart(
    names: Sequence[str], every: Sequence[str], places: Sequence[tuple[int, ...]]
) -> None:
    first_of_set: dict[frozenset[int], str] = {}
    first_of_place: dict[int, str] = {}
    shared = []
    for class_name, of_class in zip(names, places, strict=True):
        other = first_of_set.setdefault(frozenset(of_class), class_name)
        if other != class_name:
            raise ValueError(
                f"class names: {other!r} and {class_name!r} have the same names, "
                f"{', '.join(repr(every[place]) for place in of_class)}; give each its own"
            )
        for place in of_class:
            other = first_of_place.setdefault(place, class_name)
            if other != class_name:
                shared.append(f"{every[place]!r} ({other}, {class_name})")
    if shared:
        logger.warning(
            "%d names are those of several classes, which score alike where it is the best of "
            "them, and the first is taken: %s",
            len(shared),
            ", ".join(shared[:_MOST_SHOWN]) + (", ..." if len(shared) > _MOST_SHOWN else ""),
        )


def checked_texts(texts: object, what: str) -> tuple[str, ...]:
    """The texts, of any kind of sequence.

    Raises:
        ValueError: it is one text, no sequence, or holds something else; begins with `what`.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise ValueError(f"{what}: expected a list of texts, got {texts!r}")
    texts = tuple(texts)
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ValueError(
                f"{what}: expected texts, got {text!r} ({type(text).__name__}) as number {number} "
                f"of {len(texts)}; put quotes around it"
            )
    return texts


def find_alike(names: Sequence[str], tokenize: Tokenize = tokenize) -> tuple[int, int] | None:
    """Positions of the first two names of which CLIP reads the same tokens."""
    first: dict[bytes, int] = {}
    for position, name in enumerate(names):
        (row,) = _tokenize_class(name, ("{}",), tokenize)
        if (earlier := first.setdefault(row.tobytes(), position)) != position:
            return earlier, position
    return None


def find_shared(names: Sequence[str], others: Sequence[str]) -> tuple[int, int] | None:
    """Positions in both of the first of `others` of which CLIP reads the tokens of a name."""

    def tokens(name: str) -> bytes:
        return _tokenize_class(name, ("{}",), tokenize).tobytes()

    positions = {tokens(name): position for position, name in enumerate(names if others else ())}
    for position, other in enumerate(others):
        if (shared := positions.get(tokens(other))) is not None:
            return shared, position
    return None


def check_distinct(
    names: object,
    what: str,
    tokenize: Tokenize = tokenize,
) -> None:
    """The one check of class names in training, evaluation, prediction and on the page.

    Raises:
        ValueError: one is no text or too long, or CLIP cannot tell two apart; begins with `what`.
    """
    names = checked_texts(names, what)
    try:
        alike = find_alike(names, tokenize)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if alike is not None:
        one, other = (names[position] for position in alike)
        raise ValueError(
            f"{what}: {other!r} comes twice, as names {alike[0] + 1} and {alike[1] + 1}: CLIP "
            f"cannot tell {one!r} from {other!r}, for it reads capitals as small letters and mends "
            "white space and signs; leave one of them out, or say how they differ"
        )


def cleaning(names: Sequence[str], templates: Sequence[str]) -> dict[str, str]:
    """What keys of caches need beside names and templates: an entry where cleaning changes them.

    Version 0.1 did not clean, so that what it kept stays valid for all others.
    """
    changed = any(needs_cleaning(part.replace("{}", name)) for name in names for part in templates)
    return {"texts": "cleaned"} if changed else {}


def text_tower_identity(config: TextArchitecture, parameters: Mapping) -> str:
    """What keys of caches need of a text tower: its weights, and its tokenizer if that is a file.

    Where that is CLIP's, as in version 0.1.
    """
    file = getattr(config, "tokenizer", None)
    weights = fingerprint(parameters)
    return weights if file is None else f"{weights} {file.digest}"


def _tokenize_class(name: str, templates: Sequence[str], tokenize: Tokenize):
    try:
        return tokenize([template.replace("{}", name) for template in templates])
    except ValueError as error:
        raise ValueError(f"class name {name!r}: {error}") from error


def _batches(tokens):
    """Equal batches, the last one filled up with repetitions so that one program serves all."""
    size = min(_BATCH_SIZE, len(tokens))
    count = -(-len(tokens) // size)
    return np.resize(tokens, (count, size, tokens.shape[1]))
