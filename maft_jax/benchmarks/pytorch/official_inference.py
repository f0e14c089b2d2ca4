"""Inference as the official code computes it, in plain PyTorch, one image at a time.

Deliberately not the fast way: masks at full resolution for the encoder, and the scores of all
classes at all pixels. What it computes must stay independent of the rest of `maft_jax`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .official_step import TEMPERATURE, proposal_features
from .openai_clip import ImageTower

PIXEL_MEAN = torch.tensor([122.7709383, 116.7460125, 104.09373615])
PIXEL_STD = torch.tensor([68.5005327, 66.6321579, 70.3231630])


def padded_image(image: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """uint8 [h, w, 3], normalised, then padded right and below with zeros: [1, 3, H, W]."""
    mean, std = PIXEL_MEAN.to(image.device), PIXEL_STD.to(image.device)
    image = ((image.float() - mean) / std).permute(2, 0, 1)[None]
    return pad_to(image, padded_size)


def padded_masks(
    proposals: Tensor, image_size: tuple[int, int], padded_size: tuple[int, int]
) -> Tensor:
    """Stored uint8 proposals [n, grid_h, grid_w] at full resolution, [1, n, H, W]."""
    masks = proposals[None].float() / 255
    masks = F.interpolate(masks, image_size, mode="bilinear", align_corners=True)
    return pad_to(masks, padded_size)


def pad_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = images.shape[-2:]
    return F.pad(images, (0, size[1] - width, 0, size[0] - height))


def clip_probabilities(
    tower: ImageTower,
    text: Tensor,
    image: Tensor,
    masks: Tensor,
    clip_size: tuple[int, int],
    start_layer: int,
    bfloat16: bool = False,
) -> Tensor:
    """[n, classes] of a padded image [1, 3, H, W] and masks [1, n, H, W].

    `bfloat16` runs the encoder under autocast.
    """
    image = F.interpolate(image, clip_size, mode="bilinear", align_corners=False)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bfloat16):
        features = proposal_features(tower, image, masks, start_layer)[0]
    return (TEMPERATURE * features @ text.T).softmax(-1)


def class_scores(
    probabilities: Tensor,
    masks: Tensor,
    image_size: tuple[int, int],
    original_size: tuple[int, int],
) -> Tensor:
    """[classes, h, w] at the original size, from masks [1, n, H, W] at the padded one."""
    masks = masks[0, :, : image_size[0], : image_size[1]]
    scores = torch.einsum("nc,nhw->chw", probabilities, masks)
    return F.interpolate(scores[None], original_size, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def segment(
    tower: ImageTower,
    text: Tensor,
    image: Tensor,
    proposals: Tensor,
    padded_size: tuple[int, int],
    original_size: tuple[int, int],
    *,
    clip_size: tuple[int, int],
    start_layer: int,
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """Score and class of every pixel, from a resized uint8 image and its stored proposals."""
    image_size = (image.shape[0], image.shape[1])
    masks = padded_masks(proposals, image_size, padded_size)
    image = padded_image(image, padded_size)
    probabilities = clip_probabilities(tower, text, image, masks, clip_size, start_layer, bfloat16)
    return tuple(class_scores(probabilities, masks, image_size, original_size).max(dim=0))
