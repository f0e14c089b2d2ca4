"""What training a generator minimises: a criterion of masks and classes, for every prediction."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from maft_jax.losses.mask_aware import class_masks
from maft_jax.losses.mask_criteria import (
    Criterion,
    CriterionTerms,
    class_weight_total,
    criterion_terms,
    num_targets,
)
from maft_jax.losses.mask_matching import Targets
from maft_jax.models.array_types import Batch
from maft_jax.models.generators.image_preparation import normalised
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.predictions import Predictions
from maft_jax.models.generators.stochastic_depth import branch_factors
from maft_jax.runtime.mesh_axes import OVER_IMAGES, ShardingRule
from maft_jax.state.train_state import overlay
from maft_jax.training.objective import LossTerm, Metrics, summed

_OF_BRANCHES = 2**31 - 1
"""Folded into the seed where branches are drawn; positions, which points are drawn by, are less."""


class GeneratorCounts(NamedTuple):
    """Of the full batch of a step."""

    targets: Float[Array, ""]
    class_weight: Float[Array, ""]
    """Of all queries of one prediction."""


@dataclasses.dataclass(frozen=True)
class GeneratorObjective:
    """The Objective of a Mask2Former or FreeSeg; for FreeSeg the `context` is text [c, e].

    Targets are the regions of the classes that an image shows; unlabelled pixels belong to none.
    """

    architecture: Mask2FormerConfig
    criterion: Criterion
    mesh: Mesh
    compute_dtype: str
    seed: int
    """Of what a step draws, points and branches, by the images' positions in the stream alone."""
    agnostic: bool = False
    """Whether all classes are one: an object."""
    accumulation_steps: int = 1
    drop_path: float = 0.0
    """Share of the branches of a Swin's last block that training leaves out."""

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        return self.architecture.sharding_rules

    def in_compute_dtype(self, parameters: Mapping) -> Mapping:
        """As they are: every module rounds its own."""
        return parameters

    @property
    def supervised(self) -> Sequence[int]:
        """Predictions that have losses: all, but FreeSeg's last one before the final one.

        Its weights are for nine predictions before the final one, and its decoder makes ten.
        """
        before = range(self.architecture.decoder.layers)
        return [*(before if self.architecture.text is None else before[:-1]), len(before)]

    def counts(self, batch: Batch) -> GeneratorCounts:
        queries = self.architecture.decoder.queries
        return GeneratorCounts(
            num_targets(batch.present_classes), class_weight_total(queries, batch.present_classes)
        )

    def loss_and_metrics(
        self,
        trainable: Mapping,
        pretrained: Mapping,
        context: Float[Array, "c e"] | None,
        batch: Batch,
        counts: GeneratorCounts,
    ) -> tuple[Float[Array, ""], Metrics]:
        network = self.architecture.make_module(jnp.dtype(self.compute_dtype), self.mesh)
        sizes = jnp.broadcast_to(jnp.array(batch.image.shape[1:3]), (len(batch.image), 2))
        predictions = network.apply(
            {"params": overlay(pretrained, trainable)},
            normalised(batch.image, sizes),
            context,
            every_layer=True,
            branch_factors=self._branch_factors(batch.position),
        )
        predictions = jax.tree.map(lambda x: x[np.array(self.supervised)], predictions)
        sums = self._criterion_terms(predictions, batch)
        criterion = self.criterion
        terms = {
            "class": LossTerm(criterion.class_weight, sums.classes, counts.class_weight),
            "mask": LossTerm(criterion.mask_weight, sums.masks, counts.targets),
            "dice": LossTerm(criterion.dice_weight, sums.dice, counts.targets),
        }
        return summed(terms)

    def _branch_factors(self, positions) -> Float[Array, "block 2 b"] | None:
        if not self.drop_path:
            return None
        of_branches = jax.random.fold_in(jax.random.key(self.seed), _OF_BRANCHES)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(of_branches, positions)
        return branch_factors(keys, sum(self.architecture.backbone.blocks), self.drop_path)

    def _criterion_terms(self, predictions: Predictions, batch: Batch) -> CriterionTerms:
        """Each image's sums over all supervised predictions.

        Each device has its own images to itself: matching, a loop of many small steps, waits for
        no other.
        """
        of_layers = PartitionSpec(None, *OVER_IMAGES)
        return jax.shard_map(
            functools.partial(_terms_of_layers, self.criterion, self.seed, self.agnostic),
            mesh=self.mesh,
            in_specs=(of_layers, of_layers, OVER_IMAGES, OVER_IMAGES, OVER_IMAGES),
            out_specs=OVER_IMAGES,
            check_vma=False,
        )(
            predictions.mask_logits,
            predictions.class_logits,
            batch.label_map,
            batch.present_classes,
            batch.position,
        )


def _terms_of_layers(
    criterion: Criterion,
    seed: int,
    agnostic: bool,
    mask_logits: Float[Array, "layer b q h w"],
    class_logits: Float[Array, "layer b q c"],
    label_map,
    classes,
    positions,
) -> CriterionTerms:
    masks = class_masks(label_map, classes).astype(bool)
    targets = Targets(masks, jnp.minimum(classes, 0) if agnostic else classes)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), positions)

    @jax.checkpoint
    def of_layer(layer):
        index, masks, logits = layer
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        points = criterion.draw(own, classes.shape[1])
        return criterion_terms(criterion, masks, logits, targets, points)

    layers = (jnp.arange(len(mask_logits)), mask_logits, class_logits)
    return jax.tree.map(lambda term: term.sum(axis=0), lax.map(of_layer, layers))
