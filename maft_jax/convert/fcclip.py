"""Checkpoints of FC-CLIP and MAFT+: one ConvNeXt CLIP, and the generator that reads its maps.

MAFT+'s `backbone.*` is the tuned CLIP, `backbone_t.*` what it was tuned from, and `cdt.*` its
content-dependent transfer.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Mapping

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
from maft_jax.convert.method_modules import (
    CONTENT_DEPENDENT_TRANSFER,
    MASK_ADAPTER,
    foreign_modules,
    has_both,
)
from maft_jax.convert.open_clip_convnext import PROJ, infer_open_clip
from maft_jax.convert.openai import text_rules
from maft_jax.convert.prefixes import find_prefixes, without_torch_wrappers
from maft_jax.convert.rules import Ignored, Rule, materialised, stored_as_ours, to_foreign
from maft_jax.convert.stored_tensor import StoredTensor
from maft_jax.convert.tensor_replacement import replace_tensors, tensor_places
from maft_jax.convert.weights_source import open_tensors
from maft_jax.hub.local_files import local_path
from maft_jax.models.adapters.content_dependent_transfer import HEADS as TRANSFER_HEADS
from maft_jax.models.adapters.content_dependent_transfer import ContentDependentTransfer
from maft_jax.models.adapters.mask_adapter import MaskAdapter, MaskAdapterConfig
from maft_jax.models.clip import ClipConfig
from maft_jax.models.generators.fcclip import FcClipConfig
from maft_jax.models.mask_reader import Modules
from maft_jax.models.towers.convnext import HEADS, ConvNextConfig

CLIP = "backbone.clip_model."
_PREDICTOR = "sem_seg_head.predictor."
_HIDDEN = "visual.head.mlp.fc1"
_TRANSFER, _ADAPTER = "cdt.", "mask_adapter."
_TRANSFER_BIAS = "cross_atten.MLP.bias"
_VOID = "void_embedding.weight"
_OWN_PART = f"{_PREDICTOR}_mask_pooling_proj.1.weight"

_TRAINING = [
    Ignored(r"criterion\..*", "settings of the losses"),
    Ignored(r"backbone_t\..*", "the CLIP that MAFT+ was tuned from"),
    Ignored(r"cdt\..*", "MAFT+'s content-dependent transfer, which read_modules reads"),
    Ignored(r"mask_adapter\..*", "Mask-Adapter's adapter, which read_modules reads"),
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


def read_modules(path: str | os.PathLike) -> dict:
    """What such a checkpoint reads masks with, beside the tower.

    As `transfer` the parameters of MAFT+'s content-dependent transfer, as `adapter` those of
    Mask-Adapter's adapter; what there is.

    Raises:
        ValueError: tensors are unknown, missing or misshapen.
    """
    path = local_path(os.fspath(path))
    tensors = without_torch_wrappers(open_tensors(path).tensors)
    (names,) = find_prefixes(tensors, is_fcclip).values()
    transfer, adapter = (
        {
            name.removeprefix(prefix): tensors[whole]
            for name, whole in names.items()
            if name.startswith(prefix)
        }
        for prefix in (_TRANSFER, _ADAPTER)
    )
    modules = {}
    if transfer:
        width = _transfer_width(transfer, path)
        text, cells = jnp.zeros((1, width)), jnp.zeros((1, 1, 1, width))
        expected = jax.eval_shape(ContentDependentTransfer().init, jax.random.key(0), text, cells)
        table = CONTENT_DEPENDENT_TRANSFER
        modules["transfer"] = materialised(_stored(transfer, expected, table, path))
    if adapter:
        config, embed_dim = _adapter_config(adapter, path)
        cells, masks = jnp.zeros((1, 1, 1, embed_dim)), jnp.zeros((1, 1, 1, 1))
        expected = jax.eval_shape(MaskAdapter(config).init, jax.random.key(0), cells, masks)
        modules["adapter"] = materialised(_stored(adapter, expected, MASK_ADAPTER, path))
    return modules


def _stored(found: Mapping[str, StoredTensor], expected: Mapping, table, source: str):
    return stored_as_ours(found, expected["params"], table, source=source)


def adapter_config(parameters: Mapping) -> MaskAdapterConfig:
    """Sizes of an adapter that was read."""
    mask_widths = tuple(parameters[f"mask_conv_{i}"]["kernel"].shape[-1] for i in range(2))
    width, num_maps = parameters["maps"]["kernel"].shape
    return MaskAdapterConfig(width, mask_widths, num_maps)


def _adapter_config(
    found: Mapping[str, StoredTensor], source: str
) -> tuple[MaskAdapterConfig, int]:
    """Sizes by the shapes of the file, with the width of embeddings."""
    sizes = []
    for name in ("mask_downscaling.0", "mask_downscaling.3", "fuse", "final"):
        tensor = found.get(f"{name}.weight")
        if tensor is None or len(tensor.shape) != 4 or 0 in tensor.shape:
            raise ValueError(
                f"{source}: {_ADAPTER}{name}.weight: expected the kernel of a convolution, got "
                f"{'none' if tensor is None else f'shape {tensor.shape}'}; is it a checkpoint of "
                "Mask-Adapter?"
            )
        sizes.append(tensor.shape[:2])
    (first, _), (second, _), (width, embed_dim), (num_maps, _) = sizes
    return MaskAdapterConfig(width, (first, second), num_maps), embed_dim


def _transfer_width(found: Mapping[str, StoredTensor], path: str | os.PathLike) -> int:
    if _TRANSFER_BIAS not in found:
        return TRANSFER_HEADS  # any: that it is missing is said with all else that does not fit
    shape = found[_TRANSFER_BIAS].shape
    if len(shape) != 1 or not shape[0] or shape[0] % TRANSFER_HEADS:
        raise ValueError(
            f"{os.fspath(path)}: {_TRANSFER}{_TRANSFER_BIAS}: expected one dimension, a multiple "
            f"of {TRANSFER_HEADS} heads, got shape {shape}; is it a MAFT+ checkpoint?"
        )
    return shape[0]


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


def _visual_rules(prefix: str, head: str) -> list[Rule]:
    return [
        *trunk_rules(f"{prefix}visual.trunk."),
        *(hidden_rules(f"{prefix}{_HIDDEN}") if head == "mlp" else []),
        transposed(f"{prefix}{PROJ[head]}", "visual/proj"),
    ]


def _fcclip(head: str) -> Format:
    def recognise(names: Collection[str]) -> bool:
        return is_fcclip(names) and (f"{CLIP}{_HIDDEN}.weight" in names) == (head == "mlp")

    return Format(
        name="fcclip",
        description="the CLIP in a checkpoint of FC-CLIP, or the tuned one in MAFT+'s",
        recognise=recognise,
        infer_config=lambda source, choices: _infer_clip(source, choices, head),
        rules=[
            Rule(f"{CLIP}logit_scale", "logit_scale"),
            *_visual_rules(CLIP, head),
            *text_rules(CLIP),
        ],
        ignored=_CLIP_IGNORED,
        suffixes=(),
        why_not=lambda config: (
            "such a file holds a whole segmentation system; write the tower into an existing one "
            "(--into=THEIRS.pth)"
        ),
        tower=ConvNextConfig,
    )


FCCLIP_FORMATS = tuple(_fcclip(head) for head in HEADS)
"""A layout for each head."""


def holds_fcclip(template: pathlib.Path) -> bool:
    """Whether a file, into which a tower is to be written, is a checkpoint of this kind."""
    return bool(find_prefixes(tensor_places(template), is_fcclip))


def write_into(
    template: pathlib.Path,
    destination: str | os.PathLike,
    config: ConvNextConfig,
    visual: Mapping,
    progress: Callable[[int], object] = lambda num_bytes: None,
    modules: Modules | None = None,
) -> None:
    """Copies a checkpoint of FC-CLIP or MAFT+ with our image tower in the place of its CLIP's.

    Every byte that is not a value of `backbone.clip_model.visual.*`, or of the modules that are
    given, stays as it was: generator, text tower, what MAFT+ was tuned from. Values are rounded to
    the dtypes that they have there.

    Raises:
        ValueError: the template is of another kind, its tower of another size, it has no such
            modules, or those of two methods, which learnt from the tower that is there. Nothing is
            written then.
    """
    places = tensor_places(template)
    prefixes = list(find_prefixes(places, is_fcclip))
    if len(prefixes) != 1 or not isinstance(config, ConvNextConfig):
        raise ValueError(
            f"{template}: expected one checkpoint of FC-CLIP or MAFT+ and a ConvNeXt to write into "
            f"it, found {len(prefixes)} and {config!r}"
        )
    if has_both(places):
        raise ValueError(
            f"{template}: expected a checkpoint with the modules of one method at most, got "
            "Mask-Adapter for MAFT+, whose transfer and adapter work together with the tower that "
            "they learnt from; give one of FC-CLIP, of MAFT+ or of Mask-Adapter for FC-CLIP"
        )
    prefix = f"{prefixes[0]}{CLIP}"
    tower = to_foreign({"visual": visual}, _visual_rules(prefix, config.head))
    there = {name for name in places if name.startswith(f"{prefix}visual.")}
    if there != set(tower):
        raise ValueError(
            f"{template}: its tower has {len(there)} tensors, ours {len(tower)}; not in both: "
            f"{', '.join(sorted(there ^ set(tower))[:5])}. Expected a tower of as many blocks"
        )
    if modules is not None:
        tower |= foreign_modules(modules, places, source=os.fspath(template))
    replace_tensors(template, destination, tower, progress)
