"""FC-CLIP's golden checkpoint as a file, with a vocabulary of full length."""

import pathlib

import numpy as np
import torch
from safetensors.numpy import load_file

from tests.golden_files import GOLDEN, golden

_TOKEN_TABLE = "backbone.clip_model.token_embedding.weight"
_VOCABULARY = 49408


def checkpoint_tensors() -> dict[str, np.ndarray]:
    """The golden one's, float16; rows of tokens that its texts have not are zeros."""
    tensors = load_file(GOLDEN / "fcclip" / "weights.safetensors")
    rows = tensors[_TOKEN_TABLE]
    tensors[_TOKEN_TABLE] = np.zeros((_VOCABULARY, rows.shape[1]), rows.dtype)
    tensors[_TOKEN_TABLE][golden("fcclip/expected")["vocabulary_ids"]] = rows
    return tensors


def maft_plus_tensors() -> dict[str, np.ndarray]:
    """Those of MAFT+'s: FC-CLIP's as what it was tuned from, and what differs."""
    tensors = checkpoint_tensors()
    clip = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
    teacher = {f"backbone_t.{name.removeprefix('backbone.')}": clip[name] for name in clip}
    return tensors | teacher | load_file(GOLDEN / "fcclip" / "maft_plus_changed.safetensors")


def write_checkpoint(path: pathlib.Path, tensors: dict | None = None) -> pathlib.Path:
    """As detectron2 saves it."""
    tensors = checkpoint_tensors() if tensors is None else tensors
    tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save({"model": tensors, "iteration": 7}, path)
    return path


def class_names() -> list[list[str]]:
    """The golden vocabulary: the names of each class."""
    classes = golden("fcclip/expected")["classes"].tolist()
    return [text.replace(", ", ",").split(",") for text in classes]
