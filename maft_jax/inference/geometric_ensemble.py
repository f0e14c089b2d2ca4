"""FC-CLIP's mixture of what a generator and the tower say of the class of a proposal."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from input_pipeline.class_lists import load_class_list

_EPSILON = 1e-8
"""FC-CLIP's, inside of its last logarithm."""


def log_probabilities(
    tower: Float[Array, "*rows c"],
    class_logits: Float[Array, "*rows c1"],
    seen: Bool[Array, " c"],
    exponents: tuple[float, float],
) -> Float[Array, "*rows c1"]:
    """log(p + 1e-8) of all classes and, last, of "no object".

    p is the softmax over the classes of (1 - w) log g + w log t, times 1 - v; and v for "no
    object". t are the tower's probabilities; g the generator's softmax without its last column, v
    that column of its softmax with it. w is the first of `exponents` for seen classes, the second
    for others; (1, 1) is the tower alone, as in MAFT+.

    Powers are products in logs, where the official code's may underflow and become nan.
    """
    generator = jax.nn.log_softmax(class_logits[..., :-1])
    nothing = jax.nn.softmax(class_logits)[..., -1:]
    exponent = jnp.where(seen, *exponents)
    log_tower = jnp.log(jnp.maximum(tower, jnp.finfo(tower.dtype).tiny))
    mixed = jax.nn.softmax((1 - exponent) * generator + exponent * log_tower)
    return jnp.log(jnp.concatenate([mixed * (1 - nothing), nothing], axis=-1) + _EPSILON)


def probabilities(
    tower: Float[Array, "*rows c"],
    class_logits: Float[Array, "*rows c1"],
    seen: Bool[Array, " c"],
    exponents: tuple[float, float],
) -> Float[Array, "*rows c"]:
    """What label maps weigh masks with: of all classes, without "no object"."""
    return jax.nn.softmax(log_probabilities(tower, class_logits, seen, exponents))[..., :-1]


def seen_by_name(
    classes: Sequence[Iterable[str]], trained: Iterable[Iterable[str]]
) -> Bool[np.ndarray, " c"]:
    """Which classes have a name that is, letter by letter, a name of a class of training.

    Both are the names of each class. Capitals count: "Dog" is not "dog".
    """
    known = {name for names in trained for name in names}
    return np.array([not known.isdisjoint(names) for names in classes], bool)


def read_trained_classes(path: str) -> list[tuple[str, ...]]:
    """The names of each class of a class list, a file or a built-in one.

    Raises:
        ValueError: there is no such list, or it cannot be read.
    """
    classes = load_class_list(path, ignore_labels=())
    return [(name, *classes.further_names.get(name, ())) for name in classes.names]
