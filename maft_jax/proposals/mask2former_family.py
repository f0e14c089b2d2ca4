"""The generators mask2former, maskformer and freeseg: networks, weights and preparation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.convert.generators import GeneratorConfig, OpenedGenerator, open_generator, path_of
from maft_jax.hub.names import did_you_mean
from maft_jax.models.generators.fcclip import FcClipConfig
from maft_jax.models.generators.image_preparation import normalised
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.text_classifier import embed_classes
from maft_jax.proposals.device_generator import DeviceGenerator
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.weights import open_weights

_VERSION = 1
"""Raised when the same weights would give other proposals."""
_IMAGES_PER_DEVICE = 4
"""Of accelerators."""


@dataclass(frozen=True)
class FamilyNetwork:
    """A MaskNetwork; its parameters are {"network", "text"}, the latter None or rows of names."""

    config: GeneratorConfig

    def __call__(self, parameters, images, sizes):
        predictions = self.config.make_module().apply(
            {"params": parameters["network"]}, normalised(images, sizes), parameters["text"]
        )
        return predictions.mask_logits, predictions.class_logits


def open_family_generator(name: str, path: str, class_names: Sequence[str]) -> DeviceGenerator:
    """The generator `name` with the weights at `path`.

    FreeSeg reads `class_names`: their embeddings are made by the text tower in the same checkpoint,
    with MAFT's prompts. The others have classes of their own.

    Raises:
        ValueError: no weights are there, they are corrupt, or of another generator.
    """
    if not path or not path_of(path).exists():
        found = f"; there is no {path}{did_you_mean(path)}" if path else ""
        raise ValueError(
            f"config.proposals.path: generator={name} needs the weights of a {name} "
            f"(--config.proposals.path=mask2former-swin-large){found}"
        )
    opened = open_generator(path)
    kind = _kind(opened.config)
    if kind != name:
        raise ValueError(
            f"{path}: {opened.config.describe()}; expected weights for generator={name}, these are "
            f"for generator={kind}"
        )
    network = opened.parameters()
    text = open_weights(path, needs_text=True) if kind == "freeseg" else None

    def load() -> dict:
        rows = None
        if text is not None:
            tower = text.parameters()["text"]
            rows = embed_classes(text.config.text, tower, class_names, PROMPT_TEMPLATES)
        return {"network": network, "text": rows}

    return DeviceGenerator(
        name=name,
        fingerprint=_fingerprint(opened, network, text),
        network=FamilyNetwork(opened.config),
        prepare=opened.preparation.prepare,
        load=load,
        divisor=opened.preparation.divisor,
        align_corners=opened.preparation.align_corners,
        images_per_device=images_per_device(),
    )


def images_per_device() -> int:
    """That a device reads at once; a CPU gains nothing from several."""
    return 1 if jax.default_backend() == "cpu" else _IMAGES_PER_DEVICE


def _kind(config: GeneratorConfig) -> str:
    if isinstance(config, FcClipConfig):
        return "fcclip"
    if not isinstance(config, Mask2FormerConfig):
        return "maskformer"
    return "mask2former" if config.text is None else "freeseg"


def _fingerprint(opened: OpenedGenerator, network: dict, text) -> str:
    """The class names are part of a record's key already."""
    parts = [opened.config, opened.preparation, fingerprint(network)]
    if text is not None:
        parts += [text.config.text, fingerprint(text.parameters()["text"]), PROMPT_TEMPLATES]
    return f"{_VERSION}, {hashlib.sha256(repr(parts).encode()).hexdigest()}"
