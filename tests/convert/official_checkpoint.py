"""A checkpoint in the official MAFT layout: its names, shapes and dtypes, most values random."""

import numpy as np
import safetensors.numpy
import torch

from tests.golden_files import GOLDEN, golden

_DTYPES = {"F16": np.float16, "F32": np.float32}


def official_tensors() -> dict[str, np.ndarray]:
    """The student is the one of the golden outputs, everything else is random."""
    rng = np.random.default_rng(0)
    tensors = {}
    for line in (GOLDEN / "freeseg_maft_small_layout.tsv").read_text().splitlines():
        name, dtype, shape = line.split("\t")
        shape = [int(size) for size in shape.split("x") if size]
        values = rng.standard_normal(shape, np.float32) * 0.1
        tensors[name] = np.asarray(values, _DTYPES[dtype])
    student = safetensors.numpy.load_file(GOLDEN / "freeseg_maft_small_ipclip.safetensors")
    assert set(student) < set(tensors)
    return tensors | student


def official_system() -> dict[str, np.ndarray]:
    """The whole golden system: what a segmentation reads has its values, the rest is random.

    Of the token embeddings those of the golden class names and MAFT's prompts.
    """
    tensors, system = official_tensors(), dict(golden("freeseg_maft_small_system"))
    tokens, embedding = system.pop("tokens"), "clip_adapter.clip_model.token_embedding.weight"
    tensors[embedding][tokens] = system.pop(embedding)
    assert set(system) < set(tensors)
    return tensors | {name: np.asarray(system[name], tensors[name].dtype) for name in system}


def as_pth(tensors: dict[str, np.ndarray]) -> dict:
    """What detectron2's trainer gives to torch.save."""
    model = {name: torch.from_numpy(value) for name, value in tensors.items()}
    moments = {0: {"step": torch.tensor(7.0), "exp_avg": torch.randn(5)}}
    return {
        "model": model,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "iteration": 999,
    }
