"""What MAFT+ and Mask-Adapter do with the golden tower's last map, in PyTorch.

It begins with arrays of the official code: the map, the cells that the transfer read, masks and
class logits of the generator. Of the checkpoint it takes tensors under their authors' names.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from tests.golden_files import golden

_VISUAL = "backbone.clip_model.visual."
_ATTENTION = "cdt.cross_atten.multihead_attn."
_HEADS = 8


def of_image(name: str) -> torch.Tensor:
    """Of the one image."""
    return torch.tensor(golden("fcclip/maft_plus")[name][0])


def embed(tensors: Mapping, values: torch.Tensor) -> torch.Tensor:
    """The tower's norm and head."""
    x = _norm(tensors, f"{_VISUAL}trunk.head.norm", values, 1e-6)
    x = F.gelu(_dense(tensors, f"{_VISUAL}head.mlp.fc1", x))
    return x @ tensors[f"{_VISUAL}head.mlp.fc2.weight"].T


def panoptic_rows(tensors: Mapping) -> torch.Tensor:
    """Class rows after the transfer of MAFT+'s panoptic models."""
    rows = torch.tensor(golden("fcclip/expected")["text_features"])
    memory = of_image("cdt_memory_nhwc")
    height, width, size = memory.shape
    keys = (memory + _sines(height, width, size)).reshape(-1, size)
    attended = F.multi_head_attention_forward(
        *(x[:, None] for x in (rows, keys, memory.reshape(-1, size))),
        size,
        _HEADS,
        tensors[f"{_ATTENTION}in_proj_weight"],
        tensors[f"{_ATTENTION}in_proj_bias"],
        None,
        None,
        False,
        0.0,
        tensors[f"{_ATTENTION}out_proj.weight"],
        tensors[f"{_ATTENTION}out_proj.bias"],
    )[0][:, 0]
    change = _dense(tensors, "cdt.cross_atten.MLP", attended)
    return rows + _norm(tensors, "cdt.cross_atten.norm", change, 1e-5)


def adapted_embeddings(tensors: Mapping, masks: torch.Tensor, num_maps: int) -> torch.Tensor:
    """Of masks [n, h, w], which Mask-Adapter's adapter reads with MAFT+'s scrambled cells."""
    cells = of_image("cdt_memory_nhwc").permute(2, 0, 1)
    values = of_image("res5").flatten(1).T
    maps = _drawn(tensors, cells, masks).flatten(2)
    assert maps.shape[1] == num_maps
    pooled = F.logsigmoid(maps).softmax(dim=-1) @ values
    return embed(tensors, pooled).mean(dim=1)


def tower_logits(tensors: Mapping, embeddings: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[n, classes]; a class has the largest of its names', and the row for nothing none."""
    scale = tensors["backbone.clip_model.logit_scale"].exp().clamp(max=100)
    products = scale * F.normalize(embeddings, dim=-1) @ rows[:-1].T
    counts = golden("fcclip/expected")["names_per_class"].tolist()
    return torch.stack([part.max(dim=1).values for part in products.split(counts, dim=1)], dim=1)


def log_probabilities(
    logits: torch.Tensor, seen: np.ndarray, exponents: tuple[float, float]
) -> torch.Tensor:
    """[n, classes + 1] of the tower's logits and the golden ones of the generator."""
    of_generator = generator_logits()
    nothing = of_generator.softmax(dim=-1)[:, -1:]
    weight = torch.where(torch.tensor(seen), *exponents)
    generator = of_generator[:, :-1].log_softmax(dim=-1)
    mixed = ((1 - weight) * generator + weight * logits.log_softmax(dim=-1)).softmax(dim=-1)
    return torch.log(torch.cat([mixed * (1 - nothing), nothing], dim=-1) + 1e-8)


def generator_logits() -> torch.Tensor:
    """[n, classes + 1] of the last layer."""
    return torch.tensor(golden("fcclip/maft_plus")["class_logits_per_layer"][-1, 0])


def panoptic_ids(
    logs: torch.Tensor,
    masks: torch.Tensor,
    things: frozenset[int],
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[np.ndarray, list[list[int]]]:
    """Ids of the pixels of `masks`, probabilities [n, h, w]; and (id, class, is thing)."""
    score, label = logs.softmax(dim=-1).max(dim=-1)
    kept = [
        index
        for index in range(len(masks))
        if label[index] != logs.shape[1] - 1 and score[index] > object_threshold
    ]
    owner = (score[kept, None, None] * masks[kept]).argmax(dim=0)
    ids, listed, stuff = np.zeros(owner.shape, np.int32), [], {}
    for place, index in enumerate(kept):
        owned, full = (owner == place).numpy(), (masks[index] >= 0.5).numpy()
        both, name = owned & full, int(label[index])
        if not both.any() or owned.sum() / full.sum() < overlap_threshold:
            continue
        if name in stuff:
            ids[both] = stuff[name]
            continue
        listed.append([len(listed) + 1, name, int(name in things)])
        ids[both] = len(listed)
        if name not in things:
            stuff[name] = len(listed)
    return ids, listed


def _drawn(tensors: Mapping, cells: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The adapter's maps [n, maps, h, w]."""
    prefix = "mask_adapter."
    height, width = cells.shape[1:]
    x = F.interpolate(masks[:, None].float(), (4 * height, 4 * width), mode="bilinear")
    for convolution, norm in ((0, 1), (3, 4)):
        name = f"{prefix}mask_downscaling.{convolution}"
        x = F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=2, padding=1)
        x = F.gelu(_channel_norm(tensors, f"{prefix}mask_downscaling.{norm}", x, 1e-6))
    x = _pointwise(tensors, f"{prefix}mask_downscaling.6", x) + cells
    x = _pointwise(tensors, f"{prefix}fuse", x)
    for block in (1, 2, 3):
        name = f"{prefix}cnext{block}"
        y = F.conv2d(
            x,
            tensors[f"{name}.dwconv.weight"],
            tensors[f"{name}.dwconv.bias"],
            padding=3,
            groups=x.shape[1],
        ).permute(0, 2, 3, 1)
        y = _dense(tensors, f"{name}.pwconv1", _norm(tensors, f"{name}.norm", y, 1e-6))
        y = _dense(tensors, f"{name}.pwconv2", F.gelu(y)) * tensors[f"{name}.gamma"]
        x = x + y.permute(0, 3, 1, 2)
    x = _channel_norm(tensors, f"{prefix}norm", x, 1e-5)
    return _pointwise(tensors, f"{prefix}final", x)


def _dense(tensors: Mapping, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _norm(tensors: Mapping, name: str, x: torch.Tensor, epsilon: float) -> torch.Tensor:
    weight, bias = (tensors[f"{name}.{part}"] for part in ("weight", "bias"))
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def _channel_norm(tensors: Mapping, name: str, x: torch.Tensor, epsilon: float) -> torch.Tensor:
    return _norm(tensors, name, x.permute(0, 2, 3, 1), epsilon).permute(0, 3, 1, 2)


def _pointwise(tensors: Mapping, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _sines(height: int, width: int, size: int) -> torch.Tensor:
    """[height, width, size]: the first half tells the row, the second the column."""
    half = size // 2
    frequency = 10000.0 ** (-2 * (torch.arange(half) // 2) / half)

    def of_side(length: int) -> torch.Tensor:
        angle = torch.arange(1, length + 1) / (length + 1e-6) * 2 * math.pi
        phases = angle[:, None] * frequency
        return torch.where(torch.arange(half) % 2 == 0, phases.sin(), phases.cos())

    rows, columns = of_side(height)[:, None], of_side(width)[None]
    return torch.cat(torch.broadcast_tensors(rows, columns), dim=-1)
