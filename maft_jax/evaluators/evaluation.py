"""Evaluates image towers on data sets: set up once, then called for any number of weights."""

import contextlib
import datetime
import functools
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from input_pipeline.device_batches import GlobalBatches
from input_pipeline.eval_pipeline import make_eval_dataset
from input_pipeline.example_range import ExampleRange
from input_pipeline.examples import IGNORE
from input_pipeline.numpy_dataset import NumpyBatches
from maft_jax.evaluators.confusion import confusion_matrix
from maft_jax.evaluators.data_sets import EvaluationSet, find_evaluation_data
from maft_jax.evaluators.evaluation_counts import EvaluationCounts
from maft_jax.evaluators.mask_accuracy import classes_shown, count_masks
from maft_jax.evaluators.protocol import EvaluationProtocol, sha256_of_text
from maft_jax.evaluators.results import EvaluationResult, read_result, write_results
from maft_jax.evaluators.unfinished_counts import (
    ProgressLines,
    UnfinishedCounts,
    from_first,
    key_of,
)
from maft_jax.inference.geometric_ensemble import read_trained_classes
from maft_jax.inference.segmenter import Segmenter
from maft_jax.models.clip import ClipConfig, untold_architecture
from maft_jax.models.encoder import ImageEncoder
from maft_jax.models.encoder_setup import make_encoder
from maft_jax.models.mask_reader import Tower
from maft_jax.models.text_classifier import (
    cached_class_embeddings,
    cleaning,
    text_tower_identity,
)
from maft_jax.proposals.precompute_job import cache_dir
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.runtime import consensus, sharding, stop_requests
from maft_jax.runtime.atomic_files import clear_leftovers
from maft_jax.runtime.mesh_axes import num_batch_shards
from maft_jax.runtime.stop_signals import EvaluationInterrupted, StopSignals
from maft_jax.runtime.versions import versions

VERSION = 1
"""Part of every key: raise it when the same input would give other counts."""

_RUN_AHEAD = 2

logger = logging.getLogger(__name__)


class Evaluation:
    """The data sets of config.evaluation, and all that does not depend on the image tower.

    Raises:
        ValueError: data, class names or settings cannot work; before anything is evaluated.
    """

    def __init__(self, config: ResolvedConfig, clip: ClipConfig, text_tower: Mapping, mesh: Mesh):
        self.protocol = EvaluationProtocol.of(config)
        self.mesh = mesh
        trained = config.evaluation.trained_classes
        self._trained = read_trained_classes(trained) if trained else None
        self.batch_size = config.evaluation.images_per_device * num_batch_shards(mesh)
        self._segmenter = make_segmenter(config, clip, mesh)
        self._text_tower = text_tower_identity(clip.text, text_tower)
        self._architecture = untold_architecture(clip)
        found = find_evaluation_data(config)
        embed = functools.partial(cached_class_embeddings, clip.text, text_tower)
        cache = cache_dir(config.data)
        # All names before any proposals: hours lie between them.
        templates = self.protocol.templates
        texts = [embed(data.class_names, templates, cache, data.synonyms) for data in found]
        self._host_texts = dict(zip((data.name for data in found), texts, strict=True))
        self._texts: dict[str, jax.Array] = {}
        self.data_sets: tuple[EvaluationSet, ...] = tuple(data.open() for data in found)
        self._check_ensemble()
        self._count = jax.jit(_count, static_argnums=5, out_shardings=sharding.replicated(mesh))
        self._classes_shown = jax.jit(
            classes_shown, static_argnums=(1, 2), out_shardings=sharding.batch_sharding(mesh)
        )

    def evaluate(
        self,
        tower: Tower,
        origin: Mapping,
        folder: epath.Path,
        signals: StopSignals | None = None,
    ) -> list[EvaluationResult]:
        """Counts all data sets, writes their results to `folder` and returns them.

        What was evaluated before stays as it is, if everything that matters is the same. Every
        process must call this; the first one writes.

        Args:
            tower: parameters of the image tower, with modules if masks are read with them.
            origin: of the weights, for the record; "image_tower" and "modules" say which they are.
            signals: asked after every batch.

        Raises:
            EvaluationInterrupted: a signal came; what was counted is kept in `folder`.
            ValueError: a record is corrupt.
        """
        results = []
        if jax.process_index() == 0:
            clear_leftovers(folder)
        consensus.check_same({data.name: self.identity(data, origin) for data in self.data_sets})
        for data in self.data_sets:
            results.append(self._evaluate_set(data, tower, origin, folder, signals))
            if jax.process_index() == 0:
                write_results(results, folder)
                self._unfinished(data, origin, folder).remove()
        return results

    def label_maps(
        self, data: EvaluationSet, tower: Tower, num_images: int
    ) -> list[Int32[np.ndarray, "_ _"]]:
        """Predictions for the first images, at their own sizes, on every process."""
        first = ExampleRange(data.source, 0, min(num_images, len(data.source)))
        maps: list[np.ndarray] = []
        order = np.argsort(sharding.positions_of_rows(self.mesh, self.batch_size))
        with self.batches(data, first) as batches:
            for batch in batches:
                predicted, *_ = self._predict(data, tower, batch)
                maps += list(np.asarray(consensus.to_host(predicted))[order])
        sizes = first.image_sizes.tolist()
        return [maps[i][:height, :width] for i, (height, width) in enumerate(sizes)]

    def _evaluate_set(self, data, tower, origin, folder, signals) -> EvaluationResult:
        key, unfinished = self._key(data, origin), self._unfinished(data, origin, folder)
        num_batches, counts = 0, EvaluationCounts(len(data.source.class_names))
        finished = _finished_result(folder / f"{data.name}.json", key)
        if consensus.broadcast_from_first(finished is not None):
            logger.info("%s: evaluated before, with the same weights and protocol", data.name)
            found = _broadcast_result(finished, counts)
            return finished or self._result(data, key, origin, *found)
        if jax.process_index() == 0:
            num_batches, counts = unfinished.load()
        num_batches, counts = from_first(num_batches, counts, counts.num_classes)
        counts = self._counts(data, tower, num_batches, counts, unfinished, signals)
        return self._result(data, key, origin, counts.confusion, counts.masks)

    def _result(self, data, key: str, origin, confusion, masks) -> EvaluationResult:
        return EvaluationResult(
            data.name,
            data.description["split"],
            tuple(data.source.class_names),
            data.unseen_classes,
            len(data.source),
            confusion,
            provenance(key, origin, self.depends_on(data), data.folder),
            masks,
        )

    def _counts(
        self,
        data: EvaluationSet,
        tower: Tower,
        num_batches: int,
        counts: EvaluationCounts,
        unfinished: UnfinishedCounts,
        signals: StopSignals | None,
    ) -> EvaluationCounts:
        """Adds all batches from number `num_batches` on to the counts."""
        num_images = len(data.source)
        with (
            self.batches_after(data, num_batches) as (batches, progress),
            contextlib.ExitStack() as patience,
        ):
            computed = _fetched_later(self._count_batch(data, tower, batch) for batch in batches)
            for done, counted in enumerate(computed, start=num_batches + 1):
                if done == num_batches + 1:  # before it, there is nothing to save
                    patience.enter_context(stop_requests.saving())
                counts.add(*counted)
                num_done = min(done * self.batch_size, num_images)
                progress.show(num_done)
                stopped = None if signals is None else signals.agreed()
                if jax.process_index() == 0 and num_done < num_images:
                    save = unfinished.save if stopped is not None else unfinished.save_now_and_then
                    save(done, counts)
                if stopped is not None and num_done < num_images:
                    raise EvaluationInterrupted(stopped, data.name, num_done, num_images)
        return counts

    def _count_batch(self, data, tower, batch) -> tuple[Array, int, Array]:
        predicted, *regions = self._predict(data, tower, batch)
        labels, valid = batch["label_map"], batch["example_valid"]
        num_classes = len(data.source.class_names)
        pixels, masks = self._count(predicted, labels, *regions, valid, num_classes)
        return pixels, labels.size, masks

    def class_probabilities(
        self, data: EvaluationSet, tower: Tower, batch: Mapping[str, Array]
    ) -> Float[Array, "b n c"]:
        """Of the proposals of one of `batches`; zeros for those that do not count."""
        return self._segmenter.class_probabilities(tower, self._text(data), batch, self._seen(data))

    def _seen(self, data: EvaluationSet) -> Bool[Array, " c"]:
        """On the mesh: which classes count as those of the generator's training."""
        return sharding.place_whole(data.seen(self._trained), self.mesh)

    def _text(self, data: EvaluationSet) -> Float[Array, "c *names e"]:
        """Class embeddings on the mesh, which are those of the first process."""
        if data.name not in self._texts:
            text = consensus.broadcast_from_first(self._host_texts[data.name])
            self._texts[data.name] = sharding.place_whole(text, self.mesh)
        return self._texts[data.name]

    def _predict(
        self, data, tower, batch
    ) -> tuple[Int32[Array, "b h w"], Float[Array, "b r c"], Int32[Array, "b r"]]:
        """Label maps; of ground-truth masks the class probabilities and the classes."""
        num_classes, most = len(data.source.class_names), data.source.max_classes_per_image
        classes = self._classes_shown(batch["label_map"], num_classes, most)
        probabilities, of_masks = self._segmenter.proposals_and_regions(
            tower, self._text(data), batch, classes, self._seen(data)
        )
        return self._segmenter.label_maps(probabilities, batch).label_map, of_masks, classes

    @contextlib.contextmanager
    def batches_after(
        self, data: EvaluationSet, num_batches: int
    ) -> Iterator[tuple[GlobalBatches, ProgressLines]]:
        """All that follow so many batches, and what says how far it is."""
        num_images = len(data.source)
        first = min(num_batches * self.batch_size, num_images)
        if first:
            logger.info("%s: going on after %d of %d images", data.name, first, num_images)
        progress = ProgressLines(data.name, num_images, first)
        with self.batches(data, ExampleRange(data.source, first, num_images)) as batches:
            yield batches, progress

    @contextlib.contextmanager
    def batches(self, data: EvaluationSet, source: ExampleRange) -> Iterator[GlobalBatches]:
        """Batches of a part of a data set on the devices, closed in the end."""
        ensemble = self._segmenter.spec.ensemble is not None
        share = sharding.share_of_process(self.mesh, jax.process_index(), self.batch_size)
        dataset = make_eval_dataset(
            source,
            global_batch_size=self.batch_size,
            geometry=self.protocol.geometry,
            process_index=share[0],
            process_count=share[1],
            num_generator_classes=data.num_generator_classes if ensemble else 0,
        )
        batches = GlobalBatches(NumpyBatches(dataset), sharding.batch_sharding(self.mesh))
        try:
            yield batches
        finally:
            batches.close()

    def _unfinished(self, data, origin, folder) -> UnfinishedCounts:
        counted = {"batch_size": self.batch_size, "masks": True}  # which version 0.1 did not count
        key = key_of({"result": self._key(data, origin), **counted})
        return UnfinishedCounts(folder, data.name, key, len(data.source.class_names))

    def _key(self, data: EvaluationSet, origin: Mapping) -> str:
        return key_of(self.identity(data, origin))

    def identity(self, data: EvaluationSet, origin: Mapping) -> dict:
        """All that a result depends on; JSON values."""
        of_tower = {name: origin[name] for name in ("image_tower", "modules") if name in origin}
        weights = of_tower | {"text_tower": self._text_tower}
        texts = cleaning(data.source.class_names, self.protocol.templates)
        weights |= self._architecture
        return {"version": VERSION, "weights": weights, **texts, **self.depends_on(data)}

    @property
    def encoder(self) -> ImageEncoder:
        """The image tower as it is run."""
        return self._segmenter.spec.encoder

    def depends_on(self, data: EvaluationSet) -> dict:
        """Beside the weights; what two evaluations must share to be compared."""
        names = data.source.class_names
        trained = self._trained and [names[i] for i in np.flatnonzero(data.seen(self._trained))]
        return {
            "images": {"num_images": len(data.source), "split": data.description["split"]},
            "proposals": data.description["recipe"] | {"records": data.digest},
            "classes": {
                "names_sha256": sha256_of_text("".join(f"{name}\n" for name in names)),
                "unseen": [names[i] for i in data.unseen_classes],
                **({"synonyms": dict(data.synonyms)} if data.synonyms else {}),
                **({} if trained is None else {"trained": trained}),
            },
            "protocol": self.protocol.describe(self.encoder),
        }

    def _check_ensemble(self) -> None:
        if (asked := self._segmenter.spec.ensemble) is None:
            return
        for data in self.data_sets:
            num_classes = len(data.source.class_names)
            widths = self._segmenter.spec.class_logit_widths(num_classes)
            if data.num_generator_classes not in widths:
                raise ValueError(
                    f"config.evaluation.{asked}: expected proposals of {data.name} with "
                    f"class logits over its {num_classes} classes ({' or '.join(map(str, widths))} "
                    f'with "no object"), those in {data.folder} have '
                    f"{data.num_generator_classes or 'none'}; use a generator that classifies, or "
                    "leave the ensemble out"
                )


def provenance(key: str, origin: Mapping, depends_on: Mapping, records: epath.Path) -> dict:
    """Where a result comes from, for its file."""
    return {
        "key": key,
        "weights": dict(origin),
        **depends_on,
        "records": str(records),
        "versions": versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def make_segmenter(config: ResolvedConfig, clip: ClipConfig, mesh: Mesh) -> Segmenter:
    """The program that labels images as the configuration says, on the devices of a mesh."""
    protocol = EvaluationProtocol.of(config)
    encoder = make_encoder(config.model, clip.vision, mesh, protocol.logit_scale)
    return Segmenter(protocol.inference_spec(encoder), mesh)


def _count(
    predicted: Int32[Array, "b h w"],
    labels: Int32[Array, "b h w"],
    of_masks: Float[Array, "b r c"],
    classes: Int32[Array, "b r"],
    valid: Bool[Array, " b"],
    num_classes: int,
) -> tuple[Int32[Array, "c1 c1"], Int32[Array, "c 2"]]:
    """Rows that only fill the batch have neither labels nor predictions."""
    predicted = jnp.where(valid[:, None, None], predicted, IGNORE)
    pixels = confusion_matrix(predicted, labels, num_classes)
    return pixels, count_masks(of_masks, classes, valid)


def _fetched_later(computed: Iterator[tuple[Array, int, Array]]) -> Iterator[tuple]:
    """Brings results to the host while the devices compute the next ones."""
    pending: deque = deque(itertools.islice(computed, _RUN_AHEAD))
    while pending:
        matrix, num_pixels, masks = pending.popleft()
        pending.extend(itertools.islice(computed, 1))
        yield np.asarray(matrix), num_pixels, np.asarray(masks)


def _finished_result(path: epath.Path, key: str) -> EvaluationResult | None:
    if jax.process_index() != 0 or not path.exists():
        return None
    try:
        result = read_result(path)
    except ValueError as error:
        logger.warning("%s; evaluating again", error)
        return None
    if result.provenance.get("key") != key:
        logger.info("%s is of another evaluation, and will be replaced", path)
        return None
    return result


def _broadcast_result(finished: EvaluationResult | None, counts: EvaluationCounts):
    """Pixels and masks of the first process's finished result; of the same shapes as `counts`."""
    confusion, masks = counts.confusion, counts.masks
    if finished is not None:
        confusion = finished.confusion
        masks = np.full_like(masks, -1) if finished.mask_counts is None else finished.mask_counts
    confusion, masks = map(consensus.broadcast_from_first, (confusion, masks))
    return confusion, None if (masks < 0).any() else masks
