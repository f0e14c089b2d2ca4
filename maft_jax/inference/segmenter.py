"""From an image and its proposals to class probabilities, and from these to a label map.

Three kinds of programs, so that sizes cost little: one per shape of the arrays brings images and
masks to the encoder's size, one encoder serves all, and one per shape labels pixels.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from input_pipeline.eval_pipeline import EvalGeometry
from maft_jax.inference import geometric_ensemble
from maft_jax.inference.images_on_devices import map_images, place
from maft_jax.models.encoder import ImageEncoder
from maft_jax.models.mask_pixels import PlacedMasks
from maft_jax.models.mask_reader import MaskReader, Tower, cut, taken_apart
from maft_jax.models.padded_inputs import encoder_image, patch_grid_masks, patch_grid_regions
from maft_jax.models.pixel_labels import IGNORE, PixelLabels, covers_pixels, label_pixels
from maft_jax.runtime.sharding import batch_sharding, replicated, tree_shardings

__all__ = ["IGNORE", "InferenceSpec", "PixelLabels", "Segmenter", "ensemble"]


@dataclasses.dataclass(frozen=True)
class InferenceSpec:
    """What inference computes, apart from its array arguments."""

    encoder: ImageEncoder
    image_size: tuple[int, int]
    """Height and width at which the encoder reads the images."""
    short_side: int | None = None
    """Pixels of the short side of the images in a batch, if their ratio of sides is to be kept: the
    encoder then reads the whole array, scaled as this side becomes that of image_size. None: all
    images, with their padding, are squashed to image_size."""
    scales: tuple[float, ...] = (1.0,)
    """Test-time augmentation: times image_size, rounded to whole patches."""
    flip: bool = False
    """Also reads every view mirrored."""
    ensemble_weight: float = 0.0
    """Exponent of the generator's probabilities for seen classes; 0 is CLIP alone."""
    ensemble_exponents: tuple[float, float] | None = None
    """FC-CLIP's ensemble instead: of the tower's probabilities for seen classes, and for others."""
    filter_invalid: bool = False
    """Leaves out proposals that are nowhere above 0.5."""

    def __post_init__(self):
        self.encoder.grid(self.image_size)
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"scales: expected at least one positive number, got {self.scales}")
        if not 0 <= self.ensemble_weight <= 1:
            raise ValueError(f"ensemble_weight: expected 0 to 1, got {self.ensemble_weight}")
        exponents = self.ensemble_exponents
        if not all(0 <= exponent <= 1 for exponent in exponents or ()):
            raise ValueError(f"ensemble_exponents: expected numbers from 0 to 1, got {exponents}")
        if self.ensemble_weight and exponents is not None:
            raise ValueError(
                f"ensemble_weight={self.ensemble_weight} and ensemble_exponents="
                f"{self.ensemble_exponents}: expected one ensemble, MAFT's or FC-CLIP's"
            )

    @property
    def ensemble(self) -> str | None:
        """The setting that asks for the generator's own classes; None is CLIP alone."""
        if self.ensemble_exponents is not None:
            return f"ensemble_exponents={self.ensemble_exponents}"
        return f"ensemble_weight={self.ensemble_weight}" if self.ensemble_weight else None

    def class_logit_widths(self, num_classes: int) -> tuple[int, ...]:
        """Numbers of class logits that an ensemble can use: FC-CLIP's needs "no object"."""
        with_nothing = num_classes + 1
        return (with_nothing,) if self.ensemble_exponents else (num_classes, with_nothing)

    def view_sizes(self, arrays: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Height and width of every scale, for arrays of this height and width.

        Scale 1 is image_size itself, as it is; all else is whole patches or cells.
        """
        scaled = self.encoder.scaled
        if self.short_side is not None:
            kept = min(self.image_size) / self.short_side
            return tuple(scaled(arrays, kept * scale) for scale in self.scales)
        size = self.image_size
        return tuple(size if scale == 1 else scaled(size, scale) for scale in self.scales)


class Segmenter:
    """Labels batches of images, of which each program is compiled once.

    Batches have the keys of `input_pipeline.eval_pipeline.make_eval_dataset`. Programs depend on
    shapes alone: a new size of image within known shapes compiles nothing, and new shapes of
    images compile no encoder, which depends on the number of images and proposals only. Where the
    ratio of sides is kept, it depends on the shapes too: give arrays without needless padding.

    Instead of stored masks `proposals` may be those of `pixel_masks`, at every pixel of the padded
    image: then `proposal_grid` is the image's size, and `proposal_extent`, int32 [b, 2], says how
    far they go into the padding.
    """

    def __init__(self, spec: InferenceSpec, mesh: Mesh | None = None):
        """With a mesh, images are spread over its axes data and fsdp, which must divide them."""
        self.spec = spec
        self.mesh = mesh

    def class_probabilities(
        self,
        tower: Tower,
        text: Float[Array, "c *names e"],
        batch: Mapping[str, Array],
        seen: Bool[Array, " seen_classes"] | None = None,
    ) -> Float[Array, "b n c"]:
        """Softmax over the classes for every proposal; zeros where proposals do not count.

        Args:
            tower: parameters of the image tower, with modules if masks are read with them.
            text: normalised class embeddings; [c, names, e] where classes have several names.
            seen: classes that the generator was trained on; the ensemble needs it.

        Raises:
            ValueError: text of another width, or an ensemble without what it needs.
        """
        return self._classified(tower, text, batch, seen, None)[0]

    def proposals_and_regions(
        self,
        tower: Tower,
        text: Float[Array, "c *names e"],
        batch: Mapping[str, Array],
        classes: Int32[Array, "b r"],
        seen: Bool[Array, " seen_classes"] | None = None,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b r c"]]:
        """As `class_probabilities`, and what the tower alone says of regions of the label map.

        A region is the pixels that `label_map` gives one of `classes`; below 0 is none, whose row
        says nothing. The tower reads regions with the proposals, in one pass over the image.
        """
        return self._classified(tower, text, batch, seen, classes)

    def _classified(self, tower, text, batch, seen, classes):
        self._check(text, batch, seen)
        if self.mesh is not None:
            tower = place(
                tower,
                tree_shardings(tower, self.mesh, self.spec.encoder.architecture.sharding_rules),
            )
            text, seen = place((text, seen), replicated(self.mesh))
        batch, classes = self._spread((dict(batch), classes))
        valid = batch["proposal_valid"]
        covers = None
        if self.spec.filter_invalid or self.spec.ensemble_weight:
            covers = _covers(self.mesh, *_arrays(batch, *_COVERS_KEYS))
        if self.spec.filter_invalid:
            valid = valid & covers
        encoder, (_, modules) = self.spec.encoder, taken_apart(tower)
        views = [
            _classify(encoder, modules, _encode(encoder, tower, *view), text)
            for view in self._views(batch, classes, modules.reader)
        ]
        generator = None
        if self.spec.ensemble:
            generator = (batch["class_logits"], covers, seen)
        return _combine(
            self.spec.ensemble_weight, self.spec.ensemble_exponents, views, valid, generator
        )

    def label_maps(
        self, probabilities: Float[Array, "b n c"], batch: Mapping[str, Array]
    ) -> PixelLabels:
        """The best class of every pixel at native size, in arrays of the size of the label maps.

        Without `label_map` in the batch, the arrays are as large as `image`, which must suffice.
        """
        probabilities, batch = self._spread((probabilities, dict(batch)))
        like = batch["label_map"] if "label_map" in batch else batch["image"]
        arrays = _arrays(batch, *_LABEL_KEYS)
        return _label(self.mesh, like.shape[1:3], probabilities, *arrays)

    def label_rows(
        self,
        probabilities: Float[Array, "b n c"],
        batch: Mapping[str, Array],
        first_row: int,
        size: tuple[int, int],
    ) -> PixelLabels:
        """As `label_maps`, from a row on, in arrays of this height and width.

        The labels of an image that is too large for them at once, strip by strip.
        """
        first_rows = jnp.full(len(probabilities), first_row, jnp.int32)
        probabilities, batch, first_rows = self._spread((probabilities, dict(batch), first_rows))
        return _label(self.mesh, size, probabilities, *_arrays(batch, *_LABEL_KEYS), first_rows)

    def _views(self, batch, classes, reader):
        """Images and masks on the reader's grid for every scale, as they are and mirrored.

        Behind the proposals' masks come those of regions, of the classes that are given.
        """
        arrays = batch["image"].shape[1:3]
        if self.spec.short_side is not None:  # all of the array is read, padding included
            padded = jnp.zeros_like(batch["padded_size"]) + jnp.array(arrays, jnp.int32)
            batch = batch | {"padded_size": padded}
        extent = batch.get("proposal_extent")
        covered = _arrays(batch, *_SIZES) if extent is None else (extent, extent)
        read = *_arrays(batch, *_PREPARE_KEYS), *covered
        for size in self.spec.view_sizes(arrays):
            view = _prepare(self.mesh, self.spec.encoder, reader, size, *read)
            if classes is not None:
                of_labels = (classes, *_arrays(batch, *_REGION_KEYS))
                view = _with_regions(self.mesh, view[1].shape[2:], view, of_labels)
            yield view
            if self.spec.flip:
                yield _mirror(*view)

    def _spread(self, tree):
        """Rows over the devices."""
        return tree if self.mesh is None else place(tree, batch_sharding(self.mesh))

    def _check(self, text, batch, seen):
        width = self.spec.encoder.architecture.embed_dim
        if text.ndim not in (2, 3) or text.shape[-1] != width:
            raise ValueError(
                f"text: expected class embeddings [classes, {width}] of the text tower that "
                f"belongs to the image tower, got {text.shape}; embed the names with its weights"
            )
        if (asked := self.spec.ensemble) is None:
            return
        off = "ensemble_weight=0" if self.spec.ensemble_weight else "no ensemble_exponents"
        if seen is None or len(seen) != len(text):
            raise ValueError(
                f"{asked}: expected `seen`, one bool for each "
                f"of {len(text)} classes, got {seen if seen is None else len(seen)}; pass which "
                f"classes the generator was trained on, or set {off}"
            )
        logits = batch.get("class_logits")
        if logits is None:
            raise ValueError(
                f"{asked}: expected the generator's "
                "`class_logits` in the batch, which has none; compute the records with a "
                f"generator that classifies, or set {off}"
            )
        if logits.shape[2] not in (widths := self.spec.class_logit_widths(len(text))):
            raise ValueError(
                f"class_logits: expected {' or '.join(map(str, widths))} of {len(text)} classes, "
                f"{len(text) + 1} being those with the generator's no-object last, got "
                f"{logits.shape[2]}; compute the records with a generator of the same class list, "
                f"or set {off}"
            )


def ensemble(
    clip: Float[Array, "b n c"],
    class_logits: Float[Array, "b n generator_classes"],
    covers: Bool[Array, "b n"],
    seen: Bool[Array, " c"],
    weight: float,
) -> Float[Array, "b n c"]:
    """P^w C^(1-w) for seen and P^(1-w) C^w for unseen classes, P the generator's and C CLIP's.

    A last generator class beyond CLIP's takes part in its softmax and is dropped. C is 1 for
    proposals that cover no pixel.
    """
    generator = jax.nn.softmax(class_logits, axis=-1)[..., : clip.shape[-1]]
    clip = jnp.where(covers[..., None], clip, 1.0)
    exponent = jnp.where(seen, weight, 1 - weight)
    return generator**exponent * clip ** (1 - exponent)


def eval_geometry(image_aspect: str, *sizes: int) -> EvalGeometry:
    """Of `sizes`; where an array is read whole, it has no more padding than FC-CLIP gives it."""
    geometry = EvalGeometry(*sizes)
    if image_aspect == "squash":
        return geometry
    return dataclasses.replace(geometry, array_multiple=geometry.divisor)


def stored_masks_of(batch: Mapping[str, Array]) -> PlacedMasks:
    """The proposals of a batch, in their places."""
    return PlacedMasks(*_arrays(batch, *_LABEL_KEYS), kind="stored")


_SIZES = ("proposal_grid", "image_size")
_PREPARE_KEYS = ("image", "proposals", "image_size", "padded_size")
_COVERS_KEYS = ("image", "proposals", *_SIZES)
_LABEL_KEYS = ("proposals", *_SIZES, "label_size")
_REGION_KEYS = ("label_map", "label_size", "image_size", "padded_size")


def _arrays(batch, *keys):
    return [batch[key] for key in keys]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _prepare(mesh, encoder, reader: MaskReader, size, images, masks, *sizes):
    grid = tuple(reader.mask_scale * side for side in encoder.grid(size))

    def prepare(image, masks, image_size, padded_size, mask_size, covered_size):
        pixels = encoder.normalise(image[None])[0]
        return (
            encoder_image(pixels, image_size, padded_size, size),
            patch_grid_masks(masks, mask_size, covered_size, padded_size, grid),
        )

    masks = cut(masks, reader.mask_threshold)
    return map_images(mesh, prepare, images, masks, *sizes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _with_regions(mesh, grid, view, arrays):
    pixels, masks = view

    def regions(classes, label_map, *sizes):
        return patch_grid_regions(label_map, classes, *sizes, grid)

    return pixels, jnp.concatenate([masks, map_images(mesh, regions, *arrays)], axis=1)


@jax.jit
def _mirror(images, masks):
    return images[:, :, ::-1], masks[..., ::-1]


@functools.partial(jax.jit, static_argnums=0)
def _encode(encoder, tower, pixels, masks):
    visual, modules = taken_apart(tower)
    return modules.reader.read(encoder, visual, modules.parameters, pixels, masks)


@functools.partial(jax.jit, static_argnums=0)
def _classify(encoder, modules, read, text):
    logits = modules.reader.logits(encoder, modules.parameters, read, text)
    return encoder.probabilities(logits)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _combine(weight, exponents, views, valid, generator):
    """Of proposals, and of the regions behind them."""
    means = sum(views) / len(views)
    probabilities, regions = means[:, : valid.shape[1]], means[:, valid.shape[1] :]
    if exponents is not None:
        logits, _, seen = generator
        probabilities = geometric_ensemble.probabilities(probabilities, logits, seen, exponents)
    elif generator is not None:
        probabilities = ensemble(probabilities, *generator, weight)
    return jnp.where(valid[..., None], probabilities, 0.0), regions


@functools.partial(jax.jit, static_argnums=0)
def _covers(mesh, images, *arrays):
    size = images.shape[1:3]
    return map_images(mesh, lambda *image_arrays: covers_pixels(*image_arrays, size), *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _label(mesh, out_size, *arrays):
    return map_images(mesh, functools.partial(label_pixels, out_size=out_size), *arrays)
