"""Mask2Former and MaskFormer in the layout of `transformers`: config.json and safetensors.

Version 5 of the library writes the names of version 4 unless it is asked not to; both are read, and
the older ones written.
"""

import re
from collections.abc import Mapping
from typing import Any

from maft_jax.convert import generator_rules as of
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.maskformer import MaskFormerConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.swin import SwinConfig

_ENCODER = "model.pixel_level_module.encoder."
_PIXEL = "model.pixel_level_module.decoder."
_TRANSFORMER = "model.transformer_module."
_MOST_LAYERS = 200
"""Of a stage or a decoder: a file that asks for more is damaged."""
_QKV = ("q_proj", "k_proj", "v_proj")

IGNORED = [
    Ignored(r"criterion\..*", "settings of the losses"),
    Ignored(r".*\.num_batches_tracked", "a counter of training"),
    Ignored(r".*\.relative_position_index", "positions in a window, which its size implies"),
    Ignored(
        r"model\.pixel_level_module\.encoder\.(swin\.|model\.)?layernorm\.(weight|bias)",
        "a norm of the backbone's last output, which nothing reads",
    ),
]

_OLDER_NAMES = [
    (rf"^({re.escape(_ENCODER)})swin\.(?!layernorm)", r"\1"),
    *(
        (rf"^({re.escape(_ENCODER)}.*\.attention)\.{new}\.", rf"\1.{old}.")
        for new, old in (
            ("q_proj", "self.query"),
            ("k_proj", "self.key"),
            ("v_proj", "self.value"),
            ("o_proj", "output.dense"),
        )
    ),
    (
        rf"^({re.escape(_ENCODER)}.*\.attention)\.relative_position_bias\.relative_position_bias",
        r"\1.self.relative_position_bias",
    ),
    (rf"^({re.escape(_ENCODER)}.*)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (rf"^({re.escape(_ENCODER)}.*)\.mlp\.fc2\.", r"\1.output.dense."),
    (rf"^({re.escape(_TRANSFORMER)}.*)\.mlp\.fc", r"\1.fc"),
    (rf"^({re.escape(_TRANSFORMER)}.*)\.o_proj\.", r"\1.out_proj."),
]


def with_older_names(tensors: Mapping) -> dict:
    """Names of version 5 as version 4 has them."""

    def older(name: str) -> str:
        for pattern, replacement in _OLDER_NAMES:
            name = re.sub(pattern, replacement, name)
        return name

    return {older(name): tensor for name, tensor in tensors.items()}


class _Settings:
    """A JSON object of the library's, read by name, with its default where a name is absent."""

    def __init__(self, values: Any, where: str):
        if not isinstance(values, Mapping):
            raise ValueError(f"{where}: expected an object, got {type(values).__name__}")
        self._values, self.where = values, where

    def number(self, name: str, default: int, most: int = 1 << 16) -> int:
        value = self._values.get(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.wrong(name, value, f"an integer from 1 to {most}")
        return value

    def numbers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self._values.get(name, default)
        most = _MOST_LAYERS if name == "depths" else 1 << 16
        whole = isinstance(value, list | tuple) and all(
            type(x) is int and 0 < x <= most for x in value
        )
        if not whole or len(value) != len(default):
            raise self.wrong(name, value, f"{len(default)} integers from 1 to {most}")
        return tuple(value)

    def real(self, name: str, default: float) -> float:
        value = self._values.get(name, default)
        if type(value) not in (int, float) or not 0 < value < 1e6:
            raise self.wrong(name, value, "a positive number")
        return value

    def demand(self, **expected) -> None:
        """What other values of would compute something else; absent ones are as expected."""
        for name, one in expected.items():
            if (value := self._values.get(name, one)) != one:
                raise self.wrong(name, value, f"{one!r}, since nothing else is implemented")

    def part(self, name: str) -> "_Settings":
        if self._values.get(name) is None:
            raise self.wrong(name, None, "an object, which says what it is")
        return _Settings(self._values[name], f"{self.where}: {name}")

    def text(self, name: str) -> Any:
        return self._values.get(name)

    def num_classes(self) -> int:
        labels = self._values.get("id2label")
        return len(labels) if isinstance(labels, Mapping) else self.number("num_labels", 2)

    def wrong(self, name: str, value: Any, expected: str) -> ValueError:
        return ValueError(f"{self.where}: {name}: expected {expected}, got {value!r:.80}")


def infer_config(settings: Mapping, where: str) -> Mask2FormerConfig | MaskFormerConfig:
    """The architecture that a config.json states.

    Raises:
        ValueError: another model, or one that would compute something that is not implemented.
    """
    read = _Settings(settings, where)
    kinds = {"mask2former": _infer_mask2former, "maskformer": _infer_maskformer}
    if (kind := read.text("model_type")) not in kinds:
        raise read.wrong("model_type", kind, f"one of {list(kinds)}")
    return kinds[kind](read)


def _infer_mask2former(read: _Settings) -> Mask2FormerConfig:
    read.demand(
        pre_norm=False,
        enforce_input_projection=False,
        activation_function="relu",
        common_stride=4,
        feature_strides=[4, 8, 16, 32],
    )
    heads = read.number("num_attention_heads", 8)
    return Mask2FormerConfig(
        backbone=_infer_backbone(read),
        pixel_decoder=PixelDecoderConfig(
            width=read.number("feature_size", 256),
            mask_width=read.number("mask_feature_size", 256),
            layers=read.number("encoder_layers", 6, _MOST_LAYERS),
            mlp_width=read.number("encoder_feedforward_dim", 1024),
            heads=heads,
        ),
        decoder=DecoderConfig(
            width=read.number("hidden_dim", 256),
            queries=read.number("num_queries", 100),
            layers=read.number("decoder_layers", 10, _MOST_LAYERS) - 1,
            mlp_width=read.number("dim_feedforward", 2048),
            heads=heads,
        ),
        num_classes=read.num_classes(),
    )


def _infer_maskformer(read: _Settings) -> MaskFormerConfig:
    decoder = read.part("decoder_config")
    decoder.demand(model_type="detr", activation_function="relu")
    return MaskFormerConfig(
        num_classes=read.num_classes(),
        backbone=_infer_backbone(read),
        fpn_width=read.number("fpn_feature_size", 256),
        mask_width=read.number("mask_feature_size", 256),
        decoder=DecoderConfig(
            width=decoder.number("d_model", 256),
            queries=decoder.number("num_queries", 100),
            layers=decoder.number("decoder_layers", 6, _MOST_LAYERS),
            mlp_width=decoder.number("decoder_ffn_dim", 2048),
            heads=decoder.number("decoder_attention_heads", 8),
        ),
    )


def _infer_backbone(read: _Settings) -> ResNetConfig | SwinConfig:
    backbone = read.part("backbone_config")
    kind = backbone.text("model_type")
    backbone.demand(num_channels=3)
    if kind in ("swin", "maskformer-swin"):
        backbone.demand(
            patch_size=4, qkv_bias=True, hidden_act="gelu", use_absolute_embeddings=False
        )
        return SwinConfig(
            width=backbone.number("embed_dim", 96),
            blocks=backbone.numbers("depths", (2, 2, 6, 2)),
            heads=backbone.numbers("num_heads", (3, 6, 12, 24)),
            window=backbone.number("window_size", 7),
            mlp_ratio=backbone.real("mlp_ratio", 4.0),
            norm_epsilon=backbone.real("layer_norm_eps", 1e-5),
        )
    if kind == "resnet":
        backbone.demand(
            layer_type="bottleneck",
            hidden_act="relu",
            downsample_in_first_stage=False,
            downsample_in_bottleneck=False,
        )
        widths = backbone.numbers("hidden_sizes", (256, 512, 1024, 2048))
        return ResNetConfig(
            blocks=backbone.numbers("depths", (3, 4, 6, 3)),
            widths=widths,
            bottlenecks=tuple(width // 4 for width in widths),
            stem_widths=(backbone.number("embedding_size", 64),),
        )
    raise backbone.wrong("model_type", kind, "swin or resnet")


def rules_of(config: Mask2FormerConfig | MaskFormerConfig) -> list[Rule]:
    """The table of a generator, in both directions."""
    if isinstance(config, MaskFormerConfig):
        backbone = _backbone_rules(config.backbone, "model.", "{}")
        return [*backbone, *_maskformer_rules(len(config.backbone.blocks))]
    return [*_backbone_rules(config.backbone, "", "stage{}"), *_mask2former_rules()]


def _backbone_rules(config: ResNetConfig | SwinConfig, inner: str, stage_name: str) -> list[Rule]:
    if isinstance(config, ResNetConfig):
        return _resnet_rules(len(config.blocks))
    first = 1 if stage_name != "{}" else 0
    norms = [
        rule
        for stage in range(len(config.blocks))
        for rule in of.norm(
            f"{_ENCODER}hidden_states_norms.{stage_name.format(stage + first)}",
            f"backbone/norm_{stage}",
        )
    ]
    return norms + _swin_rules(f"{_ENCODER}{inner}", len(config.blocks))


def _swin_rules(prefix: str, stages: int) -> list[Rule]:
    rules = [
        *of.patch_embedding(f"{prefix}embeddings.patch_embeddings.projection", "backbone/patch"),
        *of.norm(f"{prefix}embeddings.norm", "backbone/patch_norm"),
    ]
    for stage in range(stages):
        block = f"{prefix}encoder.layers.{stage}.blocks.{{}}."
        ours = f"backbone/stage{stage}_block{{}}/"
        itself = f"{block}attention.self."
        rules += [
            *of.norm(f"{block}layernorm_before", f"{ours}norm1"),
            *of.norm(f"{block}layernorm_after", f"{ours}norm2"),
            *of.joined_projections(
                (f"{itself}query", f"{itself}key", f"{itself}value"), f"{ours}attn/qkv"
            ),
            Rule(f"{itself}relative_position_bias_table", f"{ours}attn/bias_table"),
            *of.dense(f"{block}attention.output.dense", f"{ours}attn/proj"),
            *of.dense(f"{block}intermediate.dense", f"{ours}fc1"),
            *of.dense(f"{block}output.dense", f"{ours}fc2"),
        ]
        if stage:
            merge = f"{prefix}encoder.layers.{stage - 1}.downsample."
            rules += of.norm(f"{merge}norm", f"backbone/merge_norm_{stage}")
            rules += of.dense(f"{merge}reduction", f"backbone/merge_{stage}", bias=False)
    return rules


def _resnet_rules(stages: int) -> list[Rule]:
    def rules(foreign: str, ours: str) -> list[Rule]:
        return of.frozen_convolution(f"{foreign}.convolution", f"{foreign}.normalization", ours)

    parts = {"layer.0": "conv1", "layer.1": "conv2", "layer.2": "conv3", "shortcut": "shortcut"}
    blocks = [
        rule
        for stage in range(stages)
        for theirs, part in parts.items()
        for rule in rules(
            f"{_ENCODER}encoder.stages.{stage}.layers.{{}}.{theirs}",
            f"backbone/res{stage + 2}_{{}}/{part}",
        )
    ]
    return [*rules(f"{_ENCODER}embedder.embedder", "backbone/stem_0"), *blocks]


def _mask2former_rules() -> list[Rule]:
    encoder = f"{_PIXEL}encoder.layers.{{}}"
    names = ("self_attn_layer_norm", "final_layer_norm", "fc1", "fc2")
    layer, ours = f"{_TRANSFORMER}decoder.layers.{{}}.", "decoder/layers_{}/"
    itself = f"{layer}self_attn."
    masks = f"{_TRANSFORMER}decoder.mask_predictor.mask_embedder.{{}}.0"
    embeddings = {
        "queries_features": "query_feat",
        "queries_embedder": "query_embed",
        "level_embed": "level_embed",
    }
    return [
        *of.normed_convolution(
            f"{_PIXEL}input_projections.{{}}.0",
            f"{_PIXEL}input_projections.{{}}.1",
            "pixel_decoder/input_proj_{}",
            bias=True,
        ),
        Rule(f"{_PIXEL}level_embed", "pixel_decoder/level_embed"),
        *of.deformable_layer(encoder, "pixel_decoder/layers_{}", names),
        *of.normed_convolution(
            f"{_PIXEL}adapter_1.0", f"{_PIXEL}adapter_1.1", "pixel_decoder/lateral"
        ),
        *of.normed_convolution(f"{_PIXEL}layer_1.0", f"{_PIXEL}layer_1.1", "pixel_decoder/fusion"),
        *of.convolution(f"{_PIXEL}mask_projection", "pixel_decoder/mask_features"),
        *(
            Rule(f"{_TRANSFORMER}{theirs}.weight", f"decoder/{name}")
            for theirs, name in embeddings.items()
        ),
        *of.norm(f"{_TRANSFORMER}decoder.layernorm", "decoder/decoder_norm"),
        *of.packed_attention(f"{layer}cross_attn", f"{ours}cross_attn"),
        *of.norm(f"{layer}cross_attn_layer_norm", f"{ours}cross_norm"),
        *of.attention(
            tuple(f"{itself}{part}" for part in _QKV), f"{itself}out_proj", f"{ours}self_attn"
        ),
        *of.norm(f"{layer}self_attn_layer_norm", f"{ours}self_norm"),
        *of.dense(f"{layer}fc1", f"{ours}linear1"),
        *of.dense(f"{layer}fc2", f"{ours}linear2"),
        *of.norm(f"{layer}final_layer_norm", f"{ours}mlp_norm"),
        *of.dense(masks, "decoder/mask_embed/layers_{}"),
        *of.dense("class_predictor", "class_embed"),
    ]


def _maskformer_rules(stages: int) -> list[Rule]:
    fpn = f"{_PIXEL}fpn."
    layer, ours = f"{_TRANSFORMER}decoder.layers.{{}}.", "decoder/layers_{}/"
    attentions = [
        rule
        for theirs, name in (("self_attn", "self"), ("encoder_attn", "cross"))
        for rule in (
            *of.attention(
                tuple(f"{layer}{theirs}.{part}" for part in _QKV),
                f"{layer}{theirs}.out_proj",
                f"{ours}{name}_attn",
            ),
            *of.norm(f"{layer}{theirs}_layer_norm", f"{ours}{name}_norm"),
        )
    ]
    pyramid = [
        rule
        for theirs, name in (("proj", "lateral"), ("block", "fusion"))
        for rule in of.normed_convolution(
            f"{fpn}layers.{{}}.{theirs}.0",
            f"{fpn}layers.{{}}.{theirs}.1",
            f"pixel_decoder/{name}_{{}}",
        )
    ]
    return [
        *of.normed_convolution(f"{fpn}stem.0", f"{fpn}stem.1", "pixel_decoder/stem"),
        *pyramid,
        *of.convolution(f"{_PIXEL}mask_projection", "pixel_decoder/mask_features"),
        *of.convolution(f"{_TRANSFORMER}input_projection", "decoder/input_proj"),
        Rule(f"{_TRANSFORMER}queries_embedder.weight", "decoder/query_embed"),
        *attentions,
        *of.dense(f"{layer}fc1", f"{ours}linear1"),
        *of.dense(f"{layer}fc2", f"{ours}linear2"),
        *of.norm(f"{layer}final_layer_norm", f"{ours}mlp_norm"),
        *of.norm(f"{_TRANSFORMER}decoder.layernorm", "decoder/decoder_norm"),
        *of.dense("mask_embedder.{}.0", "mask_embed/layers_{}"),
        *of.dense("class_predictor", "class_embed"),
    ]
