"""Masks that leave the device are the network's at the grid points of the records."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.examples import Example, proposal_grid_size
from maft_jax.proposals.device_generator import DeviceGenerator


@dataclasses.dataclass(frozen=True)
class Given:
    """Answers with its parameters."""

    def __call__(self, parameters, images, sizes):
        shape = (len(images), *parameters["masks"].shape)
        return jnp.broadcast_to(parameters["masks"], shape), parameters["classes"][None]


def example_of(size) -> Example:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return Example("photo", image, np.zeros(size, np.int32))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(24, 40), (19, 35), (17, 33)])
def test_masks_are_torchs_samples_of_the_logits(size, align_corners):
    import torch

    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, 6, 10)).astype(np.float32) * 3
    classes = rng.normal(size=(4, 3)).astype(np.float32)
    given = {"masks": logits, "classes": classes}
    generator = DeviceGenerator(
        "given", "1", Given(), lambda image: image, lambda: given, 8, align_corners
    )
    made = generator(example_of(size), num_proposals=3)

    places = []
    for side, padded, points in zip(size, (24, 40), proposal_grid_size(*size), strict=True):
        pixel = torch.linspace(0, side - 1, points, dtype=torch.float64)
        places.append(
            2 * pixel / (padded - 1) - 1 if align_corners else (2 * pixel + 1) / padded - 1
        )
    y, x = torch.meshgrid(*places, indexing="ij")
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(logits)[None].double(),
        torch.stack([x, y], dim=-1)[None],
        padding_mode="border",
        align_corners=align_corners,
    )[0]
    masks = sampled.sigmoid()
    # Of the cells whose middle lies in the image: at sides of 17 and 33 not the last ones.
    cells = torch.from_numpy(logits)[:, : (size[0] + 1) // 4, : (size[1] + 1) // 4]
    quality = torch.stack([cell[cell > 0].sigmoid().mean() for cell in cells])
    scores = torch.from_numpy(classes).softmax(-1)[:, :-1].amax(-1) * quality
    order = torch.argsort(-scores)[:3]
    assert made.input_size == size and made.masks.dtype == np.uint8
    np.testing.assert_allclose(made.scores, scores[order], rtol=1e-5)
    np.testing.assert_array_equal(made.class_logits, classes[order])
    np.testing.assert_allclose(made.masks, masks[order] * 255, atol=0.5001)
