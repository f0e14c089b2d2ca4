"""Evaluations small enough for tests, and the same counts computed slowly in PyTorch."""

import pathlib
import re
import signal
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import torch
import torch.nn.functional as F
from etils import epath

from input_pipeline.records.record_source import RecordSource
from input_pipeline.sample_folder import write_sample_folder
from maft_jax.benchmarks.pytorch.official_step import proposal_features
from maft_jax.benchmarks.pytorch.openai_clip import clip_from_state_dict
from maft_jax.config import Config, from_config_dict, preset
from maft_jax.config.sections import MeshConfig
from maft_jax.convert.formats import ClipWeights, write_weights
from maft_jax.convert.openai import to_openai
from maft_jax.evaluators.data_sets import EvaluationSet, find_evaluation_data
from maft_jax.evaluators.evaluation import Evaluation
from maft_jax.evaluators.weights import EvaluatedWeights, read_evaluated_weights
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.preprocess import PIXEL_MEAN, PIXEL_STD
from maft_jax.models.text.tokenizer import tokenize
from maft_jax.runtime import tree_rules
from maft_jax.runtime.sharding import make_mesh
from maft_jax.runtime.stop_signals import StopSignals

SETTINGS = {
    "task": "evaluate",
    "model.mask_start_layer": -1,
    "model.image_size": 64,
    "data.templates": ("a photo of a {}.", "There is a {} in the scene"),
    "proposals.num_proposals": 6,
    "evaluation.short_side": 120,
    "evaluation.num_pictures": 2,
}
"""Images of the sample folder have 120 rows and 160 columns, so that nothing is resized."""


def make_evaluation_data(folder: pathlib.Path, num_images: int = 7) -> dict:
    """Settings that point to weights, a fresh sample folder and an empty cache."""
    write_sample_folder(folder / "data", num_images)
    return {
        "model.pretrained": str(write_telling_weights(folder / "clip.safetensors")),
        "evaluation.roots.folder": str(folder / "data"),
        "data.cache_dir": str(folder / "cache"),
    }


def write_telling_weights(path: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Random weights in which attention is strong enough for proposals to differ in class."""
    clip = CLIP_SIZES["tiny"]
    leaves = tree_rules.flatten(random_parameters(clip, seed))
    for name, leaf in leaves.items():
        if re.search(r"^visual/.*(in_proj|out_proj)/kernel", name):
            leaves[name] = 4 * leaf
    write_weights(ClipWeights.of(clip, tree_rules.unflatten(leaves)), path, "openai")
    return path


def evaluation_config(data: dict, **changes) -> Config:
    """SETTINGS on `data`; changes use "__" for the dot of a section."""
    config = preset("official")
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(SETTINGS | data | changes)
    return from_config_dict(config)


def open_all(config: Config) -> list[EvaluationSet]:
    """All data sets of a configuration, their records completed."""
    return [found.open() for found in find_evaluation_data(config)]


def set_up(config: Config, num_devices: int = 1, **mesh) -> tuple[Evaluation, EvaluatedWeights]:
    """An evaluation on the first few devices, and the weights to call it with."""
    mesh = make_mesh(MeshConfig(**mesh), jax.devices()[:num_devices])
    weights = read_evaluated_weights(config, mesh)
    text = weights.parameters["text"]
    return Evaluation(weights.config, weights.clip, text, mesh), weights


def confusion_of(config: Config, folder: pathlib.Path, num_devices: int = 1, **mesh) -> np.ndarray:
    """Counts of the only data set."""
    evaluation, weights = set_up(config, num_devices, **mesh)
    visual = weights.parameters["visual"]
    [result] = evaluation.evaluate(visual, weights.origin, epath.Path(folder))
    return result.confusion


class StopAfter(StopSignals):
    """A signal that comes after so many batches."""

    def __init__(self, num_batches: int, number: int = signal.SIGTERM):
        self._number = number
        self._left = num_batches

    def agreed(self) -> int | None:
        """StopSignals has the same."""
        self._left -= 1
        return self._number if self._left < 1 else None


@torch.no_grad()
def slow_confusion(
    parameters: dict,
    records: RecordSource,
    config: Config,
    start_layer: int,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> np.ndarray:
    """Counts of images whose short side is config.evaluation.short_side, pixel by pixel."""
    clip = _in_torch(parameters)
    names, side = records.class_names, config.model.image_size
    groups = [(name, *(synonyms or {}).get(name, ())) for name in names]
    texts = [
        torch.stack([_class_embedding(clip, name, config.data.templates) for name in group])
        for group in groups
    ]
    confusion = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    for example in (records[i] for i in range(len(records))):
        height, width = example.image.shape[:2]
        image, padding = _padded_and_resized(example.image, side)
        masks = torch.tensor(example.proposals / np.float32(255))[None]
        masks = F.interpolate(masks, (height, width), mode="bilinear", align_corners=True)
        features = proposal_features(clip.visual, image, F.pad(masks, padding), start_layer)[0]
        logits = [(config.loss.logit_scale or 100) * features @ text.T for text in texts]
        probabilities = torch.stack([rows.max(-1).values for rows in logits], -1).softmax(-1)
        scores = torch.einsum("nc,nhw->chw", probabilities, masks[0])
        predicted = scores.argmax(0).numpy()
        for row, column in zip(predicted.ravel(), example.label_map.ravel(), strict=True):
            confusion[row, column] += 1  # -1, unlabelled, is the last column
    return confusion


@torch.no_grad()
def slow_mask_counts(
    parameters: dict, records: RecordSource, config: Config, start_layer: int
) -> np.ndarray:
    """Ground-truth masks of each class, and those of them that are given it."""
    clip, names = _in_torch(parameters), records.class_names
    text = torch.stack([_class_embedding(clip, name, config.data.templates) for name in names])
    counts = np.zeros((len(names), 2), np.int64)
    for example in (records[i] for i in range(len(records))):
        image, padding = _padded_and_resized(example.image, config.model.image_size)
        shown = np.unique(example.label_map[example.label_map >= 0])
        masks = torch.tensor((example.label_map == shown[:, None, None]).astype(np.float32))[None]
        features = proposal_features(clip.visual, image, F.pad(masks, padding), start_layer)[0]
        for label, feature in zip(shown, features, strict=True):
            counts[label] += 1, int((feature @ text.T).argmax()) == label
    return counts


def _in_torch(parameters: dict):
    return clip_from_state_dict(
        {name: torch.tensor(value) for name, value in to_openai(parameters).items()}
    )


def _padded_and_resized(image: np.ndarray, side: int):
    """As CLIP reads it, and the padding that its masks get, too."""
    padding = (0, -image.shape[1] % 32, 0, -image.shape[0] % 32)
    x = torch.tensor((image - PIXEL_MEAN) / PIXEL_STD)
    x = F.pad(x.permute(2, 0, 1)[None], padding)
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False), padding


def _class_embedding(clip, name, templates):
    tokens = tokenize([template.format(name) for template in templates], 77)
    rows = F.normalize(clip.encode_text(torch.tensor(np.asarray(tokens)).long()), dim=-1)
    return F.normalize(rows.mean(0), dim=0)
