"""The objective of a method: its loss terms of the student, with modules of its own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Array, Float

from maft_jax.methods.method import StepInputs
from maft_jax.models.array_types import Batch
from maft_jax.models.encoder import ImageEncoder
from maft_jax.runtime.mesh_axes import ShardingRule
from maft_jax.state.tuned_tree import TunedTree
from maft_jax.training.objective import Metrics, summed


@dataclasses.dataclass(frozen=True)
class MethodObjective:
    """The Objective of a tree with a method; its `context` are class embeddings."""

    encoder: ImageEncoder
    tree: TunedTree
    image_size: tuple[int, int]
    """Height and width at which the encoder reads the images."""
    accumulation_steps: int = 1

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        return self.encoder.architecture.sharding_rules

    def in_compute_dtype(self, parameters: Mapping) -> Mapping:
        return self.tree.in_compute_dtype(self.encoder, parameters)

    def counts(self, batch: Batch) -> Any:
        return self.tree.method.counts(batch)

    def loss_and_metrics(
        self,
        trainable: Mapping,
        pretrained: Mapping,
        context: Float[Array, "c *names e"],
        batch: Batch,
        counts: Any,
    ) -> tuple[Float[Array, ""], Metrics]:
        encoder = self.encoder
        student, modules = self.tree.student(encoder, pretrained, trainable)
        step = StepInputs(
            encoder,
            student,
            encoder.in_compute_dtype(self.tree.visual(pretrained)),
            modules,
            context,
            encoder.prepare(batch.image, self.image_size),
            batch,
        )
        return summed(self.tree.method.terms(step, counts))
