"""What a step minimises, as it sees it: named loss terms, weighted and summed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.models.array_types import Batch
from maft_jax.runtime.mesh_axes import ShardingRule

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """One of the losses that a step sums."""

    weight: float
    examples: Float[Array, " b"]
    """Of each image, before weight and division."""
    count: Float[Array, ""] | int
    """By which the whole batch's sum is divided."""

    @property
    def value(self) -> Float[Array, ""]:
        """The microbatch's share of the batch's weighted mean."""
        return self.weight * jnp.sum(self.examples) / self.count


@runtime_checkable
class Objective(Protocol):
    """A loss as a static, hashable object, which gets parameters and batches with every call.

    The step that minimises it knows nothing else of what is trained. `pretrained` is the tree
    as it was before the first step, whole or without the trained leaves (StepSetup.frozen),
    `trainable` these as they are now, and `context` what the loss reads beside them: of CLIP the
    class embeddings.
    """

    @property
    def accumulation_steps(self) -> int:
        """Parts into which a batch is split."""

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        """How the parameters are split over a mesh."""

    def in_compute_dtype(self, parameters: Mapping) -> Mapping:
        """Weights that products read, rounded to their dtype; all else as it is."""

    def counts(self, batch: Batch) -> Any:
        """What sums over the full batch of a step are divided by, of which parts are given after.

        So losses and gradients of the parts add up to those of the whole.
        """

    def loss_and_metrics(
        self, trainable: Mapping, pretrained: Mapping, context: Any, batch: Batch, counts: Any
    ) -> tuple[Float[Array, ""], Metrics]:
        """The part's loss, and its metrics, which add up over the parts like it.

        Of these "terms" has the weighted loss terms by name, and "example_finite" [b] whether all
        of an image's are finite.
        """


def summed(terms: Mapping[str, LossTerm], **metrics: Array) -> tuple[Float[Array, ""], Metrics]:
    """What `loss_and_metrics` gives for these terms, with further metrics."""
    values = {name: term.value for name, term in terms.items()}
    finite = [jnp.isfinite(term.examples) for term in terms.values()]
    example_finite = jnp.all(jnp.stack(finite), axis=0)
    return sum(values.values()), {"terms": values, "example_finite": example_finite, **metrics}
