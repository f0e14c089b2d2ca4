"""What there is in shapes world, and which of it training never sees labelled."""

PATTERNS = ("plain", "striped", "dotted", "checked", "speckled", "netted")
COLORS = ("red", "green", "blue", "yellow", "purple", "white")
BACKGROUNDS = ("brick", "grass", "sand", "water", "wood", "stone")

OBJECTS = tuple(f"{pattern} {color} shape" for pattern in PATTERNS for color in COLORS)
CLASS_NAMES = OBJECTS + BACKGROUNDS
"""Class ids are positions in this tuple."""

NUM_SPLITS = 3


def object_class(pattern: int, color: int) -> int:
    """Class id of a pattern and a colour, given as indices."""
    return pattern * len(COLORS) + color


def unseen_classes(split: int = 0) -> tuple[str, ...]:
    """Names of the 12 of 36 objects that zero-shot split 0, 1 or 2 leaves out of training.

    Two of the six colours of every pattern, so that each pattern and each colour is seen in four
    other combinations. Backgrounds are always seen. The splits have no class in common.

    Raises:
        ValueError: there is no such split.
    """
    if split not in range(NUM_SPLITS):
        raise ValueError(f"split {split!r} of shapes world: expected 0 .. {NUM_SPLITS - 1}")
    return tuple(
        CLASS_NAMES[object_class(pattern, color)]
        for pattern in range(len(PATTERNS))
        for color in range(len(COLORS))
        if (color - pattern) % NUM_SPLITS == split
    )
