"""From any source of weights to any destination: what the command does between its flags."""

import dataclasses
import os
import pathlib
import re

import numpy as np

from maft_jax.convert.formats import FORMATS, ClipWeights, layout_of, read_weights, why_not
from maft_jax.models.clip import ClipConfig
from maft_jax.models.encoder import ImageArchitecture


def image_tower(weights: ClipWeights) -> ClipWeights:
    """The image tower alone."""
    visual = {path: x for path, x in weights.tensors.items() if path.startswith("visual/")}
    config = ClipConfig(weights.config.vision, None)
    return dataclasses.replace(weights, config=config, tensors=visual)


def with_text_of(weights: ClipWeights, other: ClipWeights, other_source: str) -> ClipWeights:
    """The image tower of one with the text tower and the similarities' scalars of another.

    Raises:
        ValueError: the other has no text tower, or embeddings of another size.
    """
    vision, text = weights.config.vision, other.config.text
    if text is None or text.embed_dim != vision.embed_dim:
        found = "none" if text is None else f"one with embeddings of {text.embed_dim}"
        raise ValueError(
            f"{other_source}: expected a text tower with embeddings of {vision.embed_dim} numbers, "
            f"as the image tower has; there is {found}"
        )
    tensors = {path: x for path, x in other.tensors.items() if not path.startswith("visual/")}
    alone = image_tower(weights)
    vision = _with_similarity_of(vision, other.config.vision)
    return dataclasses.replace(
        alone,
        config=ClipConfig(vision, text, other.config.has_logit_bias),
        tensors={**alone.tensors, **tensors},
    )


def _with_similarity_of(vision: ImageArchitecture, other: ImageArchitecture) -> ImageArchitecture:
    """With the scalars that architectures of one kind keep beside their sizes."""
    if type(vision) is not type(other):
        return vision
    names = {field.name for field in dataclasses.fields(vision)} & {"logit_scale", "logit_bias"}
    return dataclasses.replace(vision, **{name: getattr(other, name) for name in names})


def read_back(weights: ClipWeights, path: str | os.PathLike, format_name: str) -> ClipWeights:
    """What was written, read as the weights that it was written of: no format tells all of them."""
    tower = weights.config.vision
    stated = {name: getattr(tower, name, None) for name in ("activation", "head_width")}
    return read_weights(path, format_name=format_name, **stated)


def choose_format(weights: ClipWeights, destination: str | os.PathLike, name: str | None) -> str:
    """The format to write: the one asked for, or the only one that the destination can mean.

    A destination means the formats that are written under its ending (a folder, if it has none)
    and can hold these weights; a format's name in the destination's chooses among them.

    Raises:
        ValueError: the format is unknown, or there is no or more than one that it can be; the
            formats are listed.
    """
    if name is not None:
        if name not in FORMATS:
            raise ValueError(f"--to={name}: expected one of {', '.join(FORMATS)}")
        return name
    suffix = pathlib.Path(destination).suffix
    reasons = {key: _why_not_there(key, weights, suffix) for key in FORMATS}
    possible = [key for key, reason in reasons.items() if reason is None]
    if len(possible) > 1:
        stem = _letters(pathlib.Path(destination).stem)
        named = [key for key in possible if _letters(key) in stem]
        longest = max(map(len, named), default=0)
        possible = [key for key in named if len(key) == longest] or possible
    if len(possible) == 1:
        return possible[0]
    if possible:
        raise ValueError(
            f"{destination} can be written in several formats; choose one: "
            f"{' or '.join(f'--to={key}' for key in possible)}"
        )
    listed = "".join(f"\n  --to={key}: {reason}" for key, reason in reasons.items())
    raise ValueError(f"{destination}: these weights cannot be written under this name:{listed}")


def _why_not_there(name: str, weights: ClipWeights, suffix: str) -> str | None:
    if reason := why_not(name, weights.config):
        return reason
    format = layout_of(name, weights.config)
    if suffix in format.suffixes or (not suffix and format.folder_tensors is not None):
        return None
    endings = [*format.suffixes, *(["no ending (a folder)"] if format.folder_tensors else [])]
    return f"needs a name with {' or '.join(endings)}"


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def check_destination(destination: str | os.PathLike, overwrite: bool) -> None:
    """Refuses what exists already.

    Raises:
        ValueError: a file is there and `overwrite` is not given, or a folder with content.
    """
    path = pathlib.Path(destination)
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path}: a folder that is not empty; choose a new name, or delete it")
    if path.is_file() and not overwrite:
        raise ValueError(f"{path} exists; choose another name, or replace it with --overwrite")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")


def num_bytes(weights: ClipWeights, dtype: str) -> int:
    """How many bytes of tensors writing these weights produces."""
    if dtype == "source":
        return sum(tensor.nbytes for tensor in weights.tensors.values())
    return sum(tensor.cast(np.float32).nbytes for tensor in weights.tensors.values())
