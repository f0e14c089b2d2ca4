"""IP-CLIP: the image tower reading an image and any number of mask proposals at once."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.array_types import Masks
from maft_jax.models.block_stack import through_blocks
from maft_jax.models.clip_vit import VisionTransformer
from maft_jax.models.preprocess import patch_mask


class IPClip(VisionTransformer):
    """The same parameters as VisionTransformer, with proposals from `mask_start_layer` on.

    Below that layer the class token is an ordinary one and masks play no part, so that trunk is
    computed once for the proposals and the whole image together. Above it the patches attend to
    patches only, and every proposal, a copy of the class token, reads itself and its patches.
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
        return self._masked_layers(self._trunk(images), images, masks)

    def encode_both(
        self, images: Float[Array, "b h w 3"], masks: Masks
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b e"]]:
        """Embeddings of the proposals and of the whole images, sharing the trunk."""
        if self.mask_start_layer == self.config.layers:
            whole = self(images)
            return self._unmasked_proposals(whole, masks), whole
        tokens = self._trunk(images)
        streams, allowed = self._streams(tokens, images, masks)

        def step(block, carry):
            streams, tokens = carry
            return block.with_proposals(*streams, allowed), block(tokens)

        streams, tokens = self._upper_layers(step, (streams, tokens))
        return self._read(*streams, allowed), self.read_class_token(tokens)

    def _trunk(self, images):
        return self.run(self.embed(images), 0, self.mask_start_layer)

    def _masked_layers(self, tokens, images, masks):
        streams, allowed = self._streams(tokens, images, masks)
        streams = self._upper_layers(
            lambda block, streams: block.with_proposals(*streams, allowed), streams
        )
        return self._read(*streams, allowed)

    def _streams(self, tokens, images, masks):
        """Proposals and patches as they enter the masked layers, and who reads whom."""
        allowed = patch_mask(masks, self.config.grid(*images.shape[1:3]))
        class_token, patches = tokens[:, :1], tokens[:, 1:]
        return (jnp.repeat(class_token, masks.shape[1], axis=1), patches), allowed

    def _upper_layers(self, step, carry):
        blocks = self.blocks[self.mask_start_layer : -1]
        return through_blocks(blocks, step, carry, self.loop, self.remat)

    def _read(self, proposals, patches, allowed):
        return self.project(self.blocks[-1].read_patches(proposals, patches, allowed))

    def _unmasked_proposals(self, whole, masks):
        """No layer is masked, so every proposal has the embedding of the whole image."""
        return jnp.repeat(whole[:, None], masks.shape[1], axis=1)
