"""What the program asks of towers: all that training, evaluation and prediction know of them.

An architecture is what weights are read into: a frozen, hashable dataclass whose repr identifies
it. It builds the encoder, which computes with parameters that are given to it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maft_jax.models.array_types import Images, Masks
from maft_jax.models.attention_pattern import MASK_RULES
from maft_jax.models.mask_pooling import DrawsMasks
from maft_jax.models.precision import float32_product
from maft_jax.runtime.mesh_axes import ShardingRule

Parameters = Any
"""A tower's nested dictionary of arrays, or of their shapes."""


@dataclasses.dataclass(frozen=True)
class MaskingSpec:
    """How an image tower was tuned to read proposals, and therefore wants to be used."""

    mask_start_layer: int
    """First layer, counted from 0, in which proposals read only their patches."""
    image_size: int
    """Pixels per side at which images are read."""
    mask_pooling: str = "hard"
    """How towers that pool weigh cells: a key of mask_pooling.RULES. Towers with a class token,
    whose proposals read a patch or do not, know the hard rule alone."""
    mask_rule: str = "maft"
    """One of attention_pattern.MASK_RULES; maft for towers that have no such rules."""
    class_token: int = 0
    """Of towers with several: the one that is matched with text, and that proposals copy."""

    def __post_init__(self):
        if self.mask_rule not in MASK_RULES:
            raise ValueError(f"mask_rule: expected one of {MASK_RULES}, got {self.mask_rule!r:.40}")

    def as_json(self) -> dict[str, Any]:
        """Its fields; those that version 0.1 did not have only where they are no default."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How a tower is run, beside what its architecture and its weights say."""

    masking: MaskingSpec
    mesh: Mesh
    """The devices, which need not be there."""
    dtype: DTypeLike = jnp.float32
    """Of matrix products."""
    attention: str = "auto"
    """A name of attention.resolve_name, of which a tower without attention takes no notice."""
    remat: bool = False
    """Blocks are computed again in the backward pass."""
    scan_blocks: bool = False
    """Blocks are a loop over stacked weights."""
    logit_scale: float = 100.0
    """Factor of similarities, decided."""
    probabilities: str = "softmax"
    """Of classes: softmax, or sigmoid where the weights have a bias for it."""


@runtime_checkable
class ImageArchitecture(Protocol):
    """What an image tower is, without its weights."""

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings, which the text tower shares."""

    @property
    def default_trainable(self) -> tuple[str, ...]:
        """Regular expressions over the paths of parameters that are tuned unless told otherwise."""

    @property
    def default_masking(self) -> MaskingSpec:
        """For weights that do not say how they were tuned."""

    @property
    def default_logit_scale(self) -> float:
        """What similarities are multiplied by before the softmax unless settings say otherwise."""

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        """How parameters are split, first match; fsdp is added where these leave room."""

    def make_encoder(self, settings: EncoderSettings) -> "ImageEncoder":
        """The encoder; raises ValueError where the settings do not suit the architecture."""

    def init(self, key: jax.Array) -> Parameters:
        """Random float32 parameters."""

    def step_flops(self, masking: MaskingSpec, num_proposals: int, *, teacher: bool = True) -> int:
        """Arithmetic of tuning on one image, by formula.

        Without `teacher` where its probabilities are precomputed.
        """

    def describe(self) -> str:
        """The architecture in a few words, such as 12 layers of width 768, patches of 16."""


@runtime_checkable
class ImageEncoder(Protocol):
    """An image tower as it is run: static and hashable, given its parameters with every call.

    Pixels are normalised floats as `prepare` makes them. Embeddings are L2-normalised float32.
    """

    @property
    def architecture(self) -> ImageArchitecture:
        """What built it."""

    @property
    def dtype(self) -> DTypeLike:
        """Of matrix products."""

    def normalise(self, images: Images) -> Float[Array, "b h w 3"]:
        """uint8 pixels as the tower expects them; floats are taken as normalised."""

    def prepare(self, images: Images, size: tuple[int, int]) -> Float[Array, "b h2 w2 3"]:
        """Normalised and resized to height and width `size`."""

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the grid on which masks are read in images of this size.

        Raises:
            ValueError: the images are too small.
        """

    def scaled(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """The height and width nearest to scale times `size` that the tower can read whole."""

    def in_compute_dtype(self, parameters: Parameters) -> Parameters:
        """Weights that products read, rounded to `dtype`; all else as it is."""

    def encode_images(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"]
    ) -> Float[Array, "b e"]:
        """Of whole images."""

    def encode_proposals(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"], masks: Masks
    ) -> Float[Array, "b n e"]:
        """Of the proposals alone."""

    def encode_both(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"], masks: Masks
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b e"]]:
        """Of the proposals and of the whole images, with what they share computed once."""

    def logits(
        self, features: Float[Array, "*rows e"], text: Float[Array, "c e"]
    ) -> Float[Array, "*rows c"]:
        """Class logits: of CLIP the scaled similarities."""

    def probabilities(self, logits: Float[Array, "*rows c"]) -> Float[Array, "*rows c"]:
        """Class probabilities: the softmax over the classes, or what settings ask for."""


@runtime_checkable
class MapEncoder(Protocol):
    """What encoders have besides that pool proposals from one map of an image.

    Methods whose modules read the map ask for it.
    """

    def feature_map(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"]
    ) -> Float[Array, "b grid_h grid_w d"]:
        """The map that proposals are pooled from."""

    def embed(
        self, parameters: Parameters, pooled: Float[Array, "*rows d"]
    ) -> Float[Array, "*rows e"]:
        """Of pooled values, or of single cells; not normalised."""

    def pool_proposals(
        self,
        parameters: Parameters,
        maps: Float[Array, "b grid_h grid_w d"],
        size: tuple[int, int],
        masks: Masks,
    ) -> Float[Array, "b n e"]:
        """What encode_proposals gives of pixels of this height and width, whose map is known."""

    def encode_drawn(
        self,
        parameters: Parameters,
        pixels: Float[Array, "b h w 3"],
        masks: Masks,
        draw: DrawsMasks,
        mask_scale: int,
    ) -> Float[Array, "b n e"]:
        """Embeddings of proposals that are pooled by the maps that a model draws of them.

        Of masks it reads mask_scale rows, and columns, for each one of the grid.
        """


@runtime_checkable
class TextArchitecture(Protocol):
    """What a text tower is, without its weights, and how it reads text."""

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings."""

    def init(self, key: jax.Array) -> Parameters:
        """Random float32 parameters."""

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Rows of tokens; raises ValueError for a text that does not fit."""

    def encode(
        self, parameters: Parameters, tokens: Int[Array | np.ndarray, "b length"]
    ) -> Float[Array, "b e"]:
        """L2-normalised float32 embeddings."""


def class_logits(
    encoder: ImageEncoder, features: Float[Array, "*rows e"], text: Float[Array, "c *names e"]
) -> Float[Array, "*rows c"]:
    """Logits of every class; of one with several names the maximum over them, as in FC-CLIP."""
    if text.ndim == 2:
        return encoder.logits(features, text)
    of_names = encoder.logits(features, text.reshape(-1, text.shape[-1]))
    return best_of_names(of_names, text.shape[:-1])


def best_of_names(
    scores: Float[Array, "*rows all_names"], shape: tuple[int, ...]
) -> Float[Array, "*rows c"]:
    """Of every class the maximum over its names, by the shape [c] or [c, names] of the rows."""
    if len(shape) == 1:
        return scores
    return jnp.max(scores.reshape(*scores.shape[:-1], *shape), axis=-1)


def refuse_mask_pooling(masking: MaskingSpec) -> None:
    """For towers whose proposals are class tokens.

    Raises:
        ValueError: a rule is asked for that such a tower cannot follow.
    """
    if masking.mask_pooling != "hard":
        raise ValueError(
            f"mask_pooling={masking.mask_pooling}: for image towers that pool; here proposals are "
            "class tokens, which attend to a patch or do not; expected hard"
        )


def scaled_similarities(
    features: Float[Array, "*rows e"], text: Float[Array, "c e"], scale: float, dtype: DTypeLike
) -> Float[Array, "*rows c"]:
    """CLIP's logits, in float32, after a tower whose own products are in `dtype`."""
    flat = features.reshape(-1, features.shape[-1])
    similarities = float32_product(flat, text.T, dtype)
    return scale * similarities.reshape(*features.shape[:-1], len(text))


def refuse_start_layer(masking: MaskingSpec, reason: str) -> None:
    """For towers in which masks play no part below the head, of which layer 0 is written.

    Raises:
        ValueError: another layer is asked for; `reason` says how such a tower reads proposals.
    """
    if masking.mask_start_layer:
        raise ValueError(
            f"mask_start_layer={masking.mask_start_layer}: has no meaning for this image tower, "
            f"{reason}; expected 0, or -1 in a configuration"
        )
    if (masking.mask_rule, masking.class_token) != ("maft", 0):
        raise ValueError(
            f"mask_rule={masking.mask_rule}, class_token={masking.class_token}: have no meaning "
            f"for this image tower, {reason}; leave them as they are"
        )


def resolve_masking(
    architecture: ImageArchitecture,
    noted: MaskingSpec | None,
    mask_start_layer: int | None = None,
    image_size: int | None = None,
    mask_pooling: str | None = None,
    mask_rule: str | None = None,
    class_token: int | None = None,
) -> MaskingSpec:
    """What is given, else what the weights note, else the architecture's default."""
    noted = noted or architecture.default_masking
    return MaskingSpec(
        noted.mask_start_layer if mask_start_layer is None else mask_start_layer,
        noted.image_size if image_size is None else image_size,
        noted.mask_pooling if mask_pooling is None else mask_pooling,
        noted.mask_rule if mask_rule is None else mask_rule,
        noted.class_token if class_token is None else class_token,
    )
