"""Arithmetic of a training step per image, by formula.

The convention: a layer over L tokens of width D costs 8 L D^2 + L M + 4 L^2 D forward
(projections; MLP, where CLIP's has M = 16 D^2; attention), the same again for gradients of its
inputs, and 8 L D^2 for gradients of its attention weights, the only matrices that MAFT trains.
Embedding, norms, heads and losses are left out.
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
    class_tokens: int = 1
    mlp_flops: int | None = None
    """Of the MLP, for one token; None: 16 times the square of the width, as in CLIP."""
    mask_rule: str = "maft"

    @property
    def linear_flops(self) -> int:
        """Of projections and MLP, for one token."""
        mlp = 16 * self.width**2 if self.mlp_flops is None else self.mlp_flops
        return 8 * self.width**2 + mlp


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
    tokens = size.class_tokens + size.num_patches
    trunk_layers = min(size.mask_start_layer, size.layers - 1)
    upper_layers = size.layers - 1 - trunk_layers
    trunk = trunk_layers * _layer(size, tokens)
    plain_head = upper_layers * _layer(size, tokens) + _reading_layer(size, 1)
    both_heads = plain_head
    if size.mask_start_layer < size.layers:
        if size.mask_rule == "maft":
            both_heads += upper_layers * _masked_layer(size)
            both_heads += _reading_layer(size, size.num_proposals)
        else:
            both_heads = upper_layers * _shared_layer(size)
            both_heads += _reading_layer(size, 1 + size.num_proposals)
    forward = backward = trunk + both_heads
    if teacher:
        forward += trunk + plain_head
    return forward + backward + _trained_weight_gradients(size, trunk_layers, upper_layers)


def _trained_weight_gradients(size: EncoderSize, trunk_layers: int, upper_layers: int) -> int:
    tokens = size.class_tokens + size.num_patches
    total = (trunk_layers + upper_layers) * _weight_gradient(size, tokens)
    total += _reading_weight_gradient(size, 1)
    if size.mask_start_layer < size.layers:
        again = size.num_patches if size.mask_rule == "maft" else 0
        total += upper_layers * _weight_gradient(size, again + size.num_proposals)
        total += _reading_weight_gradient(size, size.num_proposals, again)
    return total


def _layer(size: EncoderSize, tokens: int) -> int:
    return tokens * size.linear_flops + 4 * tokens**2 * size.width


def _masked_layer(size: EncoderSize) -> int:
    """Patches attend to patches, each proposal to itself and the patches."""
    n, t = size.num_proposals, size.num_patches
    return (n + t) * size.linear_flops + 4 * (t * t + n * (t + 1)) * size.width


def _shared_layer(size: EncoderSize) -> int:
    """One pass for the whole image and the proposals, which attend to its patches."""
    n, t = size.num_proposals, size.class_tokens + size.num_patches
    return (n + t) * size.linear_flops + 4 * (t * t + n * (t + 1)) * size.width


def _reading_layer(size: EncoderSize, queries: int) -> int:
    """The last layer: everything for the queries, keys and values alone for the patches."""
    t = size.num_patches
    projections = queries * size.linear_flops + 4 * t * size.width**2
    return projections + 4 * queries * (t + 1) * size.width


def _weight_gradient(size: EncoderSize, tokens: int) -> int:
    return 8 * tokens * size.width**2


def _reading_weight_gradient(size: EncoderSize, queries: int, sources: int | None = None) -> int:
    """`sources` are the tokens of which keys and values alone are computed: the patches."""
    sources = size.num_patches if sources is None else sources
    return (8 * queries + 4 * sources) * size.width**2


def model_flops_utilization(flops: int, seconds: float, peak: float) -> float:
    """Share of the devices' `peak` operations per second that `flops` in `seconds` make use of."""
    return flops / seconds / peak
