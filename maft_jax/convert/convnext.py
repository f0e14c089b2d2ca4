"""ConvNeXt CLIPs as timm names them: the trunk of open_clip's, and the image tower alone.

Tensors tell stages, widths, head and embedding. They tell neither the epsilon of the LayerNorms,
1e-5 in convnext_xxlarge and 1e-6 in all others, nor the pixels: the settings beside the file do.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert import transformers_clip
from maft_jax.convert.foreign_format import Choices, Format, WeightsSource
from maft_jax.convert.openai import count_layers
from maft_jax.convert.rules import Rule
from maft_jax.models.clip import ClipConfig
from maft_jax.models.preprocess import UNIT_MEAN, UNIT_STD
from maft_jax.models.towers.convnext import HEADS, ConvNextConfig

SETTINGS_FILE = transformers_clip.SETTINGS_FILE
PUBLISHED = {
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "convnext_xxlarge": ((3, 4, 30, 3), (384, 768, 1536, 3072)),
}
"""Blocks and channels of timm's models that compute as ours does."""
FIRST_CONVOLUTION = "stages.0.blocks.0.conv_dw.weight"
"""What a ConvNeXt of timm is recognised by."""

_XXLARGE = "convnext_xxlarge"
_UNTOLD_IMAGE_SIZE = 256
"""Pixels of most released weights."""


def transposed(foreign: str, ours: str) -> Rule:
    """torch keeps matrices as [out, in]."""
    return Rule(foreign, ours, lambda shape, x: x.T, lambda x: x.T)


def _convolution(foreign: str, ours: str) -> list[Rule]:
    """torch keeps kernels as [out, in, rows, columns]."""
    return [
        Rule(
            f"{foreign}.weight",
            f"{ours}/kernel",
            lambda shape, x: x.transpose(2, 3, 1, 0),
            lambda x: x.transpose(3, 2, 0, 1),
        ),
        Rule(f"{foreign}.bias", f"{ours}/bias"),
    ]


def _dense(foreign: str, ours: str) -> list[Rule]:
    return [
        transposed(f"{foreign}.weight", f"{ours}/kernel"),
        Rule(f"{foreign}.bias", f"{ours}/bias"),
    ]


def _norm(foreign: str, ours: str) -> list[Rule]:
    return [Rule(f"{foreign}.weight", f"{ours}/scale"), Rule(f"{foreign}.bias", f"{ours}/bias")]


def trunk_rules(prefix: str) -> list[Rule]:
    """Stem, stages, and the norm of the pooled map, under a prefix."""
    stage, block = f"{prefix}stages.{{}}.", f"{prefix}stages.{{}}.blocks.{{}}."
    our_stage, our_block = "visual/stages_{}/", "visual/stages_{}/blocks_{}/"
    return [
        *_convolution(f"{prefix}stem.0", "visual/stem"),
        *_norm(f"{prefix}stem.1", "visual/ln_stem"),
        *_norm(f"{stage}downsample.0", f"{our_stage}ln_downsample"),
        *_convolution(f"{stage}downsample.1", f"{our_stage}downsample"),
        *_convolution(f"{block}conv_dw", f"{our_block}conv_dw"),
        *_norm(f"{block}norm", f"{our_block}ln_mlp"),
        *_dense(f"{block}mlp.fc1", f"{our_block}mlp/c_fc"),
        *_dense(f"{block}mlp.fc2", f"{our_block}mlp/c_proj"),
        Rule(f"{block}gamma", f"{our_block}layer_scale"),
        *_norm(f"{prefix}head.norm", "visual/ln_post"),
    ]


def hidden_rules(foreign: str) -> list[Rule]:
    """The first matrix of an mlp head, with its bias."""
    return [
        transposed(f"{foreign}.weight", "visual/head_kernel"),
        Rule(f"{foreign}.bias", "visual/head_bias"),
    ]


def infer_tower(source: WeightsSource, prefix: str, proj: str, head: str) -> ConvNextConfig:
    """What the tensors tell, with the epsilon of timm's model of these sizes.

    Args:
        prefix: of the trunk's names.
        proj: name of the head's last matrix.

    Raises:
        ValueError: a tensor that tells a size is missing.
    """
    shapes = source.shapes
    num_stages = count_layers(shapes, f"{prefix}stages.")
    convolutions = [f"{prefix}stages.{s}.blocks.0.conv_dw.weight" for s in range(num_stages)]
    for name in (*convolutions, proj):
        if not shapes.get(name):
            raise ValueError(f"{source.path}: a ConvNeXt CLIP without a tensor {name!r}")
    depths = tuple(count_layers(shapes, f"{prefix}stages.{s}.blocks.") for s in range(num_stages))
    dims = tuple(shapes[name][0] for name in convolutions)
    epsilon = 1e-5 if (depths, dims) == PUBLISHED[_XXLARGE] else 1e-6
    return ConvNextConfig(depths, dims, shapes[proj][0], head, epsilon, _UNTOLD_IMAGE_SIZE)


def with_settings(
    tower: ConvNextConfig, name: object, image_size: object, where: str
) -> ConvNextConfig:
    """With what the name of timm's model and the pixels, one number or several, say.

    Raises:
        ValueError: `where` names a model that computes otherwise, or has no such pixels.
    """
    if name not in PUBLISHED:
        raise ValueError(f"{where}: expected a model of {list(PUBLISHED)}, got {name!r:.80}")
    sides = image_size if isinstance(image_size, list | tuple) else [image_size]
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{where}: expected positive pixels per side, got {image_size!r:.40}")
    epsilon = 1e-5 if name == _XXLARGE else 1e-6
    return dataclasses.replace(tower, norm_epsilon=epsilon, image_size=max(sides))


def timm_name(config: ConvNextConfig) -> str:
    """timm's model of these sizes; of sizes that it has not, one of the same epsilon."""
    if config.norm_epsilon == 1e-5:
        return _XXLARGE
    sizes = {sizes: name for name, sizes in PUBLISHED.items() if name != _XXLARGE}
    return sizes.get((config.depths, config.dims), "convnext_base")


def why_not_timm(vision: ConvNextConfig, head: str) -> str | None:
    """Why timm's models compute something else with these weights, or None."""
    if vision.head != head:
        return f"this layout has a {head} head, not a {vision.head} one"
    if vision.norm_epsilon not in (1e-5, 1e-6):
        return f"its epsilon is 1e-5 or 1e-6, that of these weights {vision.norm_epsilon}"
    return None


def refuse_choices(source: WeightsSource, choices: Choices) -> None:
    """Refuses what is stated of attention and activation, of which there is nothing to state.

    Raises:
        ValueError: something is.
    """
    for name in ("activation", "head_width"):
        if (value := getattr(choices, name)) is not None:
            raise ValueError(
                f"{source.path}: {name}={value}: has no meaning for a ConvNeXt, which has no "
                "attention and always GELU; leave it out"
            )


def _infer_timm(source: WeightsSource, choices: Choices, head: str) -> ClipConfig:
    refuse_choices(source, choices)
    tower = infer_tower(source, "", "head.fc.weight", head)
    if SETTINGS_FILE in source.settings:
        settings, where = source.settings[SETTINGS_FILE](), f"{source.path}: {SETTINGS_FILE}"
        pretrained = settings.get("pretrained_cfg")
        size = pretrained.get("input_size") if isinstance(pretrained, Mapping) else None
        name = str(settings.get("architecture")).replace("_mlp", "")
        size = size[1:] if isinstance(size, list) else size
        tower = with_settings(tower, name, size, where)
    return ClipConfig(tower, None)


def _timm_settings(config: ClipConfig, dtype: np.dtype) -> dict:
    vision = config.vision
    size, mlp = vision.image_size, vision.head == "mlp"
    return {
        "architecture": timm_name(vision),
        "num_classes": vision.embed_dim,
        "num_features": vision.dims[-1],
        "model_args": {
            "depths": list(vision.depths),
            "dims": list(vision.dims),
            **({"head_hidden_size": 2 * vision.embed_dim} if mlp else {}),
        },
        "pretrained_cfg": {
            "mean": list(UNIT_MEAN),
            "std": list(UNIT_STD),
            "input_size": [3, size, size],
            "num_classes": vision.embed_dim,
        },
    }


def _without_bias(shape, weight, bias):
    if np.any(bias):
        raise ValueError(
            "head.fc.bias: expected zeros, as timm has them in the image towers of CLIPs; this one "
            "is a classifier, or was tuned as one"
        )
    return weight.T


_PROJ = Rule(
    ("head.fc.weight", "head.fc.bias"),
    "visual/proj",
    _without_bias,
    lambda x: (x.T, np.zeros(x.shape[1], x.dtype)),
)
"""timm's head has a bias, which CLIP has not."""


def _timm(head: str) -> Format:
    hidden = "head.pre_logits.fc"

    def recognise(names: Collection[str]) -> bool:
        needed = FIRST_CONVOLUTION in names and "head.fc.weight" in names
        return needed and (f"{hidden}.weight" in names) == (head == "mlp")

    def why_not(config: ClipConfig) -> str | None:
        if config.text is not None:
            return "it is an image tower alone, and these weights have a text tower"
        return why_not_timm(config.vision, head)

    return Format(
        name="timm",
        description="timm's ConvNeXt, the image tower of a CLIP alone",
        recognise=recognise,
        infer_config=lambda source, choices: _infer_timm(source, choices, head),
        rules=[*trunk_rules(""), *(hidden_rules(hidden) if head == "mlp" else []), _PROJ],
        settings_file=SETTINGS_FILE,
        folder_tensors="model.safetensors",
        make_settings=_timm_settings,
        why_not=why_not,
        tower=ConvNextConfig,
    )


TIMM_CONVNEXT_FORMATS = tuple(_timm(head) for head in HEADS)
"""A layout for each head."""
