"""CLIP as one object: the public Python API."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.config.sections import ModelConfig
from maft_jax.convert.formats import ClipWeights, default_format, write_weights
from maft_jax.models.clip import ClipConfig
from maft_jax.models.encoder import ImageEncoder, MaskingSpec, resolve_masking
from maft_jax.models.encoder_setup import make_encoder
from maft_jax.models.mask_reader import Modules, Tower, cut, taken_apart, with_modules
from maft_jax.models.text_classifier import embed_classes
from maft_jax.runtime.sharding import one_device_mesh
from maft_jax.weights import open_weights


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Architecture and parameters of a CLIP, with the functions that people want of it.

    Every embedding is L2-normalised float32. Arrays may be numpy's or JAX's.
    """

    config: ClipConfig
    parameters: dict = dataclasses.field(repr=False)
    """models.clip.random_parameters says of what; float32."""
    mask_start_layer: int = 8
    """First layer, counted from 0, in which proposals read only their patches."""
    compute_dtype: str = "float32"
    """Of matrix products: float32 or bfloat16."""
    image_size: int = 480
    """Pixels per side at which `maft_jax.segment` has images read, if it is not told another."""
    image_aspect: str = "squash"
    """squash: to squares of that size; keep: it is the short side's, and the ratio stays."""
    mask_pooling: str = "hard"
    """How towers that pool read masks: hard or soft, as config.model.mask_pooling says."""
    mask_rule: str = "maft"
    """How proposals read patches, one of models.attention_pattern.MASK_RULES."""
    class_token: int = 0
    """Of towers with several: the one that is matched with text."""
    modules: Modules | None = None
    """What a run's method trained beside the tower, with which proposals are then read."""

    def __post_init__(self):
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"compute_dtype: expected float32 or bfloat16, got {self.compute_dtype!r}"
            )
        if self.image_aspect not in ("squash", "keep"):
            raise ValueError(f"image_aspect: expected squash or keep, got {self.image_aspect!r}")
        _ = self.encoder  # refuses impossible settings now, not at first use

    def encode_text(
        self, names: Sequence[str], templates: Sequence[str] = PROMPT_TEMPLATES
    ) -> Float[np.ndarray, "c e"]:
        """One embedding per class name, averaged over prompts in which {} stands for the name.

        Raises:
            ValueError: no names, one that does not fit CLIP's context, or no text tower.
        """
        if self.config.text is None:
            raise ValueError(
                "these weights have no text tower; load a whole CLIP of the same embedding "
                f"({self.config.vision.embed_dim}) to embed text"
            )
        return embed_classes(self.config.text, self.parameters["text"], names, templates)

    def encode_image(self, images: ArrayLike) -> Float[Array, "b e"]:
        """One embedding per image, without masks: plain CLIP.

        Args:
            images: [b, h, w, 3] floats, normalised as the tower expects (`encoder.normalise` does
                it to uint8), of any size; position embeddings are resized to it.
        """
        return _encode_image(self.encoder, self.parameters["visual"], _checked_images(images))

    def encode_proposals(
        self, images: ArrayLike, masks: ArrayLike, valid: ArrayLike | None = None
    ) -> Float[Array, "b n e"]:
        """One embedding per mask proposal.

        Args:
            images: as for encode_image.
            masks: [b, n, h', w'] floats in [0, 1], bool, or uint8 with 255 = inside; any
                resolution, covering the whole image. A proposal reads the patches where its mask
                is at least 0.5.
            valid: [b, n] bool; the embeddings of padding (False) are zeros.

        Raises:
            ValueError: shapes or values are wrong, or of class rows that each image adapts, with
                which embeddings alone cannot be compared.
        """
        if self.modules is not None and self.modules.reader.adapts_text:
            raise ValueError(
                "these weights adapt the rows of class names to each image, so that embeddings of "
                "proposals and of names do not go together; use maft_jax.segment, or load "
                "tuned.safetensors of the run, its tower alone"
            )
        images, masks = _checked_images(images), _checked_masks(masks)
        if len(masks) != len(images):
            raise ValueError(f"masks of {len(masks)} images, but {len(images)} images")
        valid = jnp.ones(masks.shape[:2], bool) if valid is None else jnp.asarray(valid, bool)
        if valid.shape != masks.shape[:2]:
            raise ValueError(f"valid: expected shape {masks.shape[:2]}, got {valid.shape}")
        return _encode_proposals(self.encoder, self.tower, images, masks, valid)

    def save(self, path: str | os.PathLike, format_name: str | None = None) -> None:
        """Writes float32 weights: a file or, for transformers and open_clip, a new folder.

        Args:
            format_name: a key of convert.formats.FORMATS. By default a name without ending is a
                folder for transformers, .npz is big_vision's layout, and .safetensors or .pt
                (which needs torch) is OpenAI's, or open_clip's if OpenAI's code would compute
                something else with these weights.

        Raises:
            ValueError: the format cannot hold these weights, or the path cannot be written.
        """
        name = format_name or default_format(path, self.config)
        rules = self.mask_pooling, self.mask_rule, self.class_token
        masking = MaskingSpec(self.mask_start_layer, self.image_size, *rules)
        weights = ClipWeights.of(self.config, self.parameters, masking)
        write_weights(dataclasses.replace(weights, modules=self.modules), path, name)

    @property
    def tower(self) -> Tower:
        """The image tower's parameters, with what reads masks besides."""
        return with_modules(self.parameters["visual"], self.modules)

    @functools.cached_property
    def encoder(self) -> ImageEncoder:
        """The image tower as it is run, on one device."""
        return self.make_encoder()

    def make_encoder(self, attention: str = "auto") -> ImageEncoder:
        """The same with this attention, as config.model.attention names it."""
        model = ModelConfig(
            mask_start_layer=self.mask_start_layer,
            image_size=self.image_size,
            mask_pooling=self.mask_pooling,
            mask_rule=self.mask_rule,
            class_token=self.class_token,
            compute_dtype=self.compute_dtype,
            attention=attention,
        )
        mesh = one_device_mesh()
        return make_encoder(model, self.config.vision, mesh, self.config.vision.default_logit_scale)


def load(
    path: str | os.PathLike,
    mask_start_layer: int | None = None,
    compute_dtype: str = "float32",
    *,
    image_size: int | None = None,
    image_aspect: str = "squash",
    mask_pooling: str | None = None,
    mask_rule: str | None = None,
    class_token: int | None = None,
    activation: str | None = None,
    head_width: int | None = None,
    tokenizer: str | os.PathLike | None = None,
    step: int | None = None,
    pretrained: str | os.PathLike | None = None,
) -> Clip:
    """Reads CLIP weights of any format in convert.formats, recognised by content.

    Args:
        path: .safetensors, a PyTorch state dict, OpenAI's TorchScript archive (no code of which
            runs), .npz, a folder of transformers or open_clip, the workdir of a training run
            (its newest checkpoint), `hf:OWNER/NAME[@REVISION][/FILE]` or `openai:ViT-B/16`, which
            are downloaded once, or "random:SIZE" for random weights.
        mask_start_layer: by default that with which they were tuned, which our runs and files
            say; else the published 8, in towers of up to 8 layers two thirds of them.
        image_size, image_aspect: see Clip; the size by default likewise.
        mask_pooling: of towers that pool: hard or soft; by default as they were tuned, or hard.
        mask_rule, class_token: of towers with class tokens, see Clip; by default likewise.
        activation: quick_gelu, gelu or gelu_tanh, where the weights do not tell it or tell it
            wrongly. A state dict in OpenAI's layout does not: it is taken for quick_gelu, while
            most models that were trained with open_clip expect gelu.
        head_width: of the image tower's attention, likewise.
        tokenizer: file of the text tower's tokenizer, where the tower does not share CLIP's and
            none lies beside the weights.
        step: of a training run: which checkpoint; by default the newest.
        pretrained: of a training run: where the weights that it began with are now, if moved.

    Raises:
        ValueError: the file is absent, corrupt or of another architecture, or
            `mask_start_layer` is not between 0 and the number of layers.
        OSError: a name that is not in the cache cannot be downloaded now.
    """
    weights = open_weights(
        path,
        activation=activation,
        head_width=head_width,
        tokenizer=None if tokenizer is None else os.fspath(tokenizer),
        step=step,
        pretrained=None if pretrained is None else os.fspath(pretrained),
    )
    masking = resolve_masking(
        weights.config.vision,
        weights.masking,
        mask_start_layer,
        image_size,
        mask_pooling=mask_pooling,
        mask_rule=mask_rule,
        class_token=class_token,
    )
    return Clip(
        weights.config,
        weights.parameters(),
        masking.mask_start_layer,
        compute_dtype,
        masking.image_size,
        image_aspect,
        mask_pooling=masking.mask_pooling,
        mask_rule=masking.mask_rule,
        class_token=masking.class_token,
        modules=weights.modules,
    )


@functools.partial(jax.jit, static_argnums=0)
def _encode_image(encoder, visual, images):
    return encoder.encode_images(visual, images)


@functools.partial(jax.jit, static_argnums=0)
def _encode_proposals(encoder, tower, images, masks, valid):
    visual, modules = taken_apart(tower)
    masks = cut(masks, modules.reader.mask_threshold)
    features = modules.reader.read(encoder, visual, modules.parameters, images, masks)
    return jnp.where(valid[..., None], features, 0.0)


def _checked_images(images: ArrayLike) -> Array:
    images = jnp.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            "images: expected [batch, height, width, 3] normalised floats, got "
            f"{images.dtype} {images.shape}; models/preprocess.py's clip_input makes them of uint8"
        )
    return images.astype(jnp.float32)


def _checked_masks(masks: ArrayLike) -> Array:
    masks = jnp.asarray(masks)
    kinds = (jnp.floating, jnp.bool_)
    known = masks.dtype == jnp.uint8 or any(jnp.issubdtype(masks.dtype, kind) for kind in kinds)
    if masks.ndim != 4 or not known or 0 in masks.shape:
        raise ValueError(
            "masks: expected [batch, proposals, height, width] of uint8, bool or floats in "
            f"[0, 1], with at least one proposal, got {masks.dtype} {masks.shape}"
        )
    if isinstance(masks, jax.core.Tracer):  # inside somebody's jit there are no values to check
        return masks
    largest = jnp.max(masks)
    if masks.dtype == jnp.uint8 and largest == 1:
        raise ValueError(
            "masks: uint8 values of 0 and 1 only, but 255 means inside; pass masks.astype(bool)"
        )
    if jnp.issubdtype(masks.dtype, jnp.floating) and largest > 1:
        raise ValueError(f"masks: expected floats in [0, 1], got {largest}; divide or pass uint8")
    return masks
