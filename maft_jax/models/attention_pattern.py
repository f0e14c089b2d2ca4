"""Attention patterns: which tokens attend to which, known when a program is compiled."""

import dataclasses
import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class AttentionSegment:
    """A run of queries and what they attend to; static, kernels are compiled for it."""

    queries: range
    keys: range
    own: range | None = None
    """Each query's own key and value, to which it attends beside `keys`."""
    masked: bool = False
    """Queries attend only to those of `keys` that the mask given to Attention.attend allows."""


AttentionPattern = tuple[AttentionSegment, ...]
"""Segments that cover all queries of an array, in order.

Segments of the same keys follow each other; keys of different segments, and own keys, share no
token. A segment with own keys is masked, and there is one mask.
"""


def full_attention(tokens: int) -> AttentionPattern:
    """Plain self-attention."""
    return (AttentionSegment(range(tokens), range(tokens)),)


def with_separate_queries(pattern: AttentionPattern) -> AttentionPattern:
    """The same for queries that lie in an array of their own, one segment after the other."""
    ends = itertools.accumulate(len(segment.queries) for segment in pattern)
    return tuple(
        dataclasses.replace(segment, queries=range(end - len(segment.queries), end))
        for segment, end in zip(pattern, ends, strict=True)
    )


def gather_queries(x: Float[Array, "b t d"], pattern: AttentionPattern) -> Float[Array, "b q d"]:
    """The queries' tokens alone, one segment after the other."""
    runs = [x[:, segment.queries.start : segment.queries.stop] for segment in pattern]
    return jnp.concatenate(runs, axis=1)


@dataclasses.dataclass(frozen=True)
class ProposalSequence:
    """The tokens of a masked layer: perhaps the whole image's, then patches, then proposals.

    The whole image is its class token and its patches, which attend to each other. The patches
    that proposals attend to attend to patches only, and every proposal, a copy of the class token,
    to itself and its allowed patches.
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
    def pattern(self) -> AttentionPattern:
        return (
            *self._whole_segments(self.whole),
            AttentionSegment(self.patches, self.patches),
            self._proposal_segment,
        )

    @property
    def last_pattern(self) -> AttentionPattern:
        """Of the last layer, where nothing attends to patches later: class token, proposals."""
        return (*self._whole_segments(range(1)), self._proposal_segment)

    def _whole_segments(self, queries: range) -> AttentionPattern:
        return (AttentionSegment(queries, self.whole),) if self.has_whole else ()

    @property
    def _proposal_segment(self) -> AttentionSegment:
        return AttentionSegment(self.proposals, self.patches, own=self.proposals, masked=True)
