"""One image of an evaluation of segments: what is there, and what is written of it."""

import base64
import dataclasses
import functools
import io

import numpy as np
from PIL import Image

from input_pipeline.run_lengths import count_pixels, decode_segmentation
from maft_jax.evaluators.average_precision import TrueInstance
from maft_jax.evaluators.data_sets import EvaluationSet
from maft_jax.evaluators.panoptic_quality import LabelledSegments
from maft_jax.evaluators.result_files import FoundInImage
from maft_jax.evaluators.true_labels import TrueLabels
from maft_jax.inference.instances import box_of
from maft_jax.inference.interchange.coco import (
    encode_panoptic_png,
    instance_results,
    panoptic_annotation,
)
from maft_jax.inference.object_overlay import object_overlay
from maft_jax.inference.panoptic import segments_of_map
from maft_jax.inference.segment_masks import ObjectResult
from maft_jax.inference.segments import InstanceSegmentation, PanopticSegmentation, Segment

_LONG_SIDE = 640
_GAP = 4


@dataclasses.dataclass(frozen=True)
class EvaluatedImage:
    """The image of this number in `data`."""

    data: EvaluationSet
    labels: TrueLabels
    number: int
    size: tuple[int, int]
    """Height and width."""
    is_drawn: bool

    @property
    def example_id(self) -> str:
        return self.data.source.example_ids[self.number]

    @functools.cached_property
    def segments(self) -> LabelledSegments:
        """All that is there."""
        return self.labels.segments(self.example_id)

    @functools.cached_property
    def instances(self) -> list[TrueInstance]:
        """The things that are there."""
        return self.labels.instances(self.example_id)

    def found_segments(self, id_map: np.ndarray, segments: tuple[Segment, ...]) -> FoundInImage:
        """What is written of a panoptic result."""
        ids, png = self.labels.source.ids, f"{self.example_id}.png"
        annotation = panoptic_annotation(self._official_id, png, segments, ids.categories)
        drawn = None
        if self.is_drawn:
            true_map = self.segments.id_map.astype(np.int32)
            classes = self.segments.classes
            true = segments_of_map(true_map, classes, [1.0] * len(classes), *self._classes)
            drawn = self._drawn(self._panoptic(true_map, true), self._panoptic(id_map, segments))
        return self._found([annotation], encode_panoptic_png(id_map), drawn)

    def found_instances(
        self, instances: tuple[Segment, ...], run_lengths: tuple[dict, ...]
    ) -> FoundInImage:
        """What is written of instances."""
        ids = self.labels.source.ids
        rows = instance_results(self._official_id, instances, run_lengths, ids.categories)
        drawn = None
        if self.is_drawn:
            masks = [one.run_lengths for one in self.instances]
            true = [self._segment(i, one) for i, one in enumerate(self.instances, start=1)]
            drawn = self._drawn(self._objects(true, masks), self._objects(instances, run_lengths))
        return self._found(rows, None, drawn)

    @property
    def _official_id(self) -> int | str:
        return self.labels.source.ids.images[self.labels.index(self.example_id)]

    @property
    def _classes(self) -> tuple[tuple[str, ...], frozenset[int]]:
        return self.data.source.class_names, self.labels.things

    @functools.cached_property
    def _pixels(self) -> np.ndarray:
        return self.data.source[self.number].image

    def _panoptic(self, id_map, segments) -> PanopticSegmentation:
        return PanopticSegmentation(self._pixels, *self._classes, id_map, segments)

    def _objects(self, instances, run_lengths) -> InstanceSegmentation:
        names = self.data.source.class_names
        return InstanceSegmentation(self._pixels, names, tuple(instances), tuple(run_lengths))

    def _segment(self, number: int, one: TrueInstance) -> Segment:
        name, pixels = self.data.source.class_names[one.class_index], count_pixels(one.run_lengths)
        box = box_of(decode_segmentation(one.run_lengths, self.size)) if pixels else (0, 0, 0, 0)
        return Segment(number, one.class_index, name, True, 1.0, pixels, box)

    def _drawn(self, true: ObjectResult, found: ObjectResult) -> bytes:
        """What is there beside what is found, as PNG."""
        left, right = (
            object_overlay(one, legend=False, long_side=_LONG_SIDE) for one in (true, found)
        )
        gap = np.full((len(left), _GAP, 3), 255, np.uint8)
        content = io.BytesIO()
        Image.fromarray(np.concatenate([left, gap, right], axis=1)).save(content, "png")
        return content.getvalue()

    def _found(self, annotations: list, png: bytes | None, drawn: bytes | None) -> FoundInImage:
        height, width = self.size
        name = self.labels.source.image_name(self.labels.index(self.example_id))
        return FoundInImage(
            number=self.number,
            image={"id": self._official_id, "file_name": name, "width": width, "height": height},
            annotations=annotations,
            png=_in_base64(png),
            picture=_in_base64(drawn),
        )


def _in_base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()
