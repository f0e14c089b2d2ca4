"""By what thresholds masks become segments and instances, and which classes have objects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class SegmentRules:
    """Thresholds of Mask2Former's rules, which FC-CLIP and MAFT+ took over.

    Raises:
        ValueError: a number out of its range.
    """

    object_threshold: float
    """A proposal takes part in a panoptic result if the probability of its class exceeds this."""
    overlap_threshold: float
    """It becomes a segment if it got at least this share of its own pixels."""
    max_instances: int = 100
    """The most pairs of proposal and class that become instances; things are taken of these."""
    instance_threshold: float = 0.0
    """Instances whose score does not exceed it are left out."""

    def __post_init__(self):
        for name in ("object_threshold", "overlap_threshold", "instance_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if self.max_instances < 1:
            raise ValueError(f"max_instances: expected at least 1, got {self.max_instances}")


RULES: Mapping[str, SegmentRules] = MappingProxyType(
    {
        "fcclip": SegmentRules(0.0, 0.8),
        "maft_plus": SegmentRules(0.2, 0.7),
        "mask2former": SegmentRules(0.8, 0.8),
    }
)
"""Those of each system's panoptic evaluation."""


def find_rules(rules: str | SegmentRules) -> SegmentRules:
    """The rules, or those of this name.

    Raises:
        ValueError: there are none of that name.
    """
    if isinstance(rules, SegmentRules):
        return rules
    if rules not in RULES:
        raise ValueError(f"rules: expected one of {sorted(RULES)} or SegmentRules, got {rules!r}")
    return RULES[rules]


def find_things(things: Iterable[str | int] | None, class_names: Sequence[str]) -> frozenset[int]:
    """Indices of the classes with countable objects, of names or indices; None: of all.

    Raises:
        ValueError: one is no class, or they are one text.
    """
    if things is None:
        return frozenset(range(len(class_names)))
    if isinstance(things, str):
        raise ValueError(f"things: expected several names of classes, got one text {things!r}")
    return frozenset(_find_class(thing, class_names) for thing in things)


def _find_class(thing: str | int, class_names: Sequence[str]) -> int:
    if isinstance(thing, str):
        name = " ".join(thing.split())
        if name in class_names:
            return class_names.index(name)
    elif 0 <= thing < len(class_names):
        return int(thing)
    raise ValueError(
        f"things: {thing!r} is none of the {len(class_names)} classes; expected names of classes, "
        f"such as {class_names[0]!r}, or indices from 0 to {len(class_names) - 1}"
    )
