"""Labels with their objects, which records do not keep: read from the data set itself."""

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from input_pipeline.dataset_specs import SPECS
from input_pipeline.label_maps.interface import ObjectMasks
from input_pipeline.layouts import open_dataset
from input_pipeline.layouts.base import LayoutSource
from maft_jax.config import Config
from maft_jax.evaluators.average_precision import TrueInstance
from maft_jax.evaluators.data_sets import SPLIT, EvaluationSet, names_asked_for
from maft_jax.evaluators.panoptic_quality import LabelledSegments
from maft_jax.evaluators.true_segments import true_instances, true_segments
from maft_jax.inference.segment_rules import find_things


@dataclass(frozen=True)
class TrueLabels:
    """Of one data set, by the ids of its examples."""

    source: LayoutSource
    index_of: dict[str, int]
    things: frozenset[int]
    """Ids of the classes with countable objects."""
    masks: ObjectMasks | None
    """Those of objects one by one, where AP is asked for and the data set has them."""

    @classmethod
    def of(cls, config: Config, data: EvaluationSet) -> "TrueLabels":
        """Opens the data set that `data` is of.

        Raises:
            ValueError: as `open`, or it has other classes than the records.
        """
        labels = cls.open(config, data.name)
        if labels.source.class_names != data.source.class_names:
            root = getattr(config.evaluation.roots, data.name)
            raise ValueError(
                f"{root}: expected the classes of the records in {data.folder}; write them again"
            )
        return labels

    @classmethod
    def open(cls, config: Config, name: str) -> "TrueLabels":
        """Opens the data set of this name, and reads its first label.

        Raises:
            ValueError: it is not there, knows no objects, or not which classes have some.
        """
        root, task = getattr(config.evaluation.roots, name), config.evaluation.task
        if not root:
            raise ValueError(
                f"config.evaluation.roots.{name}: expected the data set beside its records, "
                f"for config.evaluation.task={task}: records do not keep objects"
            )
        settings = config.data
        source = open_dataset(
            name,
            root,
            SPLIT,
            images=settings.images,
            annotations=settings.annotations,
            classes=settings.classes,
            ignore_labels=settings.ignore_labels,
        )
        index_of = {example: index for index, example in enumerate(source.example_ids)}
        masks = source.object_masks() if task == "instance" else None
        labels = cls(source, index_of, _things(config, name, source), masks)
        for first in source.example_ids[:1]:
            if masks is None:
                labels.segments(first)
            else:
                labels.instances(first)
        return labels

    def digest(self, example_ids: Iterable[str]) -> str:
        """Of what files and settings say of the objects of these examples, none of which is read.

        Raises:
            ValueError: as `index`.
        """
        digest = hashlib.sha256()
        signature = self.source.label_signature
        if self.masks is not None:
            signature = self.masks.object_signature
        for example_id in example_ids:
            digest.update(signature(self.index(example_id)).encode() + b"\0")
        return digest.hexdigest()

    def segments(self, example_id: str) -> LabelledSegments:
        """All that is there, of which nothing overlaps.

        Raises:
            ValueError: there is no such example, or it comes without instances.
        """
        index = self.index(example_id)
        label_map, instances = self.source.labels(index)
        if instances is None:
            raise ValueError(
                f"{self.source.label_place(index)}: tells classes, but no objects: evaluate it "
                "with config.evaluation.task=semantic, or give a data set whose labels have "
                "instances (docs/panoptic.md)"
            )
        return true_segments(label_map, instances, self.things)

    def instances(self, example_id: str) -> list[TrueInstance]:
        """The things, with masks of their own where the data set has them.

        Raises:
            ValueError: as `segments`.
        """
        if self.masks is None:
            return true_instances(self.segments(example_id), self.things)
        return [
            TrueInstance(one.class_id, one.run_lengths, one.area, one.is_crowd)
            for one in self.masks.objects(self.index(example_id))
            if one.class_id in self.things
        ]

    @functools.cached_property
    def _ranks(self) -> dict[int | str, int]:
        ids = sorted(self.source.ids.images, key=lambda i: (isinstance(i, str), i))
        return {number: rank for rank, number in enumerate(ids)}

    def rank(self, example_id: str) -> int:
        """The place of an image among all by official ids, in whose order pycocotools goes."""
        return self._ranks[self.source.ids.images[self.index(example_id)]]

    def index(self, example_id: str) -> int:
        """The place of an example in the data set.

        Raises:
            ValueError: it is gone.
        """
        if example_id not in self.index_of:
            raise ValueError(
                f"{self.source.name}: expected the example {example_id!r} of the records, it is "
                "gone; write the records again"
            )
        return self.index_of[example_id]


def check_objects(config: Config) -> None:
    """Refuses data sets without objects, before hours may be spent on their proposals.

    Raises:
        ValueError: as `TrueLabels.open`.
    """
    for name in names_asked_for(config):
        TrueLabels.open(config, name)


def _things(config: Config, name: str, source: LayoutSource) -> frozenset[int]:
    if name in SPECS:
        things = SPECS[name].thing_ids
    elif config.evaluation.things:
        return find_things(config.evaluation.things, source.class_names)
    else:
        things = source.things
    if things is None:
        raise ValueError(
            f"config.evaluation.task={config.evaluation.task}: expected to know which classes of "
            f"{name} are things; say it in the class list (docs/class_lists.md), or name them by "
            "config.evaluation.things"
        )
    return frozenset(things)
