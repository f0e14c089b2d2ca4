"""Which rows of a sequence are what, and which rows each of them reads."""

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True)
class Reading:
    """A run of queries and what they attend to; static, kernels are compiled for it."""

    queries: range
    keys: range
    own: range | None = None
    """Each query's own key and value, which it reads beside `keys`."""
    masked: bool = False
    """Queries read only those of `keys` that a mask [b, queries, keys] allows."""


Readings = tuple[Reading, ...]
"""All queries of an array in order; their keys are the same or share no row."""


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
        return range(self.has_whole * (1 + self.num_patches))

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
