"""The library that made the weights and our towers, side by side on the same random inputs."""

import dataclasses
import os
from collections.abc import Mapping

import jax
import numpy as np

from maft_jax.convert import library_embeddings as libraries
from maft_jax.convert.class_token_embeddings import eva02_embeddings, tips_embeddings
from maft_jax.convert.formats import ClipWeights
from maft_jax.convert.open_clip import OPEN_CLIP, OPEN_CLIP_CUSTOM_TEXT
from maft_jax.convert.siglip_embeddings import siglip_embeddings
from maft_jax.convert.timm_embeddings import convnext_embeddings, timm_vit_embeddings
from maft_jax.convert.transformers_clip import TRANSFORMERS
from maft_jax.models.clip import ClipConfig
from maft_jax.models.encoder import EncoderSettings, MaskingSpec
from maft_jax.models.towers.clip_vit import VisionConfig
from maft_jax.models.towers.convnext import ConvNextConfig
from maft_jax.models.towers.eva02 import Eva02Config
from maft_jax.models.towers.siglip import SigLipVisionConfig
from maft_jax.models.towers.tips import TipsConfig
from maft_jax.runtime.sharding import one_device_mesh

TOLERANCE = 1e-4
"""Largest difference of L2-normalised float32 embeddings that rounding explains in deep towers."""

_NUM_IMAGES, _NUM_TEXTS, _NUM_MASKS = 2, 3, 5
_DESCRIPTIONS = {
    "images": f"{_NUM_IMAGES} images",
    "texts": f"{_NUM_TEXTS} texts",
    "masks": f"{_NUM_MASKS} masks on each image",
}
_END_OF_TEXT = 49407
_PLAIN = "plain PyTorch"
_POOLING = (ConvNextConfig, SigLipVisionConfig)
_CLASS_TOKEN = (VisionConfig, Eva02Config, TipsConfig)
_OPEN_CLIP_LAYOUTS = {layout.name: layout for layout in (OPEN_CLIP, OPEN_CLIP_CUSTOM_TEXT)}


class VerificationFailed(Exception):
    """The library and we compute different embeddings."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Largest difference between L2-normalised embeddings."""

    inputs: str
    library: str
    largest_difference: float

    def __str__(self) -> str:
        return f"{self.inputs:<24} {self.library:<24} {self.largest_difference:.1e}"


@dataclasses.dataclass(frozen=True)
class _Inputs:
    images: np.ndarray
    """[b, size, size, 3], normalised as the tower's."""
    tokens: np.ndarray
    """[k, length] of int32."""
    masks: np.ndarray
    """[b, n, grid, grid] bool; the first of each image is empty."""


def verify(path: str | os.PathLike | None, weights: ClipWeights, seed: int = 0) -> list[Comparison]:
    """Compares embeddings of random images, texts and masks; masks with plain PyTorch.

    Args:
        path: what `weights` was read from, for its library to read by itself. If it is None, or
            the format is of no library (OpenAI's and MAFT's), plain PyTorch takes its place.

    Raises:
        ValueError: the library is not installed, or there is none to compare such towers with.
        VerificationFailed: a difference is above TOLERANCE; all are in the message.
    """
    vision, known = weights.config.vision, (*_CLASS_TOKEN, *_POOLING)
    if not isinstance(vision, known):
        where = "" if path is None else f"{path}: "
        raise ValueError(
            f"{where}verification compares {', '.join(kind.__name__ for kind in known)} with the "
            f"library of the format or plain PyTorch, and this tower is {type(vision).__name__}; "
            "a branch in maft_jax/convert/verification.py says what to compare it with"
        )
    inputs = _random_inputs(weights.config, seed)
    parameters = weights.parameters()
    ours = _our_embeddings(weights.config, parameters, inputs)
    found = [
        Comparison(what, library, float(np.abs(ours[kind] - embeddings).max()))
        for kind, what, library, embeddings in _their_embeddings(path, weights, parameters, inputs)
    ]
    if not all(comparison.largest_difference <= TOLERANCE for comparison in found):  # NaN is not
        lines = "\n  ".join(map(str, found))
        activation = getattr(weights.config.vision, "activation", None)
        advice = f"Is {activation} the right activation? --activation states another"
        raise VerificationFailed(
            f"{path}: embeddings differ by more than {TOLERANCE:.0e}:\n  {lines}"
            + (f"\n{advice}" if activation else "")
        )
    return found


def _random_inputs(config: ClipConfig, seed: int) -> _Inputs:
    rng = np.random.default_rng(seed)
    size = config.vision.image_size
    images = rng.normal(size=(_NUM_IMAGES, size, size, 3)).astype(np.float32)
    length, end = 2, 1
    if config.text is not None:
        length = config.text.context_length
        end = min(_END_OF_TEXT, config.text.vocab_size - 1)
    tokens = np.zeros((_NUM_TEXTS, length), np.int32)
    for row in tokens:
        last = int(rng.integers(1, length))
        row[:last] = rng.integers(0, end, last)
        row[last] = end
    shape = (_NUM_IMAGES, _NUM_MASKS, *config.vision.native_grid)
    masks = rng.integers(0, 2, shape).astype(bool)
    masks[:, 0] = False
    return _Inputs(images, tokens, masks)


def _our_embeddings(config: ClipConfig, parameters: Mapping, inputs: _Inputs) -> dict:
    image_size = config.vision.default_masking.image_size
    masking = MaskingSpec(_first_masked_layer(config), image_size)
    settings = EncoderSettings(masking, one_device_mesh(), attention="xla")
    encoder, visual = config.vision.make_encoder(settings), parameters["visual"]
    found = {
        "images": jax.jit(encoder.encode_images)(visual, inputs.images),
        "masks": jax.jit(encoder.encode_proposals)(visual, inputs.images, inputs.masks),
    }
    if config.text is not None:
        found["texts"] = config.text.encode(parameters["text"], inputs.tokens)
    return {name: np.asarray(value) for name, value in found.items()}


def _their_embeddings(path, weights: ClipWeights, parameters: Mapping, inputs: _Inputs):
    """(key of _our_embeddings, description, library, embeddings) of each kind of input."""
    config = weights.config
    name = weights.format_name if path is not None else ""
    images, tokens = inputs.images, inputs.tokens
    if isinstance(config.vision, _POOLING):
        library, found = _pooled_embeddings(path, name, config, parameters, inputs)
        for kind, embeddings in found.items():
            yield kind, _DESCRIPTIONS[kind], library, embeddings
        return
    if isinstance(config.vision, Eva02Config | TipsConfig):  # of masks no library knows anything
        if config.text is None:
            library, found = timm_vit_embeddings(config, parameters, images)
        else:
            is_eva02 = isinstance(config.vision, Eva02Config)
            read = eva02_embeddings if is_eva02 else tips_embeddings
            library, found = read(config, parameters, images, tokens)
        for kind, embeddings in found.items():
            yield kind, _DESCRIPTIONS[kind], library, embeddings
        return
    if name == TRANSFORMERS.name:
        library, found = libraries.transformers_embeddings(path, config, images, tokens)
    elif name in _OPEN_CLIP_LAYOUTS:
        layout = _OPEN_CLIP_LAYOUTS[name]
        library, found = libraries.open_clip_embeddings(path, config, layout, images, tokens)
    elif name and name.startswith("big_vision"):
        library, found = libraries.big_vision_embeddings(path, config.vision, images)
    else:
        library, found = _PLAIN, _plain_embeddings(config, parameters, inputs)
    for kind, embeddings in found.items():
        yield kind, _DESCRIPTIONS[kind], library, embeddings
    masked = libraries.plain_image_embeddings(
        config.vision, parameters["visual"], images, inputs.masks, _first_masked_layer(config)
    )
    yield "masks", _DESCRIPTIONS["masks"], _PLAIN, masked


def _pooled_embeddings(path, name: str, config: ClipConfig, parameters: Mapping, inputs: _Inputs):
    """Library and embeddings of towers without a class token, those of masks among them."""
    given = config, parameters, inputs.images, inputs.tokens, inputs.masks
    if isinstance(config.vision, ConvNextConfig):
        return convnext_embeddings(path if name in ("open_clip", "timm") else None, *given)
    if name == "timm":
        return timm_vit_embeddings(*given[:3])
    is_folder = name == TRANSFORMERS.name and os.path.isdir(path)
    return siglip_embeddings(path if is_folder else None, *given)


def _plain_embeddings(config: ClipConfig, parameters: Mapping, inputs: _Inputs) -> dict:
    visual, images = parameters["visual"], inputs.images
    found = {"images": libraries.plain_image_embeddings(config.vision, visual, images)}
    if config.text is not None:
        text = parameters["text"]
        found["texts"] = libraries.plain_text_embeddings(config.text, text, inputs.tokens)
    return found


def _first_masked_layer(config: ClipConfig) -> int:
    """Late enough for plain layers, early enough for masked ones; 0 in a tower that pools."""
    if isinstance(config.vision, _POOLING):
        return 0
    return config.vision.layers * 2 // 3
