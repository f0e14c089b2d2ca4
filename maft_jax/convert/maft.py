"""Checkpoints of the official MAFT and FreeSeg code: read, and given our tuned tower.

They hold a whole segmentation system. Of interest here are the tuned image tower (`IPCLIP.*`), the
frozen CLIP (`clip_adapter.clip_model.*`) and the embedding of "no object". Such a file cannot be
made from a CLIP alone, so it is written by replacing the tower inside an existing one.
"""

import dataclasses
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

STUDENT = "IPCLIP."
FROZEN = "clip_adapter.clip_model."
NON_OBJECT = "clip_adapter.non_object_embedding"
WRAPPERS = ("", "model.")
"""What precedes the names: nothing, or the key under which trainers save the system's tensors."""

_GENERATOR = "the proposal generator, which is no part of CLIP"


def _ignored(wrapper: str, unread_tower: str, why: str) -> list[Ignored]:
    """Every other tensor of such a checkpoint, and why it is left out."""
    w = wrapper.replace(".", r"\.")
    outside = "the trainer's own state, such as the optimizer's"
    return [
        Ignored(rf"{w}{unread_tower}.*", why),
        Ignored(
            rf"{w}clip_adapter\.non_object_embedding", "no part of CLIP; read_official reads it"
        ),
        Ignored(rf"{w}clip_adapter\.pixel_(mean|std)", "the constants of CLIP's normalisation"),
        Ignored(rf"{w}T\..*", "a third copy of the image tower, which nothing reads"),
        Ignored(rf"{w}backbone\..*", _GENERATOR),
        Ignored(rf"{w}sem_seg_head\..*", _GENERATOR),
        Ignored(rf"{w}criterion\..*", "settings of the generator's losses"),
        Ignored(rf"{w}pixel_(mean|std)", "the constants of the generator's normalisation"),
        *([Ignored(rf"(?!{w}).*", outside)] if wrapper else []),
    ]


def _format(wrapper: str, *, frozen: bool) -> Format:
    text = wrapper + FROZEN
    vision = text + "visual." if frozen else wrapper + STUDENT

    def recognise(names: Collection[str]) -> bool:
        return f"{vision}conv1.weight" in names

    def infer_config(source: WeightsSource, choices: Choices) -> ClipConfig:
        config = infer_towers(
            source.shapes,
            source=source.path,
            vision=vision,
            text=text,
            head_width=choices.head_width,
        )
        return with_activation(config, choices.activation)

    if frozen:
        other = _ignored(
            wrapper, r"IPCLIP\.", "the tuned image tower; the frozen one was asked for"
        )
        name, what = "freeseg", "FreeSeg checkpoint, or the frozen CLIP of one of MAFT"
    else:
        unread = r"clip_adapter\.clip_model\.visual\."
        other = _ignored(wrapper, unread, "the frozen image tower, which the format freeseg reads")
        name, what = "maft", "official MAFT checkpoint: tuned image tower, frozen text tower"
    return Format(
        name=name,
        description=f"{what}{', under the key model' if wrapper else ''}",
        recognise=recognise,
        infer_config=infer_config,
        rules=[
            Rule(text + "logit_scale", "logit_scale"),
            *vision_rules(vision),
            *text_rules(text),
        ],
        ignored=other,
        suffixes=(),
        why_not=lambda config: (
            "such a file holds a whole segmentation system; write the tower into an existing one "
            "(--into=THEIRS.pth)"
        ),
    )


MAFT_FORMATS = [_format(wrapper, frozen=False) for wrapper in WRAPPERS]
"""The tuned tower with the frozen text tower: what the system classifies with."""
MAFT_FROZEN_FORMATS = [_format(wrapper, frozen=True) for wrapper in WRAPPERS]
"""The CLIP that it was tuned from: after MAFT_FORMATS, so that a tuned tower goes first."""


@dataclasses.dataclass(frozen=True, eq=False)
class OfficialCheckpoint:
    """What a checkpoint of theirs says about CLIP, in float32."""

    config: ClipConfig
    student: dict
    """The tuned image tower."""
    frozen: dict
    """The CLIP that it came from: {"visual", "text", "logit_scale"}."""
    non_object_embedding: Float[np.ndarray, "e"]
    """The learned last row of the classifier; its scores are dropped before every softmax."""


def read_official(
    tensors: Mapping[str, StoredTensor], *, source: str, choices: Choices | None = None
) -> OfficialCheckpoint:
    """All that a checkpoint holds of CLIP.

    Raises:
        ValueError: tensors are unknown, missing or misshapen; all of them are listed.
    """
    opened = WeightsSource(source, tensors)
    wrapper = wrapper_of(tensors, source)
    read = {}
    for frozen in (False, True):
        layout = _format(wrapper, frozen=frozen)
        config = layout.infer_config(opened, choices or Choices())
        expected = jax.eval_shape(lambda config=config: random_parameters(config))
        leaves = rules.stored_as_ours(
            tensors, expected, layout.rules, layout.ignored, source=source
        )
        read[frozen] = config, leaves
    if read[False][0] != read[True][0]:
        raise ValueError(
            f"{source}: the tuned tower is a {read[False][0].vision}, the frozen one a "
            f"{read[True][0].vision}; expected the same architecture"
        )
    config, frozen_leaves = read[True]
    student = {name: leaf for name, leaf in read[False][1].items() if name.startswith("visual/")}
    return OfficialCheckpoint(
        config,
        rules.materialised(student)["visual"],
        rules.materialised(frozen_leaves),
        _non_object(tensors, wrapper + NON_OBJECT, config, source),
    )


def _non_object(tensors, name: str, config: ClipConfig, source: str) -> np.ndarray:
    expected = (1, config.vision.embed_dim)
    if name not in tensors or tensors[name].shape != expected:
        found = tensors[name].shape if name in tensors else "absent"
        raise ValueError(f"{source}: expected a tensor {name!r} of shape {expected}; it is {found}")
    return np.array(tensors[name].read()[0], np.float32)


def wrapper_of(names: Collection[str], source: str | os.PathLike) -> str:
    """The one of WRAPPERS that precedes the names.

    Raises:
        ValueError: this is no checkpoint of theirs.
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
    visual: Mapping,
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Copies a checkpoint of theirs with our image tower as its student.

    Every byte that is not a value of `IPCLIP.*` stays as it was: the generator, the frozen CLIP,
    optimizer states, counters. The tower's values are rounded to the dtypes that they have there.

    Args:
        template: .safetensors, or .pth of torch.save; never changed.
        visual: image tower parameters.
        progress: is told how many more bytes were copied.

    Raises:
        ValueError: the template is of another kind or its tower of another size. Nothing is
            written then.
    """
    template = pathlib.Path(template)
    wrapper = wrapper_of(tensor_places(template), template)
    tower = rules.to_foreign({"visual": visual}, vision_rules(wrapper + STUDENT))
    there = {name for name in tensor_places(template) if name.startswith(wrapper + STUDENT)}
    if there != set(tower):
        raise ValueError(
            f"{template}: its tower has {len(there)} tensors, ours {len(tower)}; not in both: "
            f"{', '.join(sorted(there ^ set(tower))[:5])}. Expected a tower of as many layers"
        )
    replace_tensors(template, destination, tower, progress)
