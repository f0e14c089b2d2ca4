"""FC-CLIP and MAFT+ as a whole, from their checkpoint: one pass of CLIP's ConvNeXt for all.

MAFT+ adapts the rows of class names to each image before its CLIP compares masks with them;
Mask-Adapter draws the maps that the CLIP of either pools masks with.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from input_pipeline.examples import IGNORE
from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.convert.fcclip import adapter_config, read_modules
from maft_jax.inference import geometric_ensemble
from maft_jax.inference.instances import find_instances
from maft_jax.inference.logit_labels import Order, label_logits, stored_masks
from maft_jax.inference.panoptic import segment_image
from maft_jax.inference.result import Segmentation
from maft_jax.inference.segment_rules import RULES, SegmentRules, find_rules, find_things
from maft_jax.inference.segmentation import ImageLike, load_image
from maft_jax.inference.segments import InstanceSegmentation, PanopticSegmentation
from maft_jax.inference.vocabulary import check_apart, check_names
from maft_jax.models.adapters.content_dependent_transfer import Kind
from maft_jax.models.adapters.mask_adapter import AdapterReader
from maft_jax.models.generators.fcclip_network import FcClipNetwork, make_network
from maft_jax.models.generators.image_preparation import ADAPTER_PREPARATION
from maft_jax.models.mask_pixels import PlacedMasks
from maft_jax.models.text_classifier import cached_class_embeddings
from maft_jax.proposals.fcclip import open_fcclip, read_parameters
from maft_jax.runtime.tree_rules import fingerprint

_BASE_EMBED_DIM = 640
"""Of the ConvNeXt-B of MAFT+; the ConvNeXt-L has 768."""


@dataclasses.dataclass(frozen=True)
class _Settings:
    """With what its authors evaluate a system."""

    exponents: tuple[float, float]
    """Of the tower's probabilities for classes of training and for others."""
    rules: SegmentRules
    mask_threshold: float = AdapterReader.mask_threshold
    """At what probability masks are cut that an adapter reads."""

    @classmethod
    def of(cls, modules: Mapping, embed_dim: int) -> "_Settings":
        """Those of the system whose modules these are."""
        if "transfer" not in modules:
            exponents = (0.7, 0.9) if "adapter" in modules else (0.4, 0.8)
            return cls(exponents, RULES["fcclip"])
        if "adapter" not in modules:
            return cls((1.0, 1.0), RULES["maft_plus"])
        rules = dataclasses.replace(RULES["maft_plus"], object_threshold=0.0)
        if embed_dim == _BASE_EMBED_DIM:
            return cls((0.7, 1.0), rules, 0.45)
        return cls((0.8, 1.0), rules, 0.4)


class FcClipSegmenter:
    """Segments images with a vocabulary, by one checkpoint of FC-CLIP or MAFT+.

    Either may have Mask-Adapter's adapter.

    Args:
        path: the checkpoint, whose tower, text tower and generator are used.
        classes, background, synonyms, templates: as of `maft_jax.segment`.
        trained: names of each class that the generator was trained on, which decide which of the
            classes are seen; none: all are unseen.
        exponents: of the tower's probabilities for seen classes, and for others; by default those
            of the system.
        order: what is resized to the image's own size, logits or scores.
        transfer: of MAFT+: whether its weights are of a semantic or a panoptic model, which they do
            not tell.
        compute_dtype: of matrix products.
        cache_dir: folder in which the text embeddings are kept.

    Raises:
        ValueError: it is no such checkpoint, or names cannot work.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        classes: Sequence[str],
        *,
        cache_dir: str | os.PathLike,
        background: Sequence[str] = (),
        synonyms: Mapping[str, Sequence[str]] | None = None,
        templates: Sequence[str] = PROMPT_TEMPLATES,
        trained: Sequence[Sequence[str]] = (),
        exponents: tuple[float, float] | None = None,
        order: Order = "logits",
        transfer: Kind = "semantic",
        compute_dtype: str = "float32",
    ):
        synonyms = synonyms or {}
        self.class_names = check_names(classes, "classes")
        self.background = check_names(background, "background") if background else ()
        check_apart(self.class_names, self.background, synonyms)
        clip, self.opened = open_fcclip(path)
        names = (*self.class_names, *self.background)
        self._text = jnp.asarray(
            cached_class_embeddings(
                clip.config.text, clip.parameters()["text"], names, templates, cache_dir, synonyms
            )
        )
        of_classes = [(name, *synonyms.get(name, ())) for name in names]
        self._seen = jnp.asarray(geometric_ensemble.seen_by_name(of_classes, trained))
        modules = read_modules(path)
        on_host = read_parameters(clip, self.opened) | modules
        self.is_maft_plus = "transfer" in modules
        adapter = adapter_config(modules["adapter"]) if "adapter" in modules else None
        self.preparation = ADAPTER_PREPARATION if adapter else self.opened.preparation
        settings = _Settings.of(modules, clip.config.vision.embed_dim)
        self.exponents, self.rules = exponents or settings.exponents, settings.rules
        self.mask_threshold = settings.mask_threshold if adapter else None
        self.fingerprint = fingerprint(on_host)
        kind = transfer if self.is_maft_plus else None
        self._network = make_network(
            clip.config.vision,
            self.opened.config,
            compute_dtype,
            kind,
            adapter,
            settings.mask_threshold,
        )
        self._parameters = jax.device_put(on_host)
        self._order = order

    def __call__(self, image: ImageLike, example_id: str | None = None) -> Segmentation:
        """Segments one image; `example_id` says nothing here."""
        pixels = load_image(image)
        masks, probabilities, read = self._classified(pixels)
        found = label_logits(
            masks[0], probabilities[0], **read, size=pixels.shape[:2], order=self._order
        )
        nothing = np.zeros_like(found.score)
        share = np.divide(found.score, found.total, out=nothing, where=found.total > 0)
        is_class = found.label_map < len(self.class_names)
        return Segmentation(
            image=pixels,
            class_names=self.class_names,
            label_map=np.where(is_class, found.label_map, np.int32(IGNORE)),
            score=np.minimum(share, 1),
            proposals=stored_masks(masks[0], **read),
            proposal_probabilities=np.asarray(probabilities[0][:, : len(self.class_names)]),
            background=self.background,
        )

    def panoptic(
        self,
        image: ImageLike,
        example_id: str | None = None,
        *,
        things: Iterable[str | int] | None = None,
        rules: str | SegmentRules | None = None,
    ) -> PanopticSegmentation:
        """Gives every pixel of an image to one object, to one class without objects, or to none.

        Args:
            example_id: says nothing here.
            things: names or indices of the classes with countable objects; None: all.
            rules: thresholds, or a name of `segment_rules.RULES`; None: the system's.
        """
        return self._segments(segment_image, image, things, rules)

    def instances(
        self,
        image: ImageLike,
        example_id: str | None = None,
        *,
        things: Iterable[str | int] | None = None,
        rules: str | SegmentRules | None = None,
    ) -> InstanceSegmentation:
        """The objects of an image, which may overlap; arguments as of `panoptic`."""
        return self._segments(find_instances, image, things, rules)

    def _segments(self, make, image, things, rules):
        rules = find_rules(rules or self.rules)
        things, pixels = find_things(things, self.class_names), load_image(image)
        masks, probabilities, read = self._classified(pixels)
        sizes = (
            jnp.array([size], jnp.int32)
            for size in (read["padded_size"], read["image_size"], pixels.shape[:2])
        )
        placed = PlacedMasks(masks, *sizes, kind="logits")
        return make(pixels, probabilities, placed, self.class_names, things, rules)

    def _classified(self, pixels: UInt8[np.ndarray, "h w 3"]) -> tuple[Array, Array, dict]:
        """Mask logits and probabilities of a batch of one image, and at what sizes it was read."""
        prepared = self.preparation.prepare(pixels)
        size, padded = prepared.shape[:2], self.preparation.padded_size(*pixels.shape[:2])
        batch = np.zeros((1, *padded, 3), np.uint8)
        batch[0, : size[0], : size[1]] = prepared
        sizes = jnp.array([size], jnp.int32)
        masks, probabilities = _classified(
            self._network, self.exponents, self._parameters, batch, sizes, self._text, self._seen
        )
        return masks, probabilities, {"padded_size": padded, "image_size": size}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _classified(
    network: FcClipNetwork,
    exponents: tuple[float, float],
    parameters,
    pixels: UInt8[Array, "b input_h input_w 3"],
    sizes: Int[Array, "b 2"],
    text: Float[Array, "c *names e"],
    seen: Bool[Array, " c"],
) -> tuple[Float[Array, "b n h w"], Float[Array, "b n c"]]:
    """Mask logits, and what label maps weigh masks with."""
    masks, class_logits, tower_logits = network(parameters, pixels, sizes, text)
    tower = jax.nn.softmax(tower_logits)
    return masks, geometric_ensemble.probabilities(tower, class_logits, seen, exponents)
