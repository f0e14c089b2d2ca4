"""Evaluates segments and objects of data sets, beside what `evaluation` does with label maps."""

import contextlib
import dataclasses
import io
import itertools
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from maft_jax.evaluators.average_precision import (
    InstanceTotal,
    PredictedInstance,
    match_instances,
)
from maft_jax.evaluators.data_sets import EvaluationSet
from maft_jax.evaluators.evaluated_image import EvaluatedImage
from maft_jax.evaluators.evaluation import Evaluation, provenance
from maft_jax.evaluators.panoptic_quality import (
    LabelledSegments,
    PanopticTotal,
    count_segments,
)
from maft_jax.evaluators.result_files import (
    FoundInImage,
    ResultFiles,
    decode_found,
    encode_found,
)
from maft_jax.evaluators.segment_results import (
    SegmentResult,
    instance_numbers,
    panoptic_numbers,
    read_segment_result,
    write_segment_result,
)
from maft_jax.evaluators.true_labels import TrueLabels
from maft_jax.evaluators.unfinished_counts import (
    UnfinishedCounts,
    from_first,
    key_of,
    state_bytes,
)
from maft_jax.inference.images_on_devices import place
from maft_jax.inference.instances import BestPairs, interiors_of_batch, rank_instances
from maft_jax.inference.interchange.coco import panoptic_categories
from maft_jax.inference.panoptic import OwnedPixels, merge_segments, own_batch
from maft_jax.inference.segment_rules import RULES
from maft_jax.inference.segmenter import stored_masks_of
from maft_jax.models.mask_reader import Tower
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.runtime import consensus, stop_requests
from maft_jax.runtime.atomic_files import clear_leftovers
from maft_jax.runtime.sharding import batch_sharding
from maft_jax.runtime.stop_signals import EvaluationInterrupted, StopSignals

VERSION = 1
"""Part of every key: raise it when the same input would give other counts."""

_TOTALS = {"panoptic": PanopticTotal, "instance": InstanceTotal}
_NUMBERS = {"panoptic": panoptic_numbers, "instance": instance_numbers}

logger = logging.getLogger(__name__)


class SegmentEvaluation:
    """PQ or AP of the data sets of an evaluation, as config.evaluation.task says.

    Raises:
        ValueError: a data set knows no objects, or not which classes have some.
    """

    def __init__(self, evaluation: Evaluation, config: ResolvedConfig):
        settings = config.evaluation
        self._evaluation = evaluation
        self._task, self._rules_name = settings.task, settings.segment_rules
        self._rules, self._writes = RULES[settings.segment_rules], settings.write_segments
        self._num_pictures = settings.num_pictures
        self._truth = {data.name: TrueLabels.of(config, data) for data in evaluation.data_sets}

    def evaluate(
        self,
        tower: Tower,
        origin: Mapping,
        folder: epath.Path,
        signals: StopSignals | None = None,
    ) -> list[SegmentResult]:
        """Counts all data sets and writes their results, as `Evaluation.evaluate` does.

        Raises:
            EvaluationInterrupted: a signal came; what was counted is kept in `folder`.
            ValueError: a record or a label map is corrupt.
        """
        sets = self._evaluation.data_sets
        if jax.process_index() == 0:
            clear_leftovers(folder)
        consensus.check_same({data.name: self._identity(data, origin) for data in sets})
        return [self._evaluate_set(data, tower, origin, folder, signals) for data in sets]

    def _evaluate_set(self, data, tower, origin, folder, signals) -> SegmentResult:
        key, names = key_of(self._identity(data, origin)), data.source.class_names
        of_batches = {"result": key, "batch_size": self._evaluation.batch_size}
        kept_key = key_of(of_batches | {"found": self._writes and self._num_pictures + 1})
        files = ResultFiles(folder, self._name(data), kept_key, self._task == "panoptic")
        finished = self._finished(data, key, folder, files)
        if finished is not None:
            logger.info("%s: evaluated before, with the same weights and protocol", data.name)
            return finished
        kind = _TOTALS[self._task]
        unfinished = UnfinishedCounts(folder, self._name(data), kept_key, len(names), kind)
        total = self._total(data, tower, unfinished, files, signals)
        things = self._truth[data.name].things
        numbers, rows = _NUMBERS[self._task](total, names, things, data.unseen_classes)
        result = SegmentResult(
            data.name,
            data.description["split"],
            self._task,
            len(data.source),
            numbers,
            rows,
            provenance(key, origin, self._depends_on(data), data.folder),
            self._write_found(data, files),
        )
        if jax.process_index() == 0:
            write_segment_result(result, folder)
            unfinished.remove()
            files.remove_kept()
        return result

    def _name(self, data: EvaluationSet) -> str:
        return f"{data.name}_{self._task}"

    def _finished(self, data, key, folder, files: ResultFiles) -> SegmentResult | None:
        """What the first process has of this evaluation."""
        found = None
        if jax.process_index() == 0:
            found = read_segment_result(folder / f"{self._name(data)}.json", key)
            written = (found and found.written) or {"sha256": "none"}
            if found and self._writes and written["sha256"] != files.digest():
                logger.info("%s is not there, or not whole; evaluating again", files.document)
                found = None
        content = json.dumps(found and dataclasses.asdict(found)).encode()
        first = json.loads(consensus.gather_bytes(content)[0])
        return first and SegmentResult(**first)

    def _begin(
        self, data, unfinished: UnfinishedCounts, files: ResultFiles
    ) -> tuple[int, PanopticTotal | InstanceTotal]:
        """Number of batches that are counted, and kept if they are written, and their counts."""
        num_done, total = 0, self._nothing(data)
        if jax.process_index() == 0:
            num_done, total = unfinished.load()
            if num_done and self._writes and not files.has_kept(num_done):
                logger.info("%s: what was found before is gone; starting anew", data.name)
                num_done, total = 0, self._nothing(data)
            if not num_done:
                files.remove_kept()
        return from_first(num_done, total, len(data.source.class_names))

    def _total(self, data, tower, unfinished, files, signals) -> PanopticTotal | InstanceTotal:
        """Counts all batches that are not counted yet; the same on every process."""
        num_done, total = self._begin(data, unfinished, files)
        fresh, found = self._nothing(data), []
        size, num_images = self._evaluation.batch_size, len(data.source)
        first, last_kept = num_done * size, num_done
        with (
            self._evaluation.batches_after(data, num_done) as (batches, progress),
            contextlib.ExitStack() as patience,
        ):
            computed = _ahead(self._compute(data, tower, batch) for batch in batches)
            for done, arrays in enumerate(computed, start=num_done + 1):
                with consensus.fail_together():
                    self._count(data, arrays, first, fresh, found)
                if done == num_done + 1:  # before it, there is nothing to save
                    patience.enter_context(stop_requests.saving())
                counted_images = min(done * size, num_images)
                progress.show(counted_images)
                stopped = None if signals is None else signals.agreed()
                is_last = counted_images == num_images
                if not is_last and stopped is None and not _is_due(unfinished):
                    continue
                total.merge(self._merged(fresh, data))
                if self._writes:
                    _keep(files, last_kept, done, found)
                if is_last:
                    break
                fresh, found, last_kept = self._nothing(data), [], done
                if jax.process_index() == 0:
                    unfinished.save(done, total)
                if stopped is not None:
                    raise EvaluationInterrupted(stopped, data.name, counted_images, num_images)
        return total

    def _compute(self, data: EvaluationSet, tower: Tower, batch: Mapping) -> tuple:
        """Arrays of a batch, rows of images first: numbers, sizes, and what is found."""
        evaluation = self._evaluation
        probabilities = evaluation.class_probabilities(data, tower, batch)
        size, num_classes = batch["label_map"].shape[1:3], len(data.source.class_names)
        of_batch = own_batch if self._task == "panoptic" else interiors_of_batch
        found = of_batch(
            probabilities,
            stored_masks_of(batch),
            num_classes,
            self._rules,
            size,
            mesh=evaluation.mesh,
        )
        return batch["example_index"], batch["label_size"], *jax.tree.leaves(found)

    def _count(
        self,
        data,
        arrays: tuple,
        first: int,
        fresh: PanopticTotal | InstanceTotal,
        found: list[FoundInImage],
    ) -> None:
        """Adds the images that this process has, and what is found in them if it is written."""
        for index, size, *of_image in _local_rows(arrays, self._evaluation.mesh):
            if index < 0:
                continue
            number = first + int(index)
            labels, is_drawn = self._truth[data.name], number < self._num_pictures
            image = EvaluatedImage(data, labels, number, tuple(size.tolist()), is_drawn)
            judge = self._panoptic if self._task == "panoptic" else self._instances
            counts, *objects = judge(image, of_image)
            fresh.add(counts)
            if self._writes and self._task == "panoptic":
                found.append(image.found_segments(*objects))
            elif self._writes:
                found.append(image.found_instances(*objects))

    def _panoptic(self, image: EvaluatedImage, of_image: list) -> tuple:
        """The counts of an image, the map of segments' ids, and the segments."""
        names, (rows, columns) = image.data.source.class_names, map(slice, image.size)
        classes, scores, owner, *counts = of_image
        owned = OwnedPixels(classes, scores, owner[rows, columns], *counts)
        id_map, segments = merge_segments(owned, names, image.labels.things, self._rules)
        found = LabelledSegments.of(id_map, segments)
        return count_segments(found, image.segments, len(names)), id_map, segments

    def _instances(self, image: EvaluatedImage, of_image: list) -> tuple:
        """The matches of an image, the instances, and their run lengths."""
        names, (rows, columns) = image.data.source.class_names, map(slice, image.size)
        proposals, classes, probabilities, bits, num_pixels, sums = of_image
        pairs = BestPairs(proposals, classes, probabilities)
        bits, sums = bits[rows, columns], sums.astype(np.float64)
        objects, masks = rank_instances(
            pairs, bits, num_pixels, sums, names, image.labels.things, self._rules
        )
        predicted = [
            PredictedInstance(one.class_index, one.score, mask)
            for one, mask in zip(objects, masks, strict=True)
        ]
        rank = image.labels.rank(image.example_id)
        return match_instances(rank, predicted, image.instances, len(names)), objects, masks

    def _write_found(self, data, files: ResultFiles) -> dict | None:
        """Name and digest of what the first process writes of all that was found."""
        digest = b""
        with consensus.fail_together():
            if jax.process_index() == 0 and self._writes:
                truth, names = self._truth[data.name], data.source.class_names
                of_classes = panoptic_categories(truth.source.ids.categories, names, truth.things)
                written = files.write({"categories": of_classes}, len(data.source))
                digest = (written or "").encode()
            elif jax.process_index() == 0 and files.document.exists():
                logger.info("removing %s, which is of another evaluation", files.document)
                files.remove()
        digest = consensus.gather_bytes(digest)[0].decode()
        return {"file": files.document.name, "sha256": digest} if self._writes else None

    def _nothing(self, data) -> PanopticTotal | InstanceTotal:
        return _TOTALS[self._task](len(data.source.class_names))

    def _merged(self, fresh: PanopticTotal | InstanceTotal, data) -> PanopticTotal | InstanceTotal:
        """What all processes counted."""
        total = self._nothing(data)
        for part in consensus.gather_bytes(state_bytes(fresh)):
            with np.load(io.BytesIO(part), allow_pickle=False) as state:
                total.merge(total.from_state(state, len(data.source.class_names)))
        return total

    def _identity(self, data: EvaluationSet, origin: Mapping) -> dict:
        """All that a result depends on; JSON values."""
        identity = self._evaluation.identity(data, origin)
        return {"segments": VERSION, **identity, **self._depends_on(data)}

    def _depends_on(self, data: EvaluationSet) -> dict:
        truth = self._truth[data.name]
        rules = {"name": self._rules_name, **dataclasses.asdict(self._rules)}
        return {
            **self._evaluation.depends_on(data),
            "segment_rules": rules,
            "things": sorted(truth.things),
            "objects": truth.digest(data.source.example_ids),
            "objects_have_own_masks": truth.masks is not None,
            "task": self._task,
        }


def _ahead(computed: Iterator) -> Iterator:
    """Each, once the devices have the next one to do; several processes, which talk to each other
    in between, do one after the other.
    """
    if jax.process_count() > 1:
        yield from computed
        return
    pending = deque(itertools.islice(computed, 1))
    while pending:
        arrays = pending.popleft()
        pending.extend(itertools.islice(computed, 1))
        yield arrays


def _is_due(unfinished: UnfinishedCounts) -> bool:
    """By the clock of the first process."""
    return bool(consensus.broadcast_from_first(unfinished.is_due))


def _keep(files: ResultFiles, first: int, done: int, found: list[FoundInImage]) -> None:
    """The first process keeps what all found in the batches from `first` on."""
    parts = consensus.gather_bytes(encode_found(found))
    with consensus.fail_together():
        if jax.process_index() == 0:
            files.keep(first, done, encode_found(decode_found(*parts)))


def _local_rows(arrays: tuple, mesh: Mesh) -> list[tuple]:
    """Rows of batches that this process has, each of which no other counts."""
    rows: dict[int, list] = {}
    for array in place(arrays, batch_sharding(mesh)):
        for shard in array.addressable_shards:
            if shard.replica_id:
                continue
            first = shard.index[0].start or 0
            for place_in_shard, row in enumerate(np.asarray(shard.data)):
                rows.setdefault(first + place_in_shard, []).append(row)
    return [tuple(rows[number]) for number in sorted(rows)]
