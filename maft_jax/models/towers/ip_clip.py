"""IP-CLIP: a tower with a class token that reads an image and any number of proposals at once."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.models.array_types import Images, Masks
from maft_jax.models.attention_pattern import ProposalSequence
from maft_jax.models.block_stack import through_blocks
from maft_jax.models.encoder import Parameters
from maft_jax.models.preprocess import patch_mask, soft_patch_mask
from maft_jax.models.towers.tower_encoder import TowerEncoder


@dataclasses.dataclass(frozen=True)
class IPClip(TowerEncoder):
    """The models.encoder.ImageEncoder of a tower whose proposals are copies of its class token.

    Below `mask_start_layer` the class token is an ordinary one and masks play no part: a trunk
    computed once for the proposals and the whole image together. Above it one sequence holds
    patches, proposals, and the whole image's tokens if these are wanted or the rule needs them
    (ProposalSequence).
    """

    tower: Any
    """A VisionTransformer, or a module with the same methods."""
    mask_start_layer: int
    logit_scale: float = 100.0
    mask_rule: str = "maft"
    """One of attention_pattern.MASK_RULES."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.mask_start_layer <= self.tower.config.layers:
            raise ValueError(
                f"mask_start_layer={self.mask_start_layer}: expected 0 to "
                f"{self.tower.config.layers}, the number of layers of these weights"
            )

    def normalise(self, images: Images) -> Float[Array, "b h w 3"]:
        return self.architecture.normalise(images)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.tower.config.proposal_grid(*size)

    def encode_images(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"]
    ) -> Float[Array, "b e"]:
        return self.tower.apply({"params": parameters}, pixels)

    def encode_proposals(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"], masks: Masks
    ) -> Float[Array, "b n e"]:
        if self.mask_start_layer == self.tower.config.layers:
            return _repeated(self.encode_images(parameters, pixels), masks)
        return self._masked(parameters, pixels, masks, has_whole=False)

    def encode_both(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"], masks: Masks
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b e"]]:
        if self.mask_start_layer == self.tower.config.layers:
            whole = self.encode_images(parameters, pixels)
            return _repeated(whole, masks), whole
        features = self._masked(parameters, pixels, masks, has_whole=True)
        return features[:, 1:], features[:, 0]

    def _masked(self, parameters, pixels, masks, has_whole: bool):
        layers_above = functools.partial(
            _masked_layers,
            start=self.mask_start_layer,
            rule=self.mask_rule,
            has_whole=has_whole,
        )
        return self.tower.apply({"params": parameters}, pixels, masks, method=layers_above)


def _masked_layers(tower, images, masks, start: int, rule: str, has_whole: bool):
    """Embeddings of the whole image, if wanted, and of the proposals, by a bound tower."""
    grid = tower.config.proposal_grid(*images.shape[1:3])
    tokens = tower.run(tower.embed(images), 0, start, grid)
    class_token = tokens[:, tower.class_token : tower.class_token + 1]
    patches = tokens[:, tower.class_tokens :]
    sequence = ProposalSequence(
        patches.shape[1],
        masks.shape[1],
        has_whole,
        tower.class_tokens,
        tower.class_token,
        rule,
    )
    if rule == "maskclippp":
        allowed = soft_patch_mask(masks, grid)
    else:
        allowed = sequence.among_keys(patch_mask(masks, grid))
    rotation = tower.rotation(grid, sequence.all_patches, sequence.proposals.stop)
    proposals = jnp.repeat(class_token, sequence.num_proposals, axis=1)
    whole = [tokens] if sequence.whole else []
    tokens = through_blocks(
        tower.blocks[start:-1],
        lambda block, tokens: block(tokens, sequence.pattern, allowed, rotation),
        jnp.concatenate([*whole, *([patches] if rule == "maft" else []), proposals], axis=1),
        tower.loop,
        tower.remat,
    )
    return tower.project(tower.blocks[-1].read(tokens, sequence.last_pattern, allowed, rotation))


def _repeated(whole, masks):
    """No layer is masked, so every proposal has the embedding of the whole image."""
    return jnp.repeat(whole[:, None], masks.shape[1], axis=1)
