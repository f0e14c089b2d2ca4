"""Arithmetic of a training step per image, by formula.

The convention: a layer over L tokens of width D costs 24 L D^2 + 4 L^2 D forward (projections and
MLP, attention), the same again for gradients of its inputs, and 8 L D^2 for gradients of its
attention weights, the only matrices that MAFT trains. Embedding, norms, heads and losses are left
out.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class EncoderSize:
    """What the arithmetic depends on."""

    width: int
    layers: int
    mask_start_layer: int
    num_patches: int
    num_proposals: int


def official_step_flops(size: EncoderSize) -> int:
    """Of the official code: a masked and a plain student pass, and the teacher, all whole."""
    plain = size.layers * _layer(size, 1 + size.num_patches)
    masked_layers = size.layers - size.mask_start_layer
    masked = size.mask_start_layer * _layer(size, 1 + size.num_patches)
    masked += masked_layers * _layer(size, size.num_proposals + size.num_patches)
    weights = (size.layers + size.mask_start_layer) * _weight_gradient(size, 1 + size.num_patches)
    weights += masked_layers * _weight_gradient(size, size.num_proposals + size.num_patches)
    teacher, backward = plain, plain + masked
    return plain + masked + teacher + backward + weights


def step_flops(size: EncoderSize, teacher: bool = True) -> int:
    """Of this framework: one trunk, two heads above it, and the last layers for queries only.

    Without `teacher` where its probabilities are cached (config.loss.cached_teacher).
    """
    tokens = 1 + size.num_patches
    trunk_layers = min(size.mask_start_layer, size.layers - 1)
    upper_layers = size.layers - 1 - trunk_layers
    trunk = trunk_layers * _layer(size, tokens)
    plain_head = upper_layers * _layer(size, tokens) + _reading_layer(size, 1)
    masked_head = 0
    if size.mask_start_layer < size.layers:
        masked_head = upper_layers * _masked_layer(size) + _reading_layer(size, size.num_proposals)
    forward = backward = trunk + plain_head + masked_head
    if teacher:
        forward += trunk + plain_head
    return forward + backward + _trained_weight_gradients(size, trunk_layers, upper_layers)


def _trained_weight_gradients(size: EncoderSize, trunk_layers: int, upper_layers: int) -> int:
    tokens = 1 + size.num_patches
    total = (trunk_layers + upper_layers) * _weight_gradient(size, tokens)
    total += _reading_weight_gradient(size, 1)
    if size.mask_start_layer < size.layers:
        total += upper_layers * _weight_gradient(size, size.num_patches + size.num_proposals)
        total += _reading_weight_gradient(size, size.num_proposals)
    return total


def _layer(size: EncoderSize, tokens: int) -> int:
    return 24 * tokens * size.width**2 + 4 * tokens**2 * size.width


def _masked_layer(size: EncoderSize) -> int:
    """Patches attend to patches, each proposal to itself and the patches."""
    n, t = size.num_proposals, size.num_patches
    return 24 * (n + t) * size.width**2 + 4 * (t * t + n * (t + 1)) * size.width


def _reading_layer(size: EncoderSize, queries: int) -> int:
    """The last layer: everything for the queries, keys and values alone for the patches."""
    t = size.num_patches
    projections = 24 * queries * size.width**2 + 4 * t * size.width**2
    return projections + 4 * queries * (t + 1) * size.width


def _weight_gradient(size: EncoderSize, tokens: int) -> int:
    return 8 * tokens * size.width**2


def _reading_weight_gradient(size: EncoderSize, queries: int) -> int:
    return (8 * queries + 4 * size.num_patches) * size.width**2


def model_flops_utilization(flops: int, seconds: float, peak: float) -> float:
    """Share of the devices' `peak` operations per second that `flops` in `seconds` make use of."""
    return flops / seconds / peak
