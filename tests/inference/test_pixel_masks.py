"""Masks at every pixel, of networks that read a photo at another size than CLIP's batch has it."""

import numpy as np
import torch

from maft_jax.inference.pixel_masks import pixel_masks
from maft_jax.proposals.generator import MaskLogits


def test_logits_of_a_stretched_photo_are_sampled_where_its_pixels_are():
    """Against torch; of the padding nothing belongs to a mask."""
    values = np.random.default_rng(0).normal(size=(2, 12, 12)).astype(np.float32)
    logits = MaskLogits(values, (48, 48), (48, 48), align_corners=False)
    height, width, arrays = 30, 50, (64, 64)
    batch = {
        "image": np.zeros((1, *arrays, 3), np.uint8),
        "proposals": np.zeros((1, 3, 16, 16), np.uint8),
        "image_size": np.array([[height, width]]),
        "padded_size": np.array([[32, 64]]),
    }
    found = pixel_masks(logits, batch)
    y, x = (torch.arange(side) * 2.0 / side + 1 / side - 1 for side in (height, width))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(values)[None], grid, padding_mode="border", align_corners=False
    )
    masks = np.asarray(found["proposals"])
    assert masks.shape == (1, 3, *arrays)
    np.testing.assert_allclose(masks[0, :2, :height, :width], sampled[0].sigmoid(), atol=1e-5)
    assert not masks[:, :, height:].any() and not masks[..., width:].any()
    np.testing.assert_array_equal(found["proposal_grid"], batch["image_size"])
    np.testing.assert_array_equal(found["proposal_extent"], batch["padded_size"])
