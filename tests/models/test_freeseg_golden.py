"""The official system's encoder: from its image and mask logits to its proposal features."""

import jax
import jax.numpy as jnp
import numpy as np

from maft_jax.convert.openai import RULES
from maft_jax.models.preprocess import PIXEL_MEAN, PIXEL_STD, clip_input
from maft_jax.models.resize import resize
from maft_jax.models.towers.clip_vit import VisionConfig, VisionTransformer
from tests.golden_files import GOLDEN, golden
from tests.in_memory_weights import load_state_dict, to_ours
from tests.tiny_models import ip_clip

VISION = VisionConfig(width=128, layers=10, patch_size=16, image_size=96, embed_dim=64)


def official_student():
    tensors = load_state_dict(GOLDEN / "freeseg_maft_small_ipclip.safetensors")
    tensors = {name.replace("IPCLIP.", "visual."): value for name, value in tensors.items()}
    images = jnp.zeros((1, 96, 96, 3))
    expected = jax.eval_shape(VisionTransformer(VISION).init, jax.random.key(0), images)
    return to_ours(tensors, {"visual": expected["params"]}, RULES, source="IPCLIP")["visual"]


def test_proposal_features_match_the_official_system():
    arrays = golden("freeseg_maft_small_encoder")
    image = (arrays["image_uint8"].astype(np.float32) - PIXEL_MEAN) / PIXEL_STD
    padded = np.zeros((192, 256, 3), np.float32)
    padded[: image.shape[0], : image.shape[1]] = image
    encoder = ip_clip(VISION, 8)

    @jax.jit
    def encode(visual, image, mask_logits):
        masks = jax.nn.sigmoid(resize(mask_logits, (192, 256), axes=(2, 3), align_corners=True))
        images = clip_input(image, (480, 480))
        return encoder.encode_proposals(visual, images, masks)

    features = encode(official_student(), padded[None], arrays["pred_masks"])
    expected = arrays["proposal_features"]
    scaled = features * np.linalg.norm(expected, axis=-1, keepdims=True)
    tolerance = 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(scaled, expected, atol=tolerance, rtol=0)
