"""Checkpoints of FC-CLIP and MAFT+: one ConvNeXt CLIP, and the generator that reads its maps.

MAFT+'s `backbone.*` is the tuned CLIP, `backbone_t.*` what it was tuned from, and `cdt.*` its
content-dependent transfer.
"""

import dataclasses
import os
from collections.abc import Collection

import jax
import jax.numpy as jnp

from maft_jax.convert import generator_rules as of
from maft_jax.convert.convnext import FIRST_CONVOLUTION, hidden_rules, transposed, trunk_rules
from maft_jax.convert.foreign_format import Choices, Format, WeightsSource
from maft_jax.convert.generators_official import (
    Shapes,
    infer_decoder,
    infer_pixel_decoder,
    pixel_decoder_rules,
    predictor_rules,
)
from maft_jax.convert.method_modules import CONTENT_DEPENDENT_TRANSFER
from maft_jax.convert.open_clip_convnext import PROJ, infer_open_clip
from maft_jax.convert.openai import text_rules
from maft_jax.convert.prefixes import find_prefixes, without_torch_wrappers
from maft_jax.convert.rules import Ignored, Rule, materialised, stored_as_ours
from maft_jax.convert.weights_source import open_tensors
from maft_jax.models.adapters.content_dependent_transfer import HEADS as TRANSFER_HEADS
from maft_jax.models.adapters.content_dependent_transfer import ContentDependentTransfer
from maft_jax.models.clip import ClipConfig
from maft_jax.models.generators.fcclip import FcClipConfig
from maft_jax.models.towers.convnext import HEADS, ConvNextConfig

CLIP = "backbone.clip_model."
_PREDICTOR = "sem_seg_head.predictor."
_TRANSFER = "cdt."
_VOID = "void_embedding.weight"
_OWN_PART = f"{_PREDICTOR}_mask_pooling_proj.1.weight"

_TRAINING = [
    Ignored(r"criterion\..*", "settings of the losses"),
    Ignored(r"backbone_t\..*", "the CLIP that MAFT+ was tuned from"),
    Ignored(r"cdt\..*", "MAFT+'s content-dependent transfer, which read_transfer reads"),
]
GENERATOR_IGNORED = [
    Ignored(r"backbone\..*", "CLIP, which weights.open_weights reads"),
    *_TRAINING,
]
_CLIP_IGNORED = [
    Ignored(r"sem_seg_head\..*", "the proposal generator, which open_generator reads"),
    Ignored(r"void_embedding\..*", "the generator's row for no object"),
    *_TRAINING,
]


def is_fcclip(names: Collection[str]) -> bool:
    """Whether these are names of a checkpoint of this kind."""
    return _OWN_PART in names and f"{CLIP}visual.trunk.{FIRST_CONVOLUTION}" in names


def infer_generator(source: WeightsSource) -> FcClipConfig:
    """The generator's architecture, by shapes.

    Raises:
        ValueError: a tensor that says it is absent or has another number of dimensions.
    """
    shapes = Shapes(source)
    pixel = "sem_seg_head.pixel_decoder."
    coarser = (shapes.size(f"{pixel}input_proj.{i}.0.weight", 1) for i in (2, 1, 0))
    return FcClipConfig(
        (shapes.size(f"{pixel}adapter_1.weight", 1), *coarser),
        shapes.size(f"{_PREDICTOR}class_embed.layers.2.weight", 0),
        infer_pixel_decoder(shapes),
        infer_decoder(shapes),
    )


def read_transfer(path: str | os.PathLike) -> dict:
    """{"transfer": parameters of MAFT+'s content-dependent transfer}; nothing if there is none.

    Raises:
        ValueError: its tensors are unknown, missing or misshapen.
    """
    tensors = without_torch_wrappers(open_tensors(path).tensors)
    ((names,),) = (find_prefixes(tensors, is_fcclip).values(),)
    found = {
        name.removeprefix(_TRANSFER): tensors[whole]
        for name, whole in names.items()
        if name.startswith(_TRANSFER)
    }
    if not found:
        return {}
    width = (
        found["cross_atten.MLP.bias"].shape[0]
        if "cross_atten.MLP.bias" in found
        else TRANSFER_HEADS
    )
    text, cells = jnp.zeros((1, width)), jnp.zeros((1, 1, 1, width))
    expected = jax.eval_shape(ContentDependentTransfer().init, jax.random.key(0), text, cells)
    table = CONTENT_DEPENDENT_TRANSFER
    leaves = stored_as_ours(found, expected["params"], table, source=os.fspath(path))
    return {"transfer": materialised(leaves)}


GENERATOR_RULES = [
    *pixel_decoder_rules(),
    *predictor_rules(),
    *of.dense(f"{_PREDICTOR}class_embed.layers.{{}}", "class_head/class_embed/layers_{}"),
    *of.norm(f"{_PREDICTOR}_mask_pooling_proj.0", "class_head/norm"),
    *of.dense(f"{_PREDICTOR}_mask_pooling_proj.1", "class_head/proj"),
    Rule(f"{_PREDICTOR}logit_scale", "class_head/logit_scale"),
    Rule(
        _VOID,
        "class_head/void_embedding",
        lambda shape, x: x.reshape(shape),
        lambda x: x[None],
    ),
]
"""The table of the generator, in both directions."""


def _infer_clip(source: WeightsSource, choices: Choices, head: str) -> ClipConfig:
    tensors = {
        name.removeprefix(CLIP): tensor
        for name, tensor in source.tensors.items()
        if name.startswith(CLIP)
    }
    return infer_open_clip(dataclasses.replace(source, tensors=tensors), choices, head)


def _fcclip(head: str) -> Format:
    hidden = f"{CLIP}visual.head.mlp.fc1"

    def recognise(names: Collection[str]) -> bool:
        return is_fcclip(names) and (f"{hidden}.weight" in names) == (head == "mlp")

    return Format(
        name="fcclip",
        description="the CLIP in a checkpoint of FC-CLIP, or the tuned one in MAFT+'s",
        recognise=recognise,
        infer_config=lambda source, choices: _infer_clip(source, choices, head),
        rules=[
            Rule(f"{CLIP}logit_scale", "logit_scale"),
            *trunk_rules(f"{CLIP}visual.trunk."),
            *(hidden_rules(hidden) if head == "mlp" else []),
            transposed(f"{CLIP}{PROJ[head]}", "visual/proj"),
            *text_rules(CLIP),
        ],
        ignored=_CLIP_IGNORED,
        suffixes=(),
        why_not=lambda config: "such a file holds a whole segmentation system",
        tower=ConvNextConfig,
    )


FCCLIP_FORMATS = tuple(_fcclip(head) for head in HEADS)
"""A layout for each head."""
