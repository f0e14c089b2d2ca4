"""What a way to teach CLIP masks is: masks, loss terms, what is trained, modules of its own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from maft_jax.convert.rules import Rule
from maft_jax.models.array_types import Batch
from maft_jax.models.encoder import ImageArchitecture, ImageEncoder
from maft_jax.models.mask_reader import MaskReader
from maft_jax.training.objective import LossTerm


@dataclasses.dataclass(frozen=True, eq=False)
class StepInputs:
    """What a method's losses are computed from."""

    encoder: ImageEncoder
    student: Mapping
    """The image tower as it is now; gradients flow into what is trained of it."""
    frozen: Mapping
    """The same before the first step."""
    modules: Mapping
    """The method's own parameters."""
    text: Float[Array, "c *names e"]
    """Class embeddings."""
    pixels: Float[Array, "b h w 3"]
    """As `encoder.prepare` makes them."""
    batch: Batch
    """Of which masks and labels are read; it may be a part of the step's."""


class Method:
    """Base of static, hashable objects made of settings, the values of registry.METHODS.

    All but `terms` is that of a method without modules here, which those with some replace.
    """

    has_modules = False
    """Whether there are parameters beside the tower's."""
    reader: MaskReader | None = None
    """How masks are read with the modules once they are trained, which may adapt class rows to an
    image; None: as the tower does, and modules take part in training alone."""
    module_rules: Sequence[Rule] = ()
    """Names of the modules in the authors' checkpoints."""

    def default_trainable(self, vision: ImageArchitecture) -> tuple[str, ...]:
        """Rules over the tower's parameter paths, where settings have none; modules always are."""
        return tuple(vision.default_trainable)

    def check(self, encoder: ImageEncoder) -> None:
        """Raises ValueError where the tower cannot be taught so."""

    def init_modules(self, vision: ImageArchitecture, key: jax.Array) -> dict:
        """Random float32 parameters of the method's own."""
        return {}

    def counts(self, batch: Batch) -> Any:
        """What sums over the full batch of a step are divided by: its images."""
        return len(batch.image)

    def terms(self, step: StepInputs, counts: Any) -> dict[str, LossTerm]:
        """Loss terms by name, which becomes the metric NAME_loss."""
        raise NotImplementedError
