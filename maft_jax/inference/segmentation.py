"""Free-text segmentation of one image: `maft_jax.segment`, and ImageSegmenter for many images."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, ImageOps

from input_pipeline.eval_pipeline import make_eval_batch
from input_pipeline.examples import IGNORE, Example, PreparedExample
from input_pipeline.image_files import read_image, rgb_pixels
from maft_jax.config.fields import expand_path
from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.inference.clip import Clip
from maft_jax.inference.instances import find_instances
from maft_jax.inference.panoptic import segment_image
from maft_jax.inference.pixel_masks import pixel_masks
from maft_jax.inference.result import ClassRegion, Segmentation, class_regions
from maft_jax.inference.row_strips import row_strips
from maft_jax.inference.segment_rules import SegmentRules, find_rules, find_things
from maft_jax.inference.segmenter import (
    InferenceSpec,
    Segmenter,
    eval_geometry,
    stored_masks_of,
)
from maft_jax.inference.segments import InstanceSegmentation, PanopticSegmentation
from maft_jax.inference.vocabulary import check_apart, check_names, parse_names
from maft_jax.models.text_classifier import (
    cached_class_embeddings,
    check_distinct,
    embed_synonyms,
)
from maft_jax.proposals.external import check_aspect
from maft_jax.proposals.generator import MaskLogits, ProposalGenerator, Proposals
from maft_jax.proposals.kept_proposals import check_proposals, keep_best
from maft_jax.proposals.superpixels import SuperpixelProposals

__all__ = ["ClassRegion", "ImageSegmenter", "Segmentation", "class_regions", "segment"]

ImageLike = str | os.PathLike | Image.Image | np.ndarray
"""Of arrays, uint8 RGB [h, w, 3]; `load_image` refuses others."""

_GIVEN_MASKS_MULTIPLE = 16
"""Masks that the caller gives are padded to this, so that few programs are compiled."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedImage(PreparedExample):
    """An image with its proposals, as `ImageSegmenter.prepare` makes it."""

    mask_logits: MaskLogits | None = None
    """Of a network's proposals: the masks that are segmented with are then not the stored ones, but
    floats at every pixel."""


def segment(
    clip: Clip,
    image: ImageLike,
    classes: str | Sequence[str],
    proposals: ProposalGenerator | np.ndarray | jax.Array | None = None,
    *,
    background: str | Sequence[str] = (),
    synonyms: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] = PROMPT_TEMPLATES,
    num_proposals: int = 100,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Segmentation:
    """Names every pixel of an image with one of `classes`.

    Args:
        image: a path, a PIL image (both turned upright as their EXIF says), or uint8 RGB.
        classes: names, or one text with commas between them ("quotes" keep a comma in a name).
        proposals: masks of this image [n, h', w'] that cover all of it (bool, uint8 with 255 =
            inside, or floats in [0, 1]); or what makes them; by default superpixels.
        background: names for what is none of the classes; where one wins, pixels stay unlabelled.
        synonyms: further names of some classes, which score the maximum over all of theirs.
        templates: prompts in which {} stands for the name.
        num_proposals: the most that a generator makes.
        scales, flip: test-time augmentation: sizes, times clip.image_size, at which CLIP reads
            the image, and whether also mirrored.

    Raises:
        ValueError: names that are empty, double or too long for CLIP's context; weights without a
            text tower; an image that cannot be read; masks of another image's ratio of sides.
    """
    segmenter = ImageSegmenter(
        clip,
        classes,
        background=background,
        synonyms=synonyms,
        templates=templates,
        num_proposals=num_proposals,
        scales=scales,
        flip=flip,
    )
    return segmenter(image, proposals)


class ImageSegmenter:
    """`segment` for many images with one vocabulary: the text is embedded once.

    Args: as of `segment`, and

        generator: makes the proposals of images that come without; by default superpixels.
        cache_dir: folder in which the text embeddings are kept between runs; None keeps none.
    """

    def __init__(
        self,
        clip: Clip,
        classes: str | Sequence[str],
        *,
        background: str | Sequence[str] = (),
        synonyms: Mapping[str, Sequence[str]] | None = None,
        templates: Sequence[str] = PROMPT_TEMPLATES,
        generator: ProposalGenerator | None = None,
        num_proposals: int = 100,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        cache_dir: str | os.PathLike | None = None,
    ):
        if num_proposals < 1:
            raise ValueError(f"num_proposals: expected at least 1, got {num_proposals}")
        self.class_names = _names(classes, "classes")
        self.background = _names(background, "background") if background else ()
        self.synonyms = synonyms or {}
        check_apart(self.class_names, self.background, self.synonyms)
        if strangers := self.synonyms.keys() - set(self.class_names):
            raise ValueError(
                f"synonyms: expected names of classes, {sorted(strangers)[0]!r} is none of "
                f"{len(self.class_names)}; add it to the classes, or leave its synonyms out"
            )
        if len(self.class_names) + len(self.background) == 1:
            logger.warning(
                "one class and nothing else to choose from: every pixel becomes %r with score 1; "
                "give background names, such as wall, floor, sky",
                self.class_names[0],
            )
        self.generator = generator or SuperpixelProposals()
        self.num_proposals = num_proposals
        self._geometry = eval_geometry(clip.image_aspect)
        self._text = jnp.asarray(self._embedded(clip, templates, cache_dir))
        self._tower = jax.device_put(clip.tower)
        size = (clip.image_size, clip.image_size)
        short_side = self._geometry.short_side if clip.image_aspect == "keep" else None
        spec = InferenceSpec(clip.encoder, size, short_side, tuple(scales), flip)
        self._segmenter = Segmenter(spec)

    def __call__(
        self,
        image: ImageLike,
        proposals: ProposalGenerator | np.ndarray | jax.Array | None = None,
        example_id: str | None = None,
    ) -> Segmentation:
        """Segments one image; `example_id` is by what generator=external finds its masks."""
        return self.segment_prepared(self.prepare(image, proposals, example_id))

    def prepare(
        self,
        image: ImageLike,
        proposals: ProposalGenerator | np.ndarray | jax.Array | None = None,
        example_id: str | None = None,
    ) -> PreparedImage:
        """The image with its proposals; they depend on the classes if the generator reads names.

        By default the id is that of `proposals.external`: the file's name without its ending.
        """
        pixels = load_image(image)
        if example_id is None:
            example_id = Path(image).stem if isinstance(image, str | os.PathLike) else "image"
        unlabelled = np.broadcast_to(np.int32(IGNORE), pixels.shape[:2])
        example = Example(example_id, pixels, unlabelled)
        if proposals is not None and not callable(proposals):
            made = _given(np.asarray(proposals), example)
            most = len(made.masks)
        else:
            generator, most = proposals or self.generator, self.num_proposals
            made = generator(example, most)
            check_proposals(made, f"{generator.name} proposals of {example_id!r}")
        kept = keep_best(made, pixels.shape[:2], most)
        masks, scores, logits = kept.masks, kept.scores, kept.mask_logits
        return PreparedImage(example_id, pixels, unlabelled, masks, scores, mask_logits=logits)

    def segment_prepared(self, example: PreparedImage) -> Segmentation:
        """Segments what `prepare` returned, of this segmenter or of one with other classes."""
        batch = self._batch(example)
        on_device, probabilities = self._classified(example, batch)
        labels, score = self._label(probabilities, on_device, example.image.shape[:2])
        count, (grid_height, grid_width) = len(example.proposals), batch["proposal_grid"][0]
        return Segmentation(
            image=example.image,
            class_names=self.class_names,
            label_map=labels,
            score=score,
            proposals=batch["proposals"][0, :count, :grid_height, :grid_width],
            proposal_probabilities=np.asarray(probabilities)[0, :count, : len(self.class_names)],
            background=self.background,
        )

    def panoptic(
        self,
        image: ImageLike | PreparedImage,
        proposals: ProposalGenerator | np.ndarray | jax.Array | None = None,
        example_id: str | None = None,
        *,
        things: Iterable[str | int] | None = None,
        rules: str | SegmentRules = "maft_plus",
    ) -> PanopticSegmentation:
        """Gives every pixel of an image to one object, to one class without objects, or to none.

        Args:
            image, proposals, example_id: as of a call; or what `prepare` returned, alone.
            things: names or indices of the classes with countable objects; None: all.
            rules: thresholds, or a name of `segment_rules.RULES`.
        """
        return self._segments(segment_image, image, proposals, example_id, things, rules)

    def instances(
        self,
        image: ImageLike | PreparedImage,
        proposals: ProposalGenerator | np.ndarray | jax.Array | None = None,
        example_id: str | None = None,
        *,
        things: Iterable[str | int] | None = None,
        rules: str | SegmentRules = "maft_plus",
    ) -> InstanceSegmentation:
        """The objects of an image, which may overlap; arguments as of `panoptic`."""
        return self._segments(find_instances, image, proposals, example_id, things, rules)

    def _segments(self, make, image, proposals, example_id, things, rules):
        rules, things = find_rules(rules), find_things(things, self.class_names)
        if not isinstance(image, PreparedImage):
            image = self.prepare(image, proposals, example_id)
        elif proposals is not None:
            raise ValueError(
                "proposals: expected none with what `prepare` returned, which has its own; give "
                "them to `prepare`"
            )
        on_device, probabilities = self._classified(image, self._batch(image))
        masks = stored_masks_of(on_device)
        return make(image.image, probabilities, masks, self.class_names, things, rules)

    def _batch(self, example: PreparedImage) -> dict[str, np.ndarray]:
        """Of this image alone, without its labels."""
        count, most = len(example.proposals), self.num_proposals
        if count > most:
            most = -(-count // _GIVEN_MASKS_MULTIPLE) * _GIVEN_MASKS_MULTIPLE
        batch = make_eval_batch(example, most, self._geometry)
        del batch["label_map"]
        return batch

    def _classified(
        self, example: PreparedImage, batch: dict[str, np.ndarray]
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The batch on the device, with a network's masks, and their class probabilities."""
        of_pixels = {}
        if example.mask_logits is not None:
            of_pixels = pixel_masks(example.mask_logits, batch)
        on_device = jax.device_put(batch | of_pixels)
        return on_device, self._segmenter.class_probabilities(self._tower, self._text, on_device)

    def _label(
        self, probabilities: jax.Array, batch: dict, size: tuple[int, int]
    ) -> tuple[Int32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        """The label map and the score of a Segmentation, strip by strip."""
        labels, score = np.empty(size, np.int32), np.empty(size, np.float32)
        for strip, array_size in row_strips(size):
            pixels = self._segmenter.label_rows(probabilities, batch, strip.start, array_size)
            found, best, total = (
                np.asarray(array)[0, : strip.stop - strip.start, : size[1]]
                for array in (pixels.label_map, pixels.score, pixels.total)
            )
            covered = total > 0
            labelled = covered & (found < len(self.class_names))
            labels[strip] = np.where(labelled, found, IGNORE)
            share = np.divide(best, total, out=np.zeros_like(best), where=covered)
            score[strip] = np.minimum(share, 1)
        return labels, score

    def _embedded(self, clip: Clip, templates: Sequence[str], cache_dir) -> np.ndarray:
        names = [*self.class_names, *self.background]
        if clip.config.text is None:
            return clip.encode_text(names, templates)  # which says that there is no text tower
        text, parameters = clip.config.text, clip.parameters["text"]
        if cache_dir is None and not self.synonyms:
            check_distinct(names, "classes", text.tokenize)
            return clip.encode_text(names, templates)
        if cache_dir is None:
            return embed_synonyms(
                lambda every: clip.encode_text(every, templates),
                names,
                self.synonyms,
                text.tokenize,
            )
        return cached_class_embeddings(text, parameters, names, templates, cache_dir, self.synonyms)


def load_image(image: ImageLike) -> UInt8[np.ndarray, "h w 3"]:
    """Upright 8-bit RGB of what `segment` takes.

    Raises:
        ValueError: it cannot be read, or is another kind of array.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(expand_path(os.fspath(image)))
    if isinstance(image, Image.Image):
        return rgb_pixels(ImageOps.exif_transpose(image))
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"image: expected uint8 [height, width, 3], got {image.dtype} {list(image.shape)}; "
            "PIL's Image.fromarray takes other kinds"
        )
    return image


def _names(names: str | Sequence[str], what: str) -> tuple[str, ...]:
    return parse_names(names, what) if isinstance(names, str) else check_names(names, what)


def _given(masks: np.ndarray, example: Example) -> Proposals:
    """Masks that the caller made, in the caller's order."""
    if masks.ndim != 3 or masks.dtype not in (np.bool_, np.uint8, np.float32):
        raise ValueError(
            "proposals: expected masks [n, h, w] of bool, uint8 or float32, got "
            f"{masks.dtype} {list(masks.shape)}"
        )
    made = Proposals(masks, 1 / np.arange(1, len(masks) + 1, dtype=np.float32))
    check_proposals(made, "proposals")
    if not len(masks):
        return made
    check_aspect(masks.shape[1:], example, "proposals")
    if masks.dtype == np.uint8 and masks.max() == 1:
        raise ValueError(
            "proposals: uint8 values of 0 and 1 only, but 255 means inside; pass masks.astype(bool)"
        )
    return made
