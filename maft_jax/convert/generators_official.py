"""Generators in the official layouts: MaskFormer, Mask2Former, and FreeSeg as MAFT has it.

The architecture follows from shapes. A checkpoint of MAFT or FreeSeg holds CLIP's towers, too,
which `maft.py` reads.
"""

import dataclasses
import math
from collections.abc import Mapping

from maft_jax.convert import generator_rules as of
from maft_jax.convert.foreign_format import WeightsSource
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.models.generators.image_preparation import OFFICIAL_PREPARATION, ImagePreparation
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.maskformer import MaskFormerConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.swin import SwinConfig
from maft_jax.models.generators.text_interaction import TextConfig

_PIXEL = "sem_seg_head.pixel_decoder."
_PREDICTOR = "sem_seg_head.predictor."
_DETR = f"{_PREDICTOR}transformer.decoder."
_INTERACTION = "sem_seg_head.interaction."
_NON_OBJECT = "clip_adapter.non_object_embedding"
_SWIN_STAGES = 4
_HEADS, _LEVELS = 8, 3
"""Of every published model; shapes do not tell them."""

IGNORED = [
    Ignored(r"clip_adapter\.(?!non_object_embedding$).*", "CLIP, which weights.open_weights reads"),
    Ignored(r"(IPCLIP|T)\..*", "CLIP's tuned image tower, which weights.open_weights reads"),
    Ignored(r"criterion\..*", "settings of the losses"),
    Ignored(r"pixel_(mean|std)", "the constants of the normalisation"),
    Ignored(r".*\.relative_position_index", "positions in a window, which its size implies"),
]


def is_official(names) -> bool:
    """Whether these are names of this layout, below any prefix."""
    return f"{_PREDICTOR}query_embed.weight" in names


def with_current_names(tensors: Mapping) -> dict:
    """Older files' names as the official code itself renames them."""
    old = not any(name.startswith(_PIXEL) for name in tensors)

    def current(name: str) -> str:
        if old and name.startswith("sem_seg_head.") and not name.startswith(_PREDICTOR):
            name = name.replace("sem_seg_head.", _PIXEL, 1)
        return name.replace(f"{_PREDICTOR}static_query.", f"{_PREDICTOR}query_feat.")

    return {current(name): tensor for name, tensor in tensors.items()}


def infer_config(source: WeightsSource) -> Mask2FormerConfig | MaskFormerConfig:
    """The architecture that the shapes imply.

    Raises:
        ValueError: a tensor that says it is absent or has another number of dimensions.
    """
    shapes = Shapes(source)
    if f"{_DETR}layers.0.linear1.weight" in shapes:
        return _infer_maskformer(shapes)
    text = None
    if f"{_INTERACTION}gamma" in shapes:
        inner, text_width = (shapes.size(f"{_INTERACTION}attn.k_proj.weight", i) for i in (0, 1))
        hidden = shapes.size(f"{_PREDICTOR}class_embed.layers.0.weight", 0)
        text = TextConfig(text_width, inner, hidden, _HEADS)
    return Mask2FormerConfig(
        backbone=_infer_backbone(shapes),
        pixel_decoder=infer_pixel_decoder(shapes),
        decoder=infer_decoder(shapes),
        num_classes=None if text else shapes.size(f"{_PREDICTOR}class_embed.weight", 0) - 1,
        text=text,
    )


def _infer_maskformer(shapes: "Shapes") -> MaskFormerConfig:
    return MaskFormerConfig(
        num_classes=shapes.size(f"{_PREDICTOR}class_embed.weight", 0) - 1,
        backbone=_infer_backbone(shapes),
        fpn_width=shapes.size(f"{_PIXEL}layer_4.weight", 0),
        mask_width=shapes.size(f"{_PIXEL}mask_features.weight", 0),
        decoder=DecoderConfig(
            width=shapes.size(f"{_PREDICTOR}query_embed.weight", 1),
            queries=shapes.size(f"{_PREDICTOR}query_embed.weight", 0),
            layers=shapes.count(f"{_DETR}layers.{{}}.linear1.weight"),
            mlp_width=shapes.size(f"{_DETR}layers.0.linear1.weight", 0),
            heads=_HEADS,
        ),
    )


class Shapes:
    """Shapes by name; one that is absent is an error that names the file."""

    def __init__(self, source: WeightsSource):
        self._path, self._shapes = source.path, source.shapes

    def size(self, name: str, axis: int) -> int:
        shape = self._shapes.get(name, ())
        if len(shape) <= axis or not shape[axis]:
            found = f"its shape is {shape}" if shape else "it is absent"
            raise ValueError(
                f"{self._path}: tensor {name!r}: {found}; expected a Mask2Former, MaskFormer or "
                "FreeSeg in the official layout, with a ResNet or Swin as its backbone"
            )
        return shape[axis]

    def count(self, name: str) -> int:
        """How many there are, numbered from 0."""
        number = 0
        while name.format(number) in self._shapes:
            number += 1
        return number

    def __contains__(self, name: str) -> bool:
        return name in self._shapes


def infer_decoder(shapes: Shapes) -> DecoderConfig:
    """Of the decoder."""
    return DecoderConfig(
        width=shapes.size(f"{_PREDICTOR}query_feat.weight", 1),
        queries=shapes.size(f"{_PREDICTOR}query_feat.weight", 0),
        layers=shapes.count(f"{_PREDICTOR}transformer_ffn_layers.{{}}.linear1.weight"),
        mlp_width=shapes.size(f"{_PREDICTOR}transformer_ffn_layers.0.linear1.weight", 0),
        heads=_HEADS,
    )


def infer_pixel_decoder(shapes: Shapes) -> PixelDecoderConfig:
    """Of the pixel decoder."""
    encoder = f"{_PIXEL}transformer.encoder.layers."
    return PixelDecoderConfig(
        width=shapes.size(f"{_PIXEL}input_proj.0.0.weight", 0),
        mask_width=shapes.size(f"{_PIXEL}mask_features.weight", 0),
        layers=shapes.count(f"{encoder}{{}}.linear1.weight"),
        mlp_width=shapes.size(f"{encoder}0.linear1.weight", 0),
        heads=_HEADS,
        points=shapes.size(f"{encoder}0.self_attn.sampling_offsets.bias", 0)
        // (2 * _HEADS * _LEVELS),
    )


def _infer_backbone(shapes: Shapes) -> ResNetConfig | SwinConfig:
    swin = "backbone.patch_embed.proj.weight" in shapes
    return _infer_swin(shapes) if swin else _infer_resnet(shapes)


def _infer_swin(shapes: Shapes) -> SwinConfig:
    width = shapes.size("backbone.patch_embed.proj.weight", 0)
    stages = [f"backbone.layers.{stage}.blocks." for stage in range(_SWIN_STAGES)]
    table = "0.attn.relative_position_bias_table"
    positions = shapes.size(f"{stages[0]}{table}", 0)
    return SwinConfig(
        width=width,
        blocks=tuple(shapes.count(f"{stage}{{}}.norm1.weight") for stage in stages),
        heads=tuple(shapes.size(f"{stage}{table}", 1) for stage in stages),
        window=(math.isqrt(positions) + 1) // 2,
        mlp_ratio=shapes.size(f"{stages[0]}0.mlp.fc1.weight", 0) / width,
    )


def _infer_resnet(shapes: Shapes) -> ResNetConfig:
    stem_convolutions = 3 if "backbone.stem.conv2.weight" in shapes else 1
    stem = (shapes.size(f"backbone.stem.conv{i + 1}.weight", 0) for i in range(stem_convolutions))
    stages = [f"backbone.res{stage}." for stage in range(2, 6)]
    return ResNetConfig(
        blocks=tuple(shapes.count(f"{stage}{{}}.conv1.weight") for stage in stages),
        widths=tuple(shapes.size(f"{stage}0.conv3.weight", 0) for stage in stages),
        bottlenecks=tuple(shapes.size(f"{stage}0.conv1.weight", 0) for stage in stages),
        stem_widths=tuple(stem),
    )


def preparation_of(config: Mask2FormerConfig | MaskFormerConfig) -> ImagePreparation:
    """The official test geometry, which the layout takes for granted."""
    reads_names = isinstance(config, Mask2FormerConfig) and config.text is not None
    return dataclasses.replace(OFFICIAL_PREPARATION, align_corners=reads_names)


def rules_of(config: Mask2FormerConfig | MaskFormerConfig) -> list[Rule]:
    """The table of a generator, in both directions."""
    if isinstance(config, MaskFormerConfig):
        return [*_backbone_rules(config.backbone), *_maskformer_rules()]
    return [
        *_backbone_rules(config.backbone),
        *pixel_decoder_rules(),
        *predictor_rules(),
        *(_text_rules() if config.text else of.dense(f"{_PREDICTOR}class_embed", "class_embed")),
    ]


def _backbone_rules(config: ResNetConfig | SwinConfig) -> list[Rule]:
    return _swin_rules() if isinstance(config, SwinConfig) else resnet_rules(config)


def _swin_rules() -> list[Rule]:
    rules = [
        *of.patch_embedding("backbone.patch_embed.proj", "backbone/patch"),
        *of.norm("backbone.patch_embed.norm", "backbone/patch_norm"),
    ]
    parts = {"attn.qkv": "attn/qkv", "attn.proj": "attn/proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
    for stage in range(_SWIN_STAGES):
        block, ours = f"backbone.layers.{stage}.blocks.{{}}.", f"backbone/stage{stage}_block{{}}/"
        rules += [
            *of.norm(f"{block}norm1", f"{ours}norm1"),
            *of.norm(f"{block}norm2", f"{ours}norm2"),
            Rule(f"{block}attn.relative_position_bias_table", f"{ours}attn/bias_table"),
            *(rule for t, o in parts.items() for rule in of.dense(f"{block}{t}", f"{ours}{o}")),
            *of.norm(f"backbone.norm{stage}", f"backbone/norm_{stage}"),
        ]
        if stage:
            merge = f"backbone.layers.{stage - 1}.downsample."
            rules += of.norm(f"{merge}norm", f"backbone/merge_norm_{stage}")
            rules += of.dense(f"{merge}reduction", f"backbone/merge_{stage}", bias=False)
    return rules


def resnet_rules(config: ResNetConfig) -> list[Rule]:
    """Of the backbone alone, below `backbone`."""

    def rules(foreign: str, ours: str) -> list[Rule]:
        return of.frozen_convolution(foreign, f"{foreign}.norm", ours)

    parts = ("conv1", "conv2", "conv3", "shortcut")
    stem = [
        rule
        for index in range(len(config.stem_widths))
        for rule in rules(f"backbone.stem.conv{index + 1}", f"backbone/stem_{index}")
    ]
    blocks = [
        rule
        for stage in range(2, 2 + len(config.blocks))
        for part in parts
        for rule in rules(f"backbone.res{stage}.{{}}.{part}", f"backbone/res{stage}_{{}}/{part}")
    ]
    return stem + blocks


def _maskformer_rules() -> list[Rule]:
    layer, ours = f"{_DETR}layers.{{}}.", "decoder/layers_{}/"
    pyramid = [
        rule
        for index in range(3)
        for theirs, name in (("adapter", "lateral"), ("layer", "fusion"))
        for rule in of.normed_convolution(
            f"{_PIXEL}{theirs}_{3 - index}",
            f"{_PIXEL}{theirs}_{3 - index}.norm",
            f"pixel_decoder/{name}_{index}",
        )
    ]
    return [
        *of.normed_convolution(f"{_PIXEL}layer_4", f"{_PIXEL}layer_4.norm", "pixel_decoder/stem"),
        *pyramid,
        *of.convolution(f"{_PIXEL}mask_features", "pixel_decoder/mask_features"),
        *of.convolution(f"{_PREDICTOR}input_proj", "decoder/input_proj"),
        Rule(f"{_PREDICTOR}query_embed.weight", "decoder/query_embed"),
        *of.packed_attention(f"{layer}self_attn", f"{ours}self_attn"),
        *of.norm(f"{layer}norm1", f"{ours}self_norm"),
        *of.packed_attention(f"{layer}multihead_attn", f"{ours}cross_attn"),
        *of.norm(f"{layer}norm2", f"{ours}cross_norm"),
        *of.dense(f"{layer}linear1", f"{ours}linear1"),
        *of.dense(f"{layer}linear2", f"{ours}linear2"),
        *of.norm(f"{layer}norm3", f"{ours}mlp_norm"),
        *of.norm(f"{_DETR}norm", "decoder/decoder_norm"),
        *of.dense(f"{_PREDICTOR}mask_embed.layers.{{}}", "mask_embed/layers_{}"),
        *of.dense(f"{_PREDICTOR}class_embed", "class_embed"),
    ]


def pixel_decoder_rules() -> list[Rule]:
    """Of Mask2Former's pixel decoder."""
    encoder = f"{_PIXEL}transformer.encoder.layers.{{}}"
    names = ("norm1", "norm2", "linear1", "linear2")
    return [
        *of.normed_convolution(
            f"{_PIXEL}input_proj.{{}}.0",
            f"{_PIXEL}input_proj.{{}}.1",
            "pixel_decoder/input_proj_{}",
            bias=True,
        ),
        Rule(f"{_PIXEL}transformer.level_embed", "pixel_decoder/level_embed"),
        *of.deformable_layer(encoder, "pixel_decoder/layers_{}", names),
        *of.normed_convolution(
            f"{_PIXEL}adapter_1", f"{_PIXEL}adapter_1.norm", "pixel_decoder/lateral"
        ),
        *of.normed_convolution(f"{_PIXEL}layer_1", f"{_PIXEL}layer_1.norm", "pixel_decoder/fusion"),
        *of.convolution(f"{_PIXEL}mask_features", "pixel_decoder/mask_features"),
    ]


def predictor_rules() -> list[Rule]:
    """Of Mask2Former's decoder, without what makes classes of queries."""
    ours = "decoder/layers_{}/"
    cross = f"{_PREDICTOR}transformer_cross_attention_layers.{{}}."
    itself = f"{_PREDICTOR}transformer_self_attention_layers.{{}}."
    mlp = f"{_PREDICTOR}transformer_ffn_layers.{{}}."
    return [
        *(
            Rule(f"{_PREDICTOR}{name}.weight", f"decoder/{name}")
            for name in ("query_feat", "query_embed", "level_embed")
        ),
        *of.norm(f"{_PREDICTOR}decoder_norm", "decoder/decoder_norm"),
        *of.packed_attention(f"{cross}multihead_attn", f"{ours}cross_attn"),
        *of.norm(f"{cross}norm", f"{ours}cross_norm"),
        *of.packed_attention(f"{itself}self_attn", f"{ours}self_attn"),
        *of.norm(f"{itself}norm", f"{ours}self_norm"),
        *of.dense(f"{mlp}linear1", f"{ours}linear1"),
        *of.dense(f"{mlp}linear2", f"{ours}linear2"),
        *of.norm(f"{mlp}norm", f"{ours}mlp_norm"),
        *of.dense(f"{_PREDICTOR}mask_embed.layers.{{}}", "decoder/mask_embed/layers_{}"),
    ]


def _text_rules() -> list[Rule]:
    attention = f"{_INTERACTION}attn."
    return [
        *of.dense(f"{_PREDICTOR}class_embed.layers.{{}}", "class_embed/layers_{}"),
        *of.norm(f"{_INTERACTION}layer_norm_q_1", "interaction/norm_maps"),
        *of.norm(f"{_INTERACTION}layer_norm_k_1", "interaction/norm_text"),
        *(
            rule
            for part, name in (("q", "query"), ("k", "key"), ("v", "value"))
            for rule in of.heads_projection(f"{attention}{part}_proj", f"interaction/{name}")
        ),
        Rule(
            f"{attention}out_proj.weight",
            "interaction/out_kernel",
            lambda shape, x: x.T.reshape(shape),
            lambda x: x.reshape(-1, x.shape[-1]).T,
        ),
        Rule(f"{attention}out_proj.bias", "interaction/out_bias"),
        Rule(f"{_INTERACTION}gamma", "interaction/gamma"),
        Rule(
            _NON_OBJECT,
            "non_object_embedding",
            lambda shape, x: x.reshape(shape),
            lambda x: x[None],
        ),
    ]
