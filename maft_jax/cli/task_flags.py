"""--task of `predict`: a label of each pixel, panoptic segments, or instances."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

SEMANTIC, PANOPTIC, INSTANCE = "semantic", "panoptic", "instance"

_TASK = flags.DEFINE_enum(
    "task",
    SEMANTIC,
    [SEMANTIC, PANOPTIC, INSTANCE],
    "what is found: a class of each pixel; or objects and stuff, each pixel in one or in none; "
    "or objects alone, which may overlap",
)
_THINGS = flags.DEFINE_string(
    "things",
    None,
    "names of the classes with countable objects; the other ones are stuff. Default: those of the "
    "class list, all where it does not say; empty: none",
)
_RULES = flags.DEFINE_enum(
    "rules",
    None,
    ["fcclip", "maft_plus", "mask2former"],
    "of panoptic and instance: whose thresholds decide which masks become segments; default: "
    "maft_plus, with --generator=fcclip those of the weights' system",
)
_MIN_SCORE = flags.DEFINE_float(
    "min_score",
    None,
    "of panoptic and instance: what has no higher score is left out; default: 0.5 of instances, "
    "of panoptic segments what the rules say",
    lower_bound=0,
    upper_bound=1,
)
_OF_OBJECTS = ("things", "rules", "min_score")
_OF_LABELS = ("resized",)
LEAST_SCORE_OF_INSTANCES = 0.5
"""Each proposal is an instance of several classes, most of them at low scores."""


def check_flags() -> None:
    """Refuses, with a ValueError, flags that would be ignored."""
    names, why = _OF_OBJECTS, f"only with --task={PANOPTIC} or --task={INSTANCE}"
    if _TASK.value != SEMANTIC:
        names, why = _OF_LABELS, f"only with --task={SEMANTIC}"
    for name in names:
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name}: {why}; leave it out")


def make_segment(
    segmenter: Any, of_list: Callable[[], frozenset[int] | None], default_rules: Any
) -> tuple[Callable, dict]:
    """What makes a result of a path and an example's id, and the settings of that.

    Args:
        segmenter: an ImageSegmenter or FcClipSegmenter.
        of_list: gives indices of the class list's things, if it says which they are.
        default_rules: SegmentRules or a name of them, unless --rules names others.

    Raises:
        ValueError: a thing is no class, or instances are asked for and there are no things.
    """
    if _TASK.value == SEMANTIC:
        return lambda path, example_id: segmenter(path, example_id=example_id), {}
    things, rules = _things(segmenter.class_names, of_list), _rules(default_rules)
    if _TASK.value == INSTANCE and not things:
        raise ValueError("--things: expected at least one class, whose instances are looked for")
    method = segmenter.panoptic if _TASK.value == PANOPTIC else segmenter.instances

    def segment(path: Path, example_id: str):
        return method(path, example_id=example_id, things=things, rules=rules)

    names = [segmenter.class_names[index] for index in sorted(things)]
    return segment, {"things": names, "rules": dataclasses.asdict(rules)}


def _things(
    class_names: tuple[str, ...], of_list: Callable[[], frozenset[int] | None]
) -> frozenset[int]:
    from maft_jax.inference.segment_rules import find_things
    from maft_jax.inference.vocabulary import parse_names

    if _THINGS.value is None:
        known = of_list()
        return find_things(None, class_names) if known is None else known
    if not _THINGS.value.strip():
        return frozenset()
    try:
        return find_things(parse_names(_THINGS.value, "things"), class_names)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def _rules(default: Any) -> Any:
    from maft_jax.inference.segment_rules import find_rules

    rules = find_rules(_RULES.value or default)
    given = _MIN_SCORE.value
    if _TASK.value == PANOPTIC:
        return rules if given is None else dataclasses.replace(rules, object_threshold=given)
    least = LEAST_SCORE_OF_INSTANCES if given is None else given
    return dataclasses.replace(rules, instance_threshold=least)
