"""What a mask generator is trained to minimise, as the two official codes have it.

FreeSeg and MaskFormer compare masks at all pixels, by a focal loss; Mask2Former at random points,
most of them where a mask is uncertain, by cross-entropy. The rest is the same: each prediction has
its own matching, and classes, masks and overlap have a loss each.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from maft_jax.losses.mask_matching import Matching, Targets, match
from maft_jax.losses.mask_samples import sample_masks, select_points
from maft_jax.models.array_types import Leaf
from maft_jax.models.resize import resize

NO_OBJECT_WEIGHT = 0.1
"""Of queries without a target in the loss of classes."""

_product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@flax.struct.dataclass
class Points:
    """Where masks are read, as (x, y) in shares of width and height."""

    matching: Leaf
    """[b, p, 2]: by which queries are matched, the same for all masks of an image."""
    candidates: Leaf
    """[b, g, 3 p, 2]: of which every target's loss takes the most uncertain."""
    fresh: Leaf
    """[b, g, p / 4, 2]: which it takes besides."""


@flax.struct.dataclass
class CriterionTerms:
    """Each image's sums, before weights and division: [b], or [layer, b] of several layers."""

    classes: Leaf
    """To be divided by `class_weight_total`."""
    masks: Leaf
    """To be divided by the number of targets of the whole batch, and so `dice`."""
    dice: Leaf


@dataclasses.dataclass(frozen=True)
class DenseCriterion:
    """FreeSeg's, and with a dice weight of 1 MaskFormer's: all pixels, focal loss."""

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 5.0

    def draw(self, keys: Array, num_targets: int) -> None:
        """None: all pixels are read."""

    def inside(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """What a pixel of the target costs: focal loss with alpha 1/4 and gamma 2."""
        return 0.25 * jax.nn.sigmoid(-logits) ** 2 * jax.nn.softplus(-logits)

    def outside(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """What a pixel beside it costs."""
        return 0.75 * jax.nn.sigmoid(logits) ** 2 * jax.nn.softplus(logits)

    def samples_to_match(self, mask_logits, targets: Targets, points: None):
        """Both at the predictions' pixels; of the targets' the first of each square."""
        rows, columns = (
            truth // predicted
            for truth, predicted in zip(targets.masks.shape[2:], mask_logits.shape[2:], strict=True)
        )
        return _flat(mask_logits), _flat(targets.masks[:, :, ::rows, ::columns])

    def samples_to_compare(self, mask_logits, targets: Targets, points: None):
        """Both at the targets' pixels."""
        enlarged = resize(mask_logits, targets.masks.shape[-2:], axes=(-2, -1))
        return _flat(enlarged), _flat(targets.masks)


@dataclasses.dataclass(frozen=True)
class PointCriterion:
    """Mask2Former's: random points, cross-entropy."""

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    num_points: int = 12544
    oversampling: float = 3.0
    """How many times as many candidates there are."""
    uncertain_share: float = 0.75
    """Of the points; the others are anywhere."""

    @property
    def num_uncertain(self) -> int:
        return int(self.uncertain_share * self.num_points)

    def draw(self, keys: Array, num_targets: int) -> Points:
        """Points for a layer, each image's from its own key."""

        def of_image(key):
            matching, candidates, fresh = jax.random.split(key, 3)
            many = int(self.oversampling * self.num_points)
            few = self.num_points - self.num_uncertain
            return Points(
                jax.random.uniform(matching, (self.num_points, 2)),
                jax.random.uniform(candidates, (num_targets, many, 2)),
                jax.random.uniform(fresh, (num_targets, few, 2)),
            )

        return jax.vmap(of_image)(keys)

    def inside(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """What a point of the target costs."""
        return jax.nn.softplus(-logits)

    def outside(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """What a point beside it costs."""
        return jax.nn.softplus(logits)

    def samples_to_match(self, mask_logits, targets: Targets, points: Points):
        """Both at the points that all masks of an image share."""

        def at_points(masks):
            shared = points.matching[:, None]
            shape = (*masks.shape[:2], *shared.shape[2:])
            return sample_masks(masks, jnp.broadcast_to(shared, shape))

        return at_points(mask_logits), at_points(targets.masks)

    def samples_to_compare(self, mask_logits, targets: Targets, points: Points):
        """Both at each target's own points; labels are fractional between pixels."""
        chosen = select_points(mask_logits, points.candidates, points.fresh, self.num_uncertain)
        return sample_masks(mask_logits, chosen), sample_masks(targets.masks, chosen)


Criterion = DenseCriterion | PointCriterion


def class_weight_total(num_queries: int, classes: Int[Array, "b g"]) -> Float[Array, ""]:
    """By which a layer's sum over classes is divided: the weight of all queries of the batch."""
    matched = jnp.minimum(jnp.sum(classes >= 0, axis=1), num_queries)
    return jnp.sum(matched + NO_OBJECT_WEIGHT * (num_queries - matched)).astype(jnp.float32)


def num_targets(classes: Int[Array, "b g"]) -> Float[Array, ""]:
    """By which sums over masks are divided: the targets of the batch, at least 1."""
    return jnp.maximum(jnp.sum(classes >= 0), 1).astype(jnp.float32)


def matching_costs(
    criterion: Criterion,
    mask_logits: Float[Array, "b q h w"],
    class_logits: Float[Array, "b q c"],
    targets: Targets,
    points: Points | None,
) -> Float[Array, "b g q"]:
    """What it costs to answer for a target with a query."""
    logits, truth = criterion.samples_to_match(mask_logits, targets, points)
    logits, truth = logits.astype(jnp.float32), truth.astype(jnp.float32)
    inside, outside = criterion.inside(logits), criterion.outside(logits)
    mask = _product("bqs,bgs->bgq", inside - outside, truth) + outside.sum(-1)[:, None]
    probability = jax.nn.sigmoid(logits)
    area = truth.sum(-1)[:, :, None] + probability.sum(-1)[:, None]
    dice = 1 - (2 * _product("bqs,bgs->bgq", probability, truth) + 1) / (area + 1)
    classes = jnp.maximum(targets.classes, 0)[:, None]
    likely = jnp.take_along_axis(jax.nn.softmax(class_logits), classes, axis=-1)
    return (
        criterion.mask_weight * mask / logits.shape[-1]
        + criterion.dice_weight * dice
        - criterion.class_weight * jnp.swapaxes(likely, 1, 2)
    )


def criterion_terms(
    criterion: Criterion,
    mask_logits: Float[Array, "b q h w"],
    class_logits: Float[Array, "b q c"],
    targets: Targets,
    points: Points | None,
) -> CriterionTerms:
    """The losses of one layer's predictions; the last class is "no object"."""
    costs = matching_costs(
        criterion, *lax.stop_gradient((mask_logits, class_logits)), targets, points
    )
    matching = match(costs, targets.valid)
    masks, dice = _mask_terms(criterion, mask_logits, targets, matching, points)
    return CriterionTerms(_class_terms(class_logits, targets, matching), masks, dice)


def _mask_terms(criterion, mask_logits, targets: Targets, matching: Matching, points):
    chosen = jnp.take_along_axis(mask_logits, matching.query[:, :, None, None], axis=1)
    logits, truth = criterion.samples_to_compare(chosen, targets, points)
    truth = truth.astype(jnp.float32)
    loss = truth * criterion.inside(logits) + (1 - truth) * criterion.outside(logits)
    probability = jax.nn.sigmoid(logits)
    overlap, area = jnp.sum(probability * truth, -1), jnp.sum(probability, -1) + jnp.sum(truth, -1)
    dice = 1 - (2 * overlap + 1) / (area + 1)
    return tuple(
        jnp.sum(term, axis=1, where=matching.matched) for term in (jnp.mean(loss, -1), dice)
    )


def _class_terms(class_logits, targets: Targets, matching: Matching) -> Float[Array, " b"]:
    num_queries, no_object = class_logits.shape[1], class_logits.shape[2] - 1

    def of_image(classes, query, matched):
        slots = jnp.where(matched, query, num_queries)  # beyond the last: nothing is written
        return jnp.full(num_queries, no_object).at[slots].set(classes, mode="drop")

    wanted = jax.vmap(of_image)(targets.classes, matching.query, matching.matched)
    log_probability = jax.nn.log_softmax(class_logits)
    chosen = jnp.take_along_axis(log_probability, wanted[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(wanted == no_object, NO_OBJECT_WEIGHT, 1) * chosen, axis=1)


def _flat(masks):
    return masks.reshape(*masks.shape[:-2], -1)
