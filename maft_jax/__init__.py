"""Mask-aware fine-tuning of CLIP (MAFT) in JAX.

clip = maft_jax.load("ViT-B-16.pt", mask_start_layer=8)
text = clip.encode_text(["cat", "wall-other"])
features = clip.encode_proposals(images, masks)
"""

from maft_jax.facade import Clip, load

__all__ = ["Clip", "load"]
