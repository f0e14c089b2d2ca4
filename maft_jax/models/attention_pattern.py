"""Which rows of a sequence are what, and which rows each of them reads."""

import dataclasses
import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Reading:
    """A run of queries and what they attend to; static, kernels are compiled for it."""

    queries: range
    keys: range
    own: range | None = None
    """Each query's own key and value, which it reads beside `keys`."""
    masked: bool = False
    """Queries read only those of `keys` that the mask given to Attention.attend allows."""


Readings = tuple[Reading, ...]
"""All queries of an array, in order.

Readings of the same keys follow each other; keys of others, and what is anybody's own, share no
row. Who has an own key is masked, and there is one mask.
"""


def all_read_all(tokens: int) -> Readings:
    """Plain self-attention."""
    return (Reading(range(tokens), range(tokens)),)


def with_queries_apart(readings: Readings) -> Readings:
    """The same for queries that lie in an array of their own, one run after the other."""
    ends = itertools.accumulate(len(reading.queries) for reading in readings)
    return tuple(
        dataclasses.replace(reading, queries=range(end - len(reading.queries), end))
        for reading, end in zip(readings, ends, strict=True)
    )


def queries_of(x: Float[Array, "b t d"], readings: Readings) -> Float[Array, "b q d"]:
    """Their rows alone, one run after the other."""
    runs = [x[:, reading.queries.start : reading.queries.stop] for reading in readings]
    return jnp.concatenate(runs, axis=1)


@dataclasses.dataclass(frozen=True)
class MaskedRows:
    """The rows of a masked layer: perhaps the whole image's tokens, then patches, then proposals.

    The whole image is its class token and its patches, which attend to each other. Patches that
    proposals read attend to patches only, and every proposal, a copy of the class token, to itself
    and its allowed patches.
    """

    num_patches: int
    num_proposals: int
    has_whole: bool

    @property
    def whole(self) -> range:
        return range(1 + self.num_patches if self.has_whole else 0)

    @property
    def patches(self) -> range:
        return range(self.whole.stop, self.whole.stop + self.num_patches)

    @property
    def proposals(self) -> range:
        return range(self.patches.stop, self.patches.stop + self.num_proposals)

    @property
    def readings(self) -> Readings:
        return (
            *self._of_whole(self.whole),
            Reading(self.patches, self.patches),
            self._of_proposals,
        )

    @property
    def last_readings(self) -> Readings:
        """Of the last layer, where nothing reads patches afterwards: class token, proposals."""
        return (*self._of_whole(range(1)), self._of_proposals)

    def _of_whole(self, queries: range) -> Readings:
        return (Reading(queries, self.whole),) if self.has_whole else ()

    @property
    def _of_proposals(self) -> Reading:
        return Reading(self.proposals, self.patches, own=self.proposals, masked=True)
