"""Generators as files: Mask2Former as `transformers` saves it, FreeSeg as its authors do."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from maft_jax.convert import generators_official as official
from maft_jax.convert import generators_transformers as transformers
from maft_jax.convert import openai, rules
from maft_jax.convert.generators import PREPARATION, SETTINGS
from maft_jax.convert.maft import FROZEN
from maft_jax.convert.state_dict_io import write_state_dict
from maft_jax.convert.stored_tensor import in_memory
from maft_jax.models.generators.image_preparation import ImagePreparation
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.runtime import tree_rules
from maft_jax.runtime.atomic_files import atomic_write_bytes

WEIGHTS = "model.safetensors"


def has_transformers_layout(config: Mask2FormerConfig) -> bool:
    """Whether the library has this architecture; else it is written in the official layout."""
    if config.text is not None:
        return False
    settings = _settings(config, [""] * config.num_classes)
    return transformers.infer_config(settings, SETTINGS) == config


def preparation_as_written(
    config: Mask2FormerConfig, short_side: int, max_long_side: int
) -> ImagePreparation:
    """How whoever reads the written generator prepares images.

    The official layout has no place for sizes: it means the official ones.
    """
    if has_transformers_layout(config):
        return ImagePreparation(True, shortest_edge=short_side, longest_edge=max_long_side)
    return official.preparation_of(config)


def write_generator(
    folder: pathlib.Path,
    config: Mask2FormerConfig,
    parameters: Mapping,
    preparation: ImagePreparation,
    class_names: Sequence[str] = (),
    clip: Mapping | None = None,
) -> None:
    """Writes what `open_generator` reads into a folder, which must be there.

    Args:
        class_names: of the generator's own classes.
        clip: parameters of OpenAI's CLIP, whose text tower embeds class names for FreeSeg; its
            checkpoint has them.
    """
    leaves = in_memory(tree_rules.flatten(parameters))
    if has_transformers_layout(config):
        tensors = rules.stored_as_foreign(leaves, transformers.rules_of(config))
        _write_json(folder / SETTINGS, _settings(config, class_names))
        _write_json(folder / PREPARATION, _preparation_settings(preparation))
    else:
        tensors = rules.stored_as_foreign(leaves, official.rules_of(config))
    if clip is not None:
        towers = rules.stored_as_foreign(in_memory(tree_rules.flatten(clip)), openai.RULES)
        tensors |= {f"{FROZEN}{name}": tensor for name, tensor in towers.items()}
    write_state_dict(tensors, folder / WEIGHTS)


def _write_json(path: pathlib.Path, values: Mapping) -> None:
    atomic_write_bytes(epath.Path(path), (json.dumps(values, indent=2) + "\n").encode())


def _settings(config: Mask2FormerConfig, class_names: Sequence[str]) -> dict:
    """The library's config.json."""
    labels = {str(index): name for index, name in enumerate(class_names)}
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "dtype": np.dtype(np.float32).name,
        "id2label": labels,
        "label2id": {name: int(index) for index, name in labels.items()},
        "backbone_config": _backbone_settings(config),
        "feature_size": config.pixel_decoder.width,
        "mask_feature_size": config.pixel_decoder.mask_width,
        "hidden_dim": config.decoder.width,
        "num_attention_heads": config.decoder.heads,
        "encoder_layers": config.pixel_decoder.layers,
        "encoder_feedforward_dim": config.pixel_decoder.mlp_width,
        "decoder_layers": config.decoder.layers + 1,
        "dim_feedforward": config.decoder.mlp_width,
        "num_queries": config.decoder.queries,
        "dropout": 0.0,
    }


def _backbone_settings(config: Mask2FormerConfig) -> dict:
    backbone = config.backbone
    stages = [f"stage{stage + 1}" for stage in range(len(backbone.blocks))]
    if isinstance(backbone, ResNetConfig):
        return {
            "model_type": "resnet",
            "layer_type": "bottleneck",
            "embedding_size": backbone.stem_widths[0],
            "hidden_sizes": list(backbone.widths),
            "depths": list(backbone.blocks),
            "out_features": stages,
        }
    return {
        "model_type": "swin",
        "embed_dim": backbone.width,
        "depths": list(backbone.blocks),
        "num_heads": list(backbone.heads),
        "window_size": backbone.window,
        "mlp_ratio": backbone.mlp_ratio,
        "layer_norm_eps": backbone.norm_epsilon,
        "out_features": stages,
    }


def _preparation_settings(preparation: ImagePreparation) -> dict:
    """The library's preprocessor_config.json."""
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "size": {
            "shortest_edge": preparation.shortest_edge,
            "longest_edge": preparation.longest_edge,
        },
        "size_divisor": preparation.divisor,
    }
