"""Checkpoints of the official MAFT and FreeSeg code: read, and given our tuned tower.

They hold a whole segmentation system. Of interest here are the tuned image tower (`IPCLIP.*`), the
frozen CLIP (`clip_adapter.clip_model.*`) and the embedding of "no object". Such a file cannot be
made from a CLIP alone, so it is written by replacing the tower inside an existing one.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Mapping

import jax
import numpy as np
from jaxtyping import Float

from maft_jax.convert import rules
from maft_jax.convert.foreign_format import Choices, Format, WeightsSource
from maft_jax.convert.openai import infer_towers, text_rules, vision_rules, with_activation
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.convert.stored_tensor import StoredTensor
from maft_jax.convert.tensor_replacement import replace_tensors, tensor_places
from maft_jax.models.clip import ClipConfig, random_parameters
from maft_jax.models.towers.clip_vit import VisionConfig

STUDENT = "IPCLIP."
FROZEN = "clip_adapter.clip_model."
NON_OBJECT = "clip_adapter.non_object_embedding"
WRAPPERS = ("", "model.")
"""What precedes the names: nothing, or the key under which trainers save the system's tensors."""

_GENERATOR = "the proposal generator, which is no part of CLIP"
_IGNORED = [
    Ignored(r"clip_adapter\.non_object_embedding", "no part of CLIP; see maft.read_official"),
    Ignored(r"clip_adapter\.pixel_(mean|std)", "the constants of CLIP's normalisation"),
    Ignored(r"T\..*", "a third copy of the image tower, which nothing reads"),
    Ignored(r"backbone\..*", _GENERATOR),
    Ignored(r"sem_seg_head\..*", _GENERATOR),
    Ignored(r"criterion\..*", "settings of the generator's losses"),
    Ignored(r"pixel_(mean|std)", "the constants of the generator's normalisation"),
]


def _format(name: str, description: str, vision: str, unread_tower: Ignored) -> Format:
    def infer_config(source: WeightsSource, choices: Choices) -> ClipConfig:
        config = infer_towers(source, vision=vision, text=FROZEN, head_width=choices.head_width)
        return with_activation(config, choices.activation)

    return Format(
        name=name,
        description=description,
        recognise=lambda names: f"{vision}conv1.weight" in names,
        infer_config=infer_config,
        rules=[
            Rule(f"{FROZEN}logit_scale", "logit_scale"),
            *vision_rules(vision),
            *text_rules(FROZEN),
        ],
        ignored=[unread_tower, *_IGNORED],
        suffixes=(),
        why_not=lambda config: (
            "such a file holds a whole segmentation system; write the tower into an existing one "
            "(--into=THEIRS.pth)"
        ),
    )


MAFT = _format(
    "maft",
    "official MAFT checkpoint: tuned image tower, frozen text tower",
    STUDENT,
    Ignored(
        r"clip_adapter\.clip_model\.visual\..*", "the frozen tower, which format freeseg reads"
    ),
)
FREESEG = _format(
    "freeseg",
    "FreeSeg checkpoint, or the frozen CLIP of one of MAFT",
    f"{FROZEN}visual.",
    Ignored(r"IPCLIP\..*", "the tuned tower, which format maft reads"),
)
MAFT_FORMATS = [MAFT]
MAFT_FROZEN_FORMATS = [FREESEG]
"""After MAFT_FORMATS in the order of recognition, so that a tuned tower goes first."""


@dataclasses.dataclass(frozen=True, eq=False)
class OfficialCheckpoint:
    """What a checkpoint of the official code says about CLIP, in float32."""

    config: ClipConfig
    student: dict
    """The tuned image tower."""
    frozen: dict
    """The CLIP that it came from: {"visual", "text", "logit_scale"}."""
    non_object_embedding: Float[np.ndarray, " e"]
    """The learned last row of the classifier; its scores are dropped before every softmax."""


def read_official(
    tensors: Mapping[str, StoredTensor], *, source: str, choices: Choices | None = None
) -> OfficialCheckpoint:
    """All that a checkpoint holds of CLIP.

    Raises:
        ValueError: tensors are unknown, missing or misshapen; all of them are listed.
    """
    wrapper = wrapper_of(tensors, source)
    tensors = {
        name.removeprefix(wrapper): tensor
        for name, tensor in tensors.items()
        if name.startswith(wrapper)
    }
    opened = WeightsSource(source, tensors)
    read = {}
    for layout in (MAFT, FREESEG):
        config = layout.config_of(opened, choices or Choices())
        expected = jax.eval_shape(functools.partial(random_parameters, config))
        leaves = rules.stored_as_ours(
            tensors, expected, layout.rules, layout.ignored, source=source
        )
        read[layout.name] = config, leaves
    (config, student), (frozen_config, frozen) = read["maft"], read["freeseg"]
    if config != frozen_config:
        raise ValueError(
            f"{source}: the tuned tower is a {config.vision}, the frozen one a "
            f"{frozen_config.vision}; expected the same architecture"
        )
    student = {path: leaf for path, leaf in student.items() if path.startswith("visual/")}
    return OfficialCheckpoint(
        config,
        rules.materialised(student)["visual"],
        rules.materialised(frozen),
        _non_object(tensors, config, source),
    )


def _non_object(tensors: Mapping, config: ClipConfig, source: str) -> np.ndarray:
    name, expected = NON_OBJECT, (1, config.vision.embed_dim)
    if name not in tensors or tensors[name].shape != expected:
        found = tensors[name].shape if name in tensors else "absent"
        raise ValueError(f"{source}: expected a tensor {name!r} of shape {expected}; it is {found}")
    return np.array(tensors[name].read()[0], np.float32)


def wrapper_of(names: Collection[str], source: str | os.PathLike) -> str:
    """The one of WRAPPERS that precedes the names.

    Raises:
        ValueError: this is no checkpoint of the official code.
    """
    for wrapper in WRAPPERS:
        if f"{wrapper}{STUDENT}conv1.weight" in names:
            return wrapper
    raise ValueError(
        f"{source}: expected a checkpoint of the official MAFT code, with tensors IPCLIP.* or "
        f"model.IPCLIP.*; it has {len(names)} tensors, such as {sorted(names)[:3]}"
    )


def write_into(
    template: str | os.PathLike,
    destination: str | os.PathLike,
    config: VisionConfig,
    visual: Mapping,
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Copies a checkpoint of the official code with our image tower as its student.

    Every byte that is not a value of `IPCLIP.*` stays as it was: the generator, the frozen CLIP,
    optimizer states, counters. The tower's values are rounded to the dtypes that they have there.

    Args:
        template: .safetensors, or .pth of torch.save; never changed.
        config, visual: our image tower and its parameters.
        progress: is told how many more bytes were copied.

    Raises:
        ValueError: the template is of another kind or its tower of another size, or their code
            would compute something else with our tower. Nothing is written then.
    """
    template = pathlib.Path(template)
    theirs = VisionConfig(
        config.width, config.layers, config.patch_size, config.image_size, config.embed_dim
    )
    if config != theirs:
        raise ValueError(
            f"{template}: expected a tower as their code computes it, {theirs}; got {config}"
        )
    places = tensor_places(template)
    wrapper = wrapper_of(places, template)
    tower = rules.to_foreign({"visual": visual}, vision_rules(wrapper + STUDENT))
    there = {name for name in places if name.startswith(wrapper + STUDENT)}
    if there != set(tower):
        raise ValueError(
            f"{template}: its tower has {len(there)} tensors, ours {len(tower)}; not in both: "
            f"{', '.join(sorted(there ^ set(tower))[:5])}. Expected a tower of as many layers"
        )
    replace_tensors(template, destination, tower, progress)
