"""IP-CLIP: the image tower reading an image and any number of mask proposals at once."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.array_types import Masks
from maft_jax.models.block_stack import through_blocks
from maft_jax.models.clip_vit import VisionTransformer
from maft_jax.models.preprocess import patch_mask
from maft_jax.models.token_rows import MaskedRows


class IPClip(VisionTransformer):
    """The same parameters as VisionTransformer, with proposals from `mask_start_layer` on.

    Below that layer the class token is an ordinary one and masks play no part: a trunk computed
    once for the proposals and the whole image together. Above it one sequence holds the tokens of
    the whole image, if these are wanted, patches that attend to patches only, and proposals,
    copies of the class token that read themselves and their patches; see MaskedRows.
    """

    mask_start_layer: int = 8

    def __post_init__(self):
        if not 0 <= self.mask_start_layer <= self.config.layers:
            raise ValueError(
                f"mask_start_layer={self.mask_start_layer}: expected 0 to {self.config.layers}, "
                "the number of layers of these weights"
            )
        super().__post_init__()

    def encode_proposals(
        self, images: Float[Array, "b h w 3"], masks: Masks
    ) -> Float[Array, "b n e"]:
        """L2-normalised embedding of each proposal of normalised images."""
        if self.mask_start_layer == self.config.layers:
            return self._unmasked_proposals(self(images), masks)
        return self._masked_layers(images, masks, has_whole=False)

    def encode_both(
        self, images: Float[Array, "b h w 3"], masks: Masks
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b e"]]:
        """Embeddings of the proposals and of the whole images, sharing the trunk."""
        if self.mask_start_layer == self.config.layers:
            whole = self(images)
            return self._unmasked_proposals(whole, masks), whole
        features = self._masked_layers(images, masks, has_whole=True)
        return features[:, 1:], features[:, 0]

    def _masked_layers(self, images, masks, has_whole: bool):
        """Embeddings of the whole image, if wanted, and of the proposals."""
        tokens = self.run(self.embed(images), 0, self.mask_start_layer)
        class_token, patches = tokens[:, :1], tokens[:, 1:]
        rows = MaskedRows(patches.shape[1], masks.shape[1], has_whole)
        allowed = patch_mask(masks, self.config.grid(*images.shape[1:3]))
        proposals = jnp.repeat(class_token, rows.num_proposals, axis=1)
        whole = [tokens] if has_whole else []
        tokens = jnp.concatenate([*whole, patches, proposals], axis=1)
        tokens = through_blocks(
            self.blocks[self.mask_start_layer : -1],
            lambda block, tokens: block(tokens, rows.readings, allowed),
            tokens,
            self.loop,
            self.remat,
        )
        return self.project(self.blocks[-1].read(tokens, rows.last_readings, allowed))

    def _unmasked_proposals(self, whole, masks):
        """No layer is masked, so every proposal has the embedding of the whole image."""
        return jnp.repeat(whole[:, None], masks.shape[1], axis=1)
