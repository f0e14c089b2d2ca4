"""What there is in shapes world, and which of it training never sees labelled."""

SHAPES = ("disc", "ring", "square", "triangle", "cross", "star")
APPEARANCES = ("red", "green", "blue", "yellow", "striped", "dotted")
BACKGROUNDS = ("brick", "grass", "sand", "water", "wood", "stone")

OBJECTS = tuple(f"{appearance} {shape}" for shape in SHAPES for appearance in APPEARANCES)
CLASS_NAMES = OBJECTS + BACKGROUNDS
"""Class ids are positions in this tuple."""

NUM_SPLITS = 3


def object_class(shape: int, appearance: int) -> int:
    """Class id of a shape and an appearance, given as indices."""
    return shape * len(APPEARANCES) + appearance


def unseen_classes(split: int = 0) -> tuple[str, ...]:
    """Names of the 12 of 36 objects that zero-shot split 0, 1 or 2 leaves out of training.

    Two of the six appearances of every shape, so that each shape and each appearance is seen in
    four other combinations. Backgrounds are always seen. The splits have no class in common.

    Raises:
        ValueError: there is no such split.
    """
    if split not in range(NUM_SPLITS):
        raise ValueError(f"split {split!r} of shapes world: expected 0 .. {NUM_SPLITS - 1}")
    return tuple(
        CLASS_NAMES[object_class(shape, appearance)]
        for shape in range(len(SHAPES))
        for appearance in range(len(APPEARANCES))
        if (appearance - shape) % NUM_SPLITS == split
    )
