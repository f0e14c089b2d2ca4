"""MAFT+'s representation compensation: sums over rows and columns of the map stay what they were.

Douillard et al., PLOP, pools so to keep what a network knew; here of the tuned tower's last map.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.losses.mask_aware import smooth_l1
from maft_jax.models.resize import resize

_SCALES = (1, 2, 4)


def representation_terms(
    student: Float[Array, "b h w d"], frozen: Float[Array, "b h w d"]
) -> Float[Array, " b"]:
    """Each image's SmoothL1 between the two maps' sums, mean over sums and channels."""
    return jnp.mean(smooth_l1(_sums(student), _sums(frozen)), axis=(1, 2))


def _sums(maps: Float[Array, "b h w d"]) -> Float[Array, "b sums d"]:
    """Of the positive part, in squares of three sizes, over rows and over columns.

    A square has a 1st, 2nd or 4th of the width before the map is made square, so that a map higher
    than wide is cut into more of them. That is official.
    """
    maps = jnp.maximum(maps.astype(jnp.float32), 0)
    height, width = maps.shape[1:3]
    if height != width:
        side = max(height, width)
        maps = resize(maps, (side, side), axes=(1, 2))
    sums = []
    for scale in _SCALES:
        squares = _means(maps, width // scale)
        sums += [jnp.sum(squares, axis=1), jnp.sum(squares, axis=2)]
    return jnp.concatenate(sums, axis=1)


def _means(maps: Float[Array, "b h w d"], side: int) -> Float[Array, "b _ _ d"]:
    """Over squares of this side; what fills none is left out."""
    side = max(side, 1)
    batch, *sides, channels = maps.shape
    rows, columns = (length // side for length in sides)
    whole = maps[:, : rows * side, : columns * side]
    return jnp.mean(whole.reshape(batch, rows, side, columns, side, channels), axis=(2, 4))
