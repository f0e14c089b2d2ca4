"""Every weight format by name, and weights read from and written to any of them."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Literal

import jax
import numpy as np

from maft_jax.config.fields import build
from maft_jax.convert import rules
from maft_jax.convert.big_vision import BIG_VISION_FORMATS
from maft_jax.convert.big_vision_siglip import BIG_VISION_SIGLIP_FORMATS
from maft_jax.convert.convnext import TIMM_CONVNEXT_FORMATS
from maft_jax.convert.eva02 import EVA02_FORMATS
from maft_jax.convert.fcclip import FCCLIP_FORMATS
from maft_jax.convert.foreign_format import Choices, Format, WeightsSource
from maft_jax.convert.maft import MAFT_FORMATS, MAFT_FROZEN_FORMATS
from maft_jax.convert.open_clip import OPEN_CLIP, OPEN_CLIP_CUSTOM_TEXT
from maft_jax.convert.open_clip_convnext import OPEN_CLIP_CONVNEXT_FORMATS
from maft_jax.convert.open_clip_siglip import OPEN_CLIP_SIGLIP
from maft_jax.convert.openai import OPENAI
from maft_jax.convert.prefixes import FIRST, find_prefixes, without_torch_wrappers
from maft_jax.convert.state_dict_io import write_state_dict
from maft_jax.convert.stored_tensor import StoredTensor, in_memory
from maft_jax.convert.text_tokenizers import (
    check_room_for_tokenizer,
    with_tokenizer,
    without_path,
    write_tokenizer,
)
from maft_jax.convert.timm_vit import TIMM_VIT_FORMATS
from maft_jax.convert.tips import TIPS_FORMATS
from maft_jax.convert.transformers_clip import TRANSFORMERS, explain
from maft_jax.convert.transformers_siglip import TRANSFORMERS_SIGLIP_FORMATS
from maft_jax.convert.weights_source import OWN_METADATA, open_tensors
from maft_jax.models.clip import ClipConfig, random_parameters
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.mask_reader import Modules
from maft_jax.runtime import tree_rules
from maft_jax.runtime.atomic_files import atomic_folder, clear_leftovers

_LAYOUTS = (
    OPENAI,
    *EVA02_FORMATS,
    OPEN_CLIP,
    OPEN_CLIP_CUSTOM_TEXT,
    *OPEN_CLIP_CONVNEXT_FORMATS,
    TRANSFORMERS,
    *TRANSFORMERS_SIGLIP_FORMATS,
    OPEN_CLIP_SIGLIP,
    *TIMM_CONVNEXT_FORMATS,
    *TIMM_VIT_FORMATS,
    *FCCLIP_FORMATS,
    *MAFT_FORMATS,
    *MAFT_FROZEN_FORMATS,
    *BIG_VISION_FORMATS,
    *TIPS_FORMATS,
    *BIG_VISION_SIGLIP_FORMATS,
)
"""In the order of recognition. Layouts of one name differ in a prefix of their tensors' names."""

_LARGEST_SIZE, _LARGEST_IMAGE = 2**20, 2**14
"""Widths and vocabularies; sides of the images that a tower reads."""
_SIMILARITY_BOUNDS = {"logit_scale": (0, 10_000), "logit_bias": (-10_000, 10_000)}
"""Of floats that are no rates or epsilons."""
_OUTSIDE = "the trainer's own state, beside the weights"

logger = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {}
for _layout in _LAYOUTS:
    FORMATS.setdefault(_layout.name, _layout)


@dataclasses.dataclass(frozen=True, eq=False)
class ClipWeights:
    """A CLIP, or an image tower alone, whose tensors may still lie in a file."""

    config: ClipConfig
    tensors: Mapping[str, StoredTensor]
    """Our parameters by path, such as "visual/proj", in the dtypes of their file."""
    format_name: str | None = None
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{name: reason} of what the file has and we leave out."""
    masking: MaskingSpec | None = None
    """How they were tuned; None where nobody noted it, as in other people's files."""
    modules: Modules | None = None
    """With which a run's tower reads masks."""

    @classmethod
    def of(
        cls, config: ClipConfig, parameters: Mapping, masking: MaskingSpec | None = None
    ) -> "ClipWeights":
        """Parameters in memory."""
        return cls(config, in_memory(tree_rules.flatten(parameters)), masking=masking)

    def parameters(self) -> dict:
        """The nested tree {"visual", "text", "logit_scale"}, read, float32."""
        return rules.materialised(self.tensors)


def read_weights(
    path: str | os.PathLike,
    *,
    activation: str | None = None,
    head_width: int | None = None,
    tokenizer: str | None = None,
    format_name: str | None = None,
) -> ClipWeights:
    """Recognises the format by its content and checks names, shapes and dtypes; reads no values.

    Args:
        activation: of both towers (quick_gelu, gelu or gelu_tanh), which overrules what the file
            or the settings beside it say; OpenAI's layout says nothing and means quick_gelu.
        head_width: of the image tower's attention, likewise.
        tokenizer: file of the text tower's tokenizer, for towers that do not share CLIP's.
        format_name: a key of FORMATS, where the content alone would be ambiguous.

    Raises:
        ValueError: absent, corrupt, of no known format, or not an architecture of ours.
    """
    source, format, outside = _recognised(open_tensors(path), format_name)
    choices = Choices(activation, head_width, tokenizer)
    try:
        config, masking = _config_of(source, format, choices), _masking_of(source)
        config = with_tokenizer(config, source, choices)
        for part in filter(None, (config.vision, config.text, masking)):
            _check_sizes(part, len(source.tensors))
        expected = jax.eval_shape(lambda: random_parameters(config))
    except (ValueError, TypeError, OverflowError) as error:  # the latter, of sizes that jax refuses
        if str(error).startswith(source.path):
            raise
        raise ValueError(f"{source.path}: {error}") from error
    if activation is None and _activation_is_guessed(source, format):
        _say_activation_is_guessed(source.path, config)
    return ClipWeights(
        config,
        rules.stored_as_ours(
            source.tensors, expected, format.table(config), format.ignored, source=source.path
        ),
        format.name,
        rules.ignored_names(list(source.tensors), format.ignored) | outside,
        masking,
    )


def write_weights(
    weights: ClipWeights,
    path: str | os.PathLike,
    format_name: str,
    dtype: Literal["float32", "source"] = "float32",
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Writes a file, or a folder with settings where the format has them; aside, then renamed.

    Args:
        path: what ends as one of the format's `suffixes` is a file, anything else a new folder.
        format_name: a key of FORMATS.
        dtype: "source" keeps each tensor's own, so that a round trip is identical bit for bit.
        progress: is told how many more bytes were written.

    Raises:
        ValueError: the format cannot hold these weights, or the path cannot be written.
    """
    path = pathlib.Path(path)
    if weights.modules is not None:
        raise ValueError(
            f"{path}: expected a tower alone, and these weights read masks with modules of their "
            "method, which no such format holds; a run leaves both as files, tuned.safetensors "
            "and modules.safetensors: give the former"
        )
    if reason := why_not(format_name, weights.config):
        if path.name and not path.suffix and format_name == default_format(path, weights.config):
            file = path.with_suffix(".safetensors")
            if not why_not(default_format(file, weights.config), weights.config):
                reason += f"; a file holds them, by a name such as {file.name}"
        raise ValueError(
            f"{path}: these weights cannot be written in the format {format_name}: {reason}"
        )
    format = layout_of(format_name, weights.config)
    if dtype not in ("float32", "source"):
        raise ValueError(f"dtype: expected float32 or source, got {dtype!r}")
    leaves = dict(weights.tensors)
    if dtype == "float32":
        leaves = {name: tensor.cast(np.float32) for name, tensor in leaves.items()}
    tensors = rules.stored_as_foreign(leaves, format.table(weights.config))
    metadata = {OWN_METADATA: json.dumps(_as_json(weights, format))}
    if path.suffix in format.suffixes:
        check_room_for_tokenizer(weights.config, path.parent)
        files = format.split_files(path, tensors.keys())
        if not path.exists() and (there := [file for file in files if file.exists()]):
            raise ValueError(f"{there[0]}: exists already, and is written too; choose another name")
        for file, names in files.items():
            write_state_dict({name: tensors[name] for name in names}, file, metadata, progress)
        write_tokenizer(weights.config, path.parent)
    elif format.folder_tensors is None:
        raise ValueError(
            f"{path}: expected a name that ends in {' or '.join(format.suffixes)} for the format "
            f"{format.name}"
        )
    else:
        widest = np.result_type(*(tensor.dtype for tensor in tensors.values()))
        settings = format.make_settings(weights.config, widest)
        texts = {format.settings_file: json.dumps(settings, indent=2) + "\n"}
        texts |= format.make_more_files(weights.config)
        with _folder_for(path, format) as folder:
            write_state_dict(tensors, folder / format.folder_tensors, metadata, progress)
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            write_tokenizer(weights.config, folder)


def default_format(path: str | os.PathLike, config: ClipConfig) -> str:
    """The format that a destination's name asks for: see inference.clip.Clip.save."""
    suffix = pathlib.PurePath(path).suffix
    files = [layout for layout in _LAYOUTS if suffix in layout.suffixes]
    folders = [layout for layout in _LAYOUTS if layout.folder_tensors is not None]
    folders.sort(key=lambda layout: len(layout.suffixes))  # first what can be nothing else
    possible = _of_its_tower(files or folders, config)
    return next((x for x in possible if x.refuses(config) is None), possible[0]).name


def why_not(name: str, config: ClipConfig) -> str | None:
    """Why this architecture cannot be written in the format of this name, or None.

    Raises:
        ValueError: there is no such format.
    """
    reasons = [layout.refuses(config) for layout in _of_its_tower(_named(name), config)]
    return None if None in reasons else "; ".join(dict.fromkeys(reasons))


def _of_its_tower(layouts: list[Format], config: ClipConfig) -> list[Format]:
    """Those for towers of this kind; all where there is none."""
    return [x for x in layouts if isinstance(config.vision, x.tower)] or layouts


def _folder_for(path: pathlib.Path, format: Format) -> AbstractContextManager[pathlib.Path]:
    """A new folder aside, which takes the path's name when it is complete."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(
            f"{path}: exists already, and the format {format.name} is a folder; choose a new name"
        )
    if path.suffix in (".safetensors", ".pt", ".npz", ".bin", ".pth"):
        raise ValueError(
            f"{path}: the format {format.name} is a folder; give a name without ending"
        )
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")
    clear_leftovers(path.parent, path.name)
    return atomic_folder(path)


def _named(name: str) -> list[Format]:
    """Its layouts, each of its own towers or prefix."""
    if name not in FORMATS:
        raise ValueError(f"unknown weight format {name!r}; expected one of {list(FORMATS)}")
    return [layout for layout in _LAYOUTS if layout.name == name]


def layout_of(name: str, config: ClipConfig) -> Format:
    """The layout of this name that can hold the architecture; the first if none can."""
    layouts = _named(name)
    return next((layout for layout in layouts if layout.refuses(config) is None), layouts[0])


def _recognised(
    source: WeightsSource, name: str | None
) -> tuple[WeightsSource, Format, dict[str, str]]:
    """The source without a trainer's wrapper, its layout, and what lay outside of the wrapper."""
    if name is None and source.own is not None:
        name = source.own.get("format")
        if not isinstance(name, str) or name not in FORMATS:
            raise ValueError(
                f"{source.path}: corrupt metadata {OWN_METADATA!r}: format: expected one of "
                f"{list(FORMATS)}, got {name!r:.80}"
            )
    layouts = [layout for layout in _LAYOUTS if name in (None, layout.name)]
    tensors = without_torch_wrappers(source.tensors)
    below = find_prefixes(tensors, lambda names: any(x.recognise(names) for x in layouts))
    if len(below) > 1:
        raise ValueError(
            f"{source.path}: expected one CLIP, found {len(below)}, below the prefixes "
            f"{sorted(below)}; save the state dict of the one that you mean by itself"
        )
    for prefix, inner in below.items():
        found = [layout for layout in layouts if layout.recognise(inner)]
        # several layouts share names; the one whose settings lie beside the file goes first
        found.sort(key=lambda layout: layout.settings_file not in source.settings)
        outside = dict.fromkeys(tensors.keys() - set(inner.values()), _OUTSIDE)
        if outside and prefix not in FIRST:
            _say_what_is_left_out(source.path, prefix, len(outside), min(outside))
        tensors = {name: tensors[whole] for name, whole in inner.items()}
        return dataclasses.replace(source, tensors=tensors), found[0], outside
    if name is not None:
        _named(name)
    if cause := explain(tensors):
        raise ValueError(f"{source.path}: {cause}")
    raise ValueError(
        f"{source.path}: expected CLIP weights in OpenAI's layout or another of "
        f"{list(FORMATS) if name is None else name}; its names are none of these. The file has "
        f"{len(source.tensors)} tensors, such as {sorted(source.tensors)[:3]}"
    )


def _config_of(source: WeightsSource, format: Format, choices: Choices) -> ClipConfig:
    if source.own is None:
        return format.config_of(source, choices)
    vision = _own_part(source, format.tower, "vision")
    text = _own_part(source, format.text_tower, "text")
    if vision is None:
        raise ValueError(f"corrupt metadata {OWN_METADATA!r}: vision is missing")
    config = ClipConfig(vision, text, source.own.get("has_logit_bias") is True)
    return format.as_stated(config, choices)


def _activation_is_guessed(source: WeightsSource, format: Format) -> bool:
    """A bare state dict; OpenAI's own archives keep these sizes beside the weights."""
    return format is OPENAI and source.own is None and "input_resolution" not in source.tensors


@functools.cache
def _say_what_is_left_out(path: str, prefix: str, num_outside: int, such_as: str) -> None:
    """Once for each file."""
    logger.warning(
        "%s: the CLIP is read below the prefix %r; %d tensors beside it, such as %r, are left out",
        path,
        prefix,
        num_outside,
        such_as,
    )


@functools.cache
def _say_activation_is_guessed(path: str, config: ClipConfig) -> None:
    """Once for each file."""
    logger.warning(
        "%s does not tell its activation: taken for %s, as OpenAI trained; most models trained "
        "with open_clip need gelu. State it with config.model.activation, --activation, or "
        "activation= in Python",
        path,
        config.vision.activation,
    )


def _masking_of(source: WeightsSource) -> MaskingSpec | None:
    return _own_part(source, MaskingSpec, "tuning")


def _own_part(source: WeightsSource, kind: type, name: str):
    """A dataclass out of our own metadata, None where it is null or absent.

    Raises:
        ValueError: of other types, or with numbers that no tower of these tensors has.
    """
    values, where = source.own and source.own.get(name), f"corrupt metadata {OWN_METADATA!r}"
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {name}: expected an object, got {values!r:.80}")
    try:
        return build(kind, values, name, complete=False)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_sizes(part, num_tensors: int) -> None:
    """Refuses numbers that no tower of so many tensors has, before anything is as large."""
    for field, values in dataclasses.asdict(part).items():
        low = 0 if field in ("mask_start_layer", "class_token") else 1
        high = {
            "layers": num_tensors,
            "depths": num_tensors,
            "mask_start_layer": _LARGEST_IMAGE,  # beyond the last layer nothing is masked
            "image_size": _LARGEST_IMAGE,
        }.get(field, _LARGEST_SIZE)
        low_float, high_float = _SIMILARITY_BOUNDS.get(field, (0, 1))
        for value in values if isinstance(values, tuple) else (values,):
            if type(value) is int and not low <= value <= high:
                raise ValueError(f"{field}: expected {low} to {high}, got {value!r:.40}")
            if type(value) is float and not low_float < value < high_float:
                raise ValueError(
                    f"{field}: expected a number between {low_float} and {high_float}, got {value}"
                )


def _as_json(weights: ClipWeights, format: Format) -> dict:
    config = dataclasses.asdict(without_path(weights.config))
    if not config["has_logit_bias"]:  # as version 0.1 wrote it
        del config["has_logit_bias"]
    masking = {} if weights.masking is None else {"tuning": weights.masking.as_json()}
    return {"format": format.name, **config, **masking}
