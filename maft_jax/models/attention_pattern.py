"""Attention patterns: which tokens attend to which, known when a program is compiled."""

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Bool, Float

Count = Any
"""Of tokens: a number, or a symbolic one while a program is exported."""


@dataclasses.dataclass(frozen=True)
class AttentionSegment:
    """A run of queries and what they attend to; static, kernels are compiled for it."""

    queries: range | slice
    """A slice where their number is symbolic, and so `own`."""
    keys: range | slice
    own: range | slice | None = None
    """Each query's own key and value, to which it attends beside `keys`."""
    masked: bool = False
    """Queries attend only to those of `keys` that the mask given to Attention.attend allows."""


AttentionPattern = tuple[AttentionSegment, ...]
"""Segments that cover all queries of an array, in order.

Segments of the same keys follow each other; keys of different segments, and own keys, share no
token, unless XLA's attention computes them. A segment with own keys is masked, and there is one
mask.
"""

MASK_RULES = ("maft", "shared_patches", "maskclippp")
"""How proposals read an image, of towers whose proposals are copies of a class token.

maft: patches that they attend to read no class token. shared_patches: as maft, but patches are
those of the whole image, which read its class tokens. maskclippp: patches likewise, masks are soft
and weigh what the layers have learned, and proposals do not attend to themselves.
"""


def token_run(start: Count, stop: Count) -> range | slice:
    """The tokens from start to stop; where a program is exported, their number may be symbolic.

    Then it is a slice, which XLA's attention takes.
    """
    symbolic = export.is_symbolic_dim(start) or export.is_symbolic_dim(stop)
    return slice(start, stop) if symbolic else range(start, stop)


def full_attention(tokens: int) -> AttentionPattern:
    """Plain self-attention."""
    return (AttentionSegment(range(tokens), range(tokens)),)


def with_separate_queries(pattern: AttentionPattern) -> AttentionPattern:
    """The same for queries that lie in an array of their own, one segment after the other."""
    counts = [segment.queries.stop - segment.queries.start for segment in pattern]
    ends = itertools.accumulate(counts)
    return tuple(
        dataclasses.replace(segment, queries=token_run(end - count, end))
        for segment, count, end in zip(pattern, counts, ends, strict=True)
    )


def gather_queries(x: Float[Array, "b t d"], pattern: AttentionPattern) -> Float[Array, "b q d"]:
    """The queries' tokens alone, one segment after the other."""
    runs = [x[:, segment.queries.start : segment.queries.stop] for segment in pattern]
    return jnp.concatenate(runs, axis=1)


@dataclasses.dataclass(frozen=True)
class ProposalSequence:
    """The tokens of a masked layer: class tokens and patches, then proposals, under one MASK_RULES.

    Under "maft" proposals attend to patches of their own, which attend to patches only; beside
    these the whole image, if it is wanted, has its class tokens and patches, which attend to each
    other. Under the other rules the proposals attend to the patches of the whole image, which is
    always there.

    Every proposal, a copy of a class token, attends to its allowed patches, and to itself but
    under "maskclippp".
    """

    num_patches: int
    num_proposals: Count
    has_whole: bool
    class_tokens: int = 1
    class_token: int = 0
    """The one that stands for the image, of which proposals are copies."""
    rule: str = "maft"

    @property
    def whole(self) -> range:
        has_whole = self.has_whole or self.rule != "maft"
        return range(self.class_tokens + self.num_patches if has_whole else 0)

    @property
    def patches(self) -> range:
        """Those that the proposals attend to."""
        start = self.whole.stop if self.rule == "maft" else self.class_tokens
        return range(start, start + self.num_patches)

    @property
    def proposals(self) -> range | slice:
        return token_run(self.patches.stop, self.patches.stop + self.num_proposals)

    @property
    def all_patches(self) -> list[range]:
        """Wherever a run of patches lies in the sequence."""
        of_whole = [range(self.class_tokens, self.whole.stop)] if self.whole else []
        return of_whole if self.rule != "maft" else [*of_whole, self.patches]

    @property
    def pattern(self) -> AttentionPattern:
        of_patches = AttentionSegment(self.patches, self.patches)
        return (
            *self._whole_segments(self.whole),
            *([of_patches] if self.rule == "maft" else []),
            self._proposal_segment,
        )

    @property
    def last_pattern(self) -> AttentionPattern:
        """Of the last layer, where nothing attends to patches later: class token, proposals."""
        reading = range(self.class_token, self.class_token + 1) if self.has_whole else range(0)
        return (*self._whole_segments(reading), self._proposal_segment)

    def among_keys(self, allowed: Bool[Array, "b n t"]) -> Bool[Array, "b n k"]:
        """Which keys of their segment proposals attend to, of which patches they may."""
        before = len(self._proposal_segment.keys) - self.num_patches
        return jnp.pad(allowed, [(0, 0), (0, 0), (before, 0)])

    def _whole_segments(self, queries: range) -> AttentionPattern:
        return (AttentionSegment(queries, self.whole),) if queries else ()

    @property
    def _proposal_segment(self) -> AttentionSegment:
        if self.rule == "maskclippp":
            return AttentionSegment(self.proposals, self.patches, masked=True)
        # keys of different segments share no token, so the class tokens are among them, masked
        keys = self.patches if self.rule == "maft" else self.whole
        return AttentionSegment(self.proposals, keys, own=self.proposals, masked=True)
