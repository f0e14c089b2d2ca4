"""Rotary positions on a grid: pairs of features of queries and keys are turned by angles."""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float

from maft_jax.models.attention_pattern import AttentionPattern, Count

_BASE = 10_000.0
_UNITS = 16.0
"""How far apart the first and the end of the last cell of any grid are, along each axis."""


@flax.struct.dataclass
class Rotation:
    """Of every token: cosine and sine of the angle of each pair, features 2i and 2i + 1."""

    cos: Float[Array, "t h"]
    """Each value twice, once for each feature of the pair."""
    sin: Float[Array, "t h"]
    """Likewise, the first negative."""

    def of_queries(self, pattern: AttentionPattern) -> "Rotation":
        """Of the tokens that attention_pattern.gather_queries takes."""
        rows = [row for segment in pattern for row in segment.queries]
        return Rotation(self.cos[np.array(rows)], self.sin[np.array(rows)])


def grid_rotation(
    grid: tuple[int, int], head_width: int, patches: list[range], tokens: Count
) -> Rotation:
    """The rotation of a sequence of `tokens` tokens, in which all but patches stay as they are.

    The first half of a head's features turns with the row of the patch, the second with its column.

    Args:
        grid: rows and columns of patches.
        patches: where in the sequence all patches lie, in row-major order, perhaps several times.

    Raises:
        ValueError: the number of tokens is symbolic, since each needs its angles.
    """
    if export.is_symbolic_dim(tokens):
        raise ValueError(
            f"{tokens} tokens: towers with rotary positions are exported with a fixed number of "
            "proposals, such as --proposals=100"
        )
    angles = np.zeros((tokens, head_width))
    for run in patches:
        angles[run.start : run.stop] = _angles(grid, head_width)
    sign = np.tile([-1.0, 1.0], head_width // 2)
    tables = np.cos(angles), np.sin(angles) * sign
    return Rotation(*(jnp.asarray(table, jnp.float32) for table in tables))


def _angles(grid: tuple[int, int], head_width: int) -> Float[np.ndarray, "t h"]:
    frequencies = _BASE ** (-np.arange(head_width // 4) / (head_width // 4))
    of_axis = [np.arange(side)[:, None] * _UNITS / side * frequencies for side in grid]
    rows, columns = (angles.repeat(2, axis=1) for angles in of_axis)
    rows, columns = np.broadcast_arrays(rows[:, None], columns[None])
    return np.concatenate([rows, columns], axis=-1).reshape(-1, head_width)


def rotated(
    x: Float[Array, "... t h"], cos: Float[Array, "... t h"], sin: Float[Array, "... t h"]
) -> Float[Array, "... t h"]:
    """x with its pairs turned, in float32, in the dtype of x; `h` is one head or several."""
    exact = x.astype(jnp.float32)
    first_of_pair = jnp.arange(x.shape[-1]) % 2 == 0
    other = jnp.where(first_of_pair, jnp.roll(exact, -1, -1), jnp.roll(exact, 1, -1))
    return (exact * cos + other * sin).astype(x.dtype)
