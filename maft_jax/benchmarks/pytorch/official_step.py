"""The MAFT training step as the official code computes it, in plain PyTorch.

Deliberately not the fast way: three passes through the image tower, class tokens concatenated with
the patches under one large attention bias, masks copied once per class. What it computes must stay
independent of the rest of `maft_jax`, whose tests and benchmarks compare against it. Unlike the
official code it takes any number of proposals, any batch, and images without classes.
"""

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .openai_clip import ImageTower

TEMPERATURE = 100.0
MAX_GRAD_NORM = 0.01
TRAINABLE = re.compile(r"transformer\.resblocks\.\d+\.(attn|ln_1|ln_2)\..+|ln_post\..+")
LAYER_NORM = re.compile(r"(.+\.)?ln_\w+\.(weight|bias)")


def trainable_parameters(tower: nn.Module) -> dict[str, nn.Parameter]:
    """What MAFT tunes: attention and layer norms of all blocks, and ln_post."""
    return {n: p for n, p in tower.named_parameters() if TRAINABLE.fullmatch(n)}


def masks_on_grid(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Soft masks [batch, n, height, width] to the patches they allow, [batch, n, h * w]."""
    resized = F.interpolate(masks.float(), size=grid, mode="bilinear", align_corners=False)
    return (resized >= 0.5).flatten(2)


def proposal_attention_bias(allowed: Tensor, heads: int) -> Tensor:
    """[batch * heads, n + t, n + t], 0 where attention is allowed and -inf elsewhere.

    A proposal sees itself and its patches (`allowed`, [batch, n, t]); a patch sees all patches
    and no proposal.
    """
    batch, n, t = allowed.shape
    visible = torch.zeros(batch, n + t, n + t, dtype=torch.bool, device=allowed.device)
    visible[:, :n, :n] = torch.eye(n, dtype=torch.bool, device=allowed.device)
    visible[:, :n, n:] = allowed
    visible[:, n:, n:] = True
    bias = torch.zeros(visible.shape, device=allowed.device).masked_fill_(~visible, -math.inf)
    return bias.repeat_interleave(heads, dim=0)


def proposal_features(tower: ImageTower, images: Tensor, masks: Tensor, start_layer: int) -> Tensor:
    """Normalised features of each proposal, [batch, n, embed_dim].

    Args:
        images: [batch, 3, height, width], normalised for CLIP.
        masks: [batch, n, any height, any width], probabilities.
        start_layer: first layer in which the masks act.
    """
    x, grid = tower.embed(images)
    for block in tower.transformer.resblocks[:start_layer]:
        x = block(x)
    n = masks.shape[1]
    bias = proposal_attention_bias(masks_on_grid(masks, grid), tower.transformer.heads)
    x = torch.cat([x[:1].repeat(n, 1, 1), x[1:]])
    for block in tower.transformer.resblocks[start_layer:]:
        x = block(x, bias)
    return F.normalize(tower.project(x[:n].transpose(0, 1)).float(), dim=-1)


def image_features(tower: ImageTower, images: Tensor) -> Tensor:
    """Normalised features of whole images, [batch, embed_dim]."""
    return F.normalize(tower(images).float(), dim=-1)


def soft_iou(masks: Tensor, gt_masks: Tensor) -> Tensor:
    """IoU [k, n] of soft masks [n, h, w] with binary masks [k, h, w], each pair copied out."""
    k, n = len(gt_masks), len(masks)
    m = masks.float().unsqueeze(0).repeat(k, 1, 1, 1).flatten(2)
    g = gt_masks.float().unsqueeze(1).repeat(1, n, 1, 1).flatten(2)
    intersection = (g * m).sum(-1)
    return intersection / (g.sum(-1) + m.sum(-1) - intersection + 1e-7)


def normalise_rows(iou: Tensor) -> Tensor:
    """Each row stretched to 0..1 over its proposals."""
    low = iou.min(dim=1, keepdim=True).values
    high = iou.max(dim=1, keepdim=True).values
    return (iou - low) / (high - low + 1e-8)


def mask_aware_loss(
    class_logits: Tensor, masks: Tensor, gt_labels: Sequence[Tensor], gt_masks: Sequence[Tensor]
) -> Tensor:
    """SmoothL1 of class probability against normalised IoU, mean over rows and proposals.

    A row is an (image, present class) pair. `class_logits` [batch, n, classes + 1] end with the
    non-object class, which takes no part.
    """
    probabilities = class_logits[..., :-1].softmax(-1)
    predicted, target = [], []
    for b, (labels, truth) in enumerate(zip(gt_labels, gt_masks, strict=True)):
        if len(labels) == 0:
            continue
        predicted.append(probabilities[b][:, labels].T)
        with torch.no_grad():
            target.append(normalise_rows(soft_iou(masks[b], truth)))
    if not predicted:
        return class_logits.sum() * 0.0
    return F.smooth_l1_loss(torch.cat(predicted), torch.cat(target))


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """SmoothL1 between class probabilities, [batch, classes + 1] logits as above."""
    return F.smooth_l1_loss(
        student_logits[..., :-1].softmax(-1), teacher_logits[..., :-1].softmax(-1)
    )


class OfficialStep:
    """Trains `student` in place; `teacher` is the image tower that it started from.

    `text_features` are [classes + 1, embed_dim], normalised, the non-object row last. Modules and
    tensors are used on the device that they are on. `bfloat16` runs the encoders under autocast;
    features, losses and the optimiser stay in float32.
    """

    def __init__(
        self,
        student: ImageTower,
        teacher: ImageTower,
        start_layer: int,
        text_features: Tensor,
        learning_rate: float,
        total_steps: int,
        weight_decay: float,
        distillation_weight: float,
        *,
        bfloat16: bool = False,
    ):
        self.student = student.requires_grad_(False)
        self.teacher = teacher.requires_grad_(False)
        self.start_layer = start_layer
        self.text_features = text_features
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.distillation_weight = distillation_weight
        self.bfloat16 = bfloat16
        self.step_number = 0
        self.trainable = trainable_parameters(student)
        for parameter in self.trainable.values():
            parameter.requires_grad_(True)
        norms = [p for n, p in self.trainable.items() if LAYER_NORM.fullmatch(n)]
        others = [p for n, p in self.trainable.items() if not LAYER_NORM.fullmatch(n)]
        groups = [
            {"params": others, "weight_decay": weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)

    def losses(
        self,
        images: Tensor,
        masks: Tensor,
        gt_labels: Sequence[Tensor],
        gt_masks: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """`mask_aware_loss`, `distillation_loss` (weighted) and their sum `loss`."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16):
            proposals = proposal_features(self.student, images, masks, self.start_layer)
            whole = image_features(self.student, images)
            with torch.no_grad():
                frozen = image_features(self.teacher, images)
        classifier = TEMPERATURE * self.text_features.T
        mask_aware = mask_aware_loss(proposals @ classifier, masks, gt_labels, gt_masks)
        distillation = distillation_loss(whole @ classifier, frozen @ classifier)
        distillation = self.distillation_weight * distillation
        return {
            "mask_aware_loss": mask_aware,
            "distillation_loss": distillation,
            "loss": mask_aware + distillation,
        }

    def step(
        self,
        images: Tensor,
        masks: Tensor,
        gt_labels: Sequence[Tensor],
        gt_masks: Sequence[Tensor],
    ) -> dict[str, Tensor | float]:
        """One update; the losses before it, `grad_norm` before clipping, and `lr`.

        Losses and norm stay on the device, so that a benchmark does not wait for them.
        """
        lr = self.learning_rate * (1 - self.step_number / self.total_steps) ** 0.9
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        losses = self.losses(images, masks, gt_labels, gt_masks)
        losses["loss"].backward()
        grad_norm = nn.utils.clip_grad_norm_(self.trainable.values(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.step_number += 1
        return {**{k: v.detach() for k, v in losses.items()}, "grad_norm": grad_norm, "lr": lr}
