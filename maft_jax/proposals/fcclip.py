"""The generator fcclip: masks and class logits of a checkpoint of FC-CLIP or MAFT+."""

import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.convert.formats import ClipWeights
from maft_jax.convert.generators import OpenedGenerator, open_generator
from maft_jax.hub.names import did_you_mean
from maft_jax.models.generators.fcclip import FcClipConfig
from maft_jax.models.generators.fcclip_network import FcClipNetwork, make_network
from maft_jax.models.text_classifier import embed_classes, embed_synonyms
from maft_jax.proposals.device_generator import DeviceGenerator
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.weights import open_weights

_NAME = "fcclip"
_VERSION = 1
"""Raised when the same weights would give other proposals."""


@dataclass(frozen=True)
class _MasksAndClasses:
    """The MaskNetwork: what the generator says, not what CLIP makes of its masks."""

    network: FcClipNetwork

    def __call__(self, parameters, images, sizes):
        return self.network(parameters["networks"], images, sizes, parameters["text"])[:2]


def open_fcclip_generator(
    path: str, class_names: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> DeviceGenerator:
    """The generator with the weights at `path`, whose class logits are over these classes.

    Names are embedded by the text tower in the same checkpoint, with MAFT's prompts; a class scores
    the maximum over its names.

    Raises:
        ValueError: no weights are there, they are corrupt, or of another generator.
    """
    if not path or not pathlib.Path(path).exists():
        found = f"; there is no {path}{did_you_mean(path)}" if path else ""
        raise ValueError(
            f"config.proposals.path: generator={_NAME} needs a checkpoint of FC-CLIP or MAFT+ "
            f"(--config.proposals.path=fcclip.pth){found}"
        )
    clip, opened = open_fcclip(path)
    networks = read_parameters(clip, opened)
    tower = clip.parameters()["text"]

    def load() -> dict:
        embed = functools.partial(embed_classes, clip.config.text, tower)
        with_prompts = functools.partial(embed, templates=PROMPT_TEMPLATES)
        if synonyms:
            rows = embed_synonyms(with_prompts, class_names, synonyms, clip.config.text.tokenize)
        else:
            rows = with_prompts(class_names)
        return {"networks": networks, "text": rows}

    parts = [opened.config, opened.preparation, clip.config, fingerprint(networks)]
    parts += [fingerprint(tower), PROMPT_TEMPLATES, sorted(synonyms.items())]
    return DeviceGenerator(
        name=_NAME,
        fingerprint=f"{_VERSION}, {hashlib.sha256(repr(parts).encode()).hexdigest()}",
        network=_MasksAndClasses(make_network(clip.config.vision, opened.config, "float32")),
        prepare=opened.preparation.prepare,
        load=load,
        divisor=opened.preparation.divisor,
        align_corners=opened.preparation.align_corners,
    )


def open_fcclip(path: str | os.PathLike) -> tuple[ClipWeights, OpenedGenerator]:
    """The CLIP and the generator of a checkpoint, whose values are read later.

    Raises:
        ValueError: it is of another kind, corrupt, or has tensors that nobody knows.
    """
    opened = open_generator(path)
    if not isinstance(opened.config, FcClipConfig):
        raise ValueError(
            f"{path}: {opened.config.describe()}; expected a checkpoint of FC-CLIP, whose "
            "generator reads the maps of its CLIP"
        )
    return open_weights(path, needs_text=True), opened


def read_parameters(clip: ClipWeights, opened: OpenedGenerator) -> dict:
    """Those that FcClipNetwork takes, on the host."""
    return {"visual": clip.parameters()["visual"], "generator": opened.parameters()}
