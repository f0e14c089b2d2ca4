"""How masks of an image become class logits: by the tower alone, or with modules of a method."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
from jaxtyping import Array, Float

from maft_jax.models.array_types import Masks
from maft_jax.models.encoder import ImageEncoder, class_logits
from maft_jax.models.preprocess import mask_probability
from maft_jax.runtime.tree_rules import fingerprint


@runtime_checkable
class MaskReader(Protocol):
    """A static, hashable object, given its modules with every call; its repr identifies it."""

    mask_scale: int
    """Rows, and columns, on which masks are read for each one of the encoder's grid."""
    mask_threshold: float | None
    """What masks are cut at before they are resized; None: they stay probabilities."""
    adapts_text: bool
    """Whether class rows depend on the image, so that embeddings of masks are half an answer."""

    def read(
        self,
        encoder: ImageEncoder,
        visual: Mapping,
        modules: Mapping,
        pixels: Float[Array, "b h w 3"],
        masks: Masks,
    ) -> Any:
        """What classes are compared with: embeddings [b, n, e], and more if text is adapted.

        Args:
            masks: as `cut` gives them, of the image's whole area.
        """

    def logits(
        self, encoder: ImageEncoder, modules: Mapping, read: Any, text: Float[Array, "c *names e"]
    ) -> Float[Array, "b n c"]:
        """Of what `read` gave; the maximum over the names of a class that has several."""


class TowerReader:
    """The tower's own reading, for which no module is needed."""

    mask_scale = 1
    mask_threshold = None
    adapts_text = False

    def read(self, encoder, visual, modules, pixels, masks) -> Float[Array, "b n e"]:
        return encoder.encode_proposals(visual, pixels, masks)

    def logits(self, encoder, modules, read, text) -> Float[Array, "b n c"]:
        return class_logits(encoder, read, text)


@flax.struct.dataclass
class Modules:
    """Modules that were trained beside a tower, without which it reads masks in another way."""

    parameters: Mapping
    reader: MaskReader = flax.struct.field(pytree_node=False)

    def describe(self) -> dict[str, str]:
        """JSON values that tell them from others."""
        return {"reader": repr(self.reader), "fingerprint": fingerprint(self.parameters)}


@flax.struct.dataclass
class TowerWithModules:
    """What goes wherever parameters of an image tower do that reads masks."""

    visual: Mapping
    modules: Modules


Tower = Mapping | TowerWithModules
"""Parameters of an image tower, perhaps with modules."""
_OWN = Modules({}, TowerReader())


def with_modules(visual: Mapping, modules: Modules | None) -> Tower:
    """The tower as masks are read with it."""
    return visual if modules is None else TowerWithModules(visual, modules)


def taken_apart(tower: Tower) -> tuple[Mapping, Modules]:
    """Parameters of the tower, and what masks are read with."""
    if isinstance(tower, TowerWithModules):
        return tower.visual, tower.modules
    return tower, _OWN


def describe_tower(tower: Tower) -> dict[str, Any]:
    """JSON values that tell a tower on the host from others."""
    if isinstance(tower, TowerWithModules):
        return {"image_tower": fingerprint(tower.visual), "modules": tower.modules.describe()}
    return {"image_tower": fingerprint(tower)}


def cut(masks: Masks, threshold: float | None) -> Masks:
    """Masks as a reader of this threshold takes them: bool, where there is one."""
    return masks if threshold is None else mask_probability(masks) >= threshold
