"""Which query answers for which target: the cheapest assignment, found inside of the step."""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float
from optax.assignment import hungarian_algorithm

from maft_jax.models.array_types import Leaf


@flax.struct.dataclass
class Targets:
    """The masks that the predictions of a batch of images should be."""

    masks: Leaf
    """[b, g, h, w] bool: what is ignored lies outside of all of them."""
    classes: Leaf
    """[b, g] int; negative where there is no target."""

    @property
    def valid(self) -> Bool[Array, "b g"]:
        return self.classes >= 0


@flax.struct.dataclass
class Matching:
    """The query of every target."""

    query: Leaf
    """[b, g] int; anything where there is none."""
    matched: Leaf
    """[b, g] bool: False for padding, and for targets beyond the number of queries."""


def match(costs: Float[Array, "b g q"], valid: Bool[Array, "b g"]) -> Matching:
    """The assignment of least cost: as many valid targets as there are queries for.

    What is not finite counts nothing, so that a step that diverges ends and can be told.
    """
    costs = lax.stop_gradient(jnp.where(jnp.isfinite(costs), costs, 0))
    query, has_query = jax.vmap(_assign)(costs, valid)
    return Matching(query, has_query & valid)


def _assign(costs: Float[Array, "g q"], valid: Bool[Array, " g"]):
    """Padding costs a constant above all others: valid targets come first if queries are few."""
    valid = valid[:, None]
    most = jnp.max(costs, initial=-jnp.inf, where=valid)
    padded = jnp.where(valid, costs, jnp.where(jnp.any(valid), most + 1, 0))
    targets, queries = hungarian_algorithm(padded)
    query = jnp.zeros(len(costs), jnp.int32).at[targets].set(queries.astype(jnp.int32))
    return query, jnp.zeros(len(costs), bool).at[targets].set(True)
