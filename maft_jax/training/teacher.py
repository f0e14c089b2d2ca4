"""Precomputed teacher probabilities: the frozen CLIP's, of every training image, computed once.

With config.data.augment=False an image is the same square in every epoch, so that the teacher of
the distillation loss always gives the same probabilities. They are computed as in a step.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32
from tqdm import tqdm

from input_pipeline.examples import PreparedSource
from input_pipeline.numpy_dataset import NumpyBatches
from input_pipeline.train_pipeline import make_unaugmented_dataset
from maft_jax.config import Config
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text_classifier import cached_class_embeddings, cleaning
from maft_jax.proposals.precompute_job import cache_dir, records_folder
from maft_jax.proposals.record_sets import synonyms
from maft_jax.resolved_config import ResolvedConfig, resolve
from maft_jax.runtime import sharding, stop_requests
from maft_jax.runtime.atomic_files import clear_leftovers
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.training.clip_objective import ClipObjective, teacher_probabilities
from maft_jax.training.step_setup import make_step_setup
from maft_jax.training.teacher_cache import TeacherCache
from maft_jax.training.training_data import open_records, train_geometry
from maft_jax.weights import open_weights

_VERSION = 1
"""Of what is computed: a change makes all former caches others."""

_SECONDS_BETWEEN_LOG_LINES = 30.0

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen CLIP and the examples that it is asked about."""

    config: ResolvedConfig
    clip: ClipConfig
    parameters: Mapping
    """The whole CLIP on the host."""
    source: PreparedSource
    """With the `description` of a RecordSource."""
    mesh: Mesh

    @functools.cached_property
    def objective(self) -> ClipObjective:
        """Of the step that would ask it."""
        return make_step_setup(self.config, self.clip.vision, self.mesh).objective

    @functools.cached_property
    def cache(self) -> TeacherCache:
        """Where the probabilities are kept, with the records."""
        config = self.config
        names, templates = self.source.class_names, config.data.templates
        several = {"synonyms": _digest(self._synonyms)} if self._synonyms else {}
        if config.loss.probabilities != "softmax":
            several["probabilities"] = config.loss.probabilities
        if config.masking.class_token:
            several["class_token"] = config.masking.class_token
        description = cleaning(names, templates) | {
            "version": _VERSION,
            "data": self.source.fingerprint,
            "num_images": len(self.source),
            "num_classes": len(self.source.class_names),
            "image_tower": fingerprint(self.parameters["visual"]),
            "text_tower": fingerprint(self.parameters["text"]),
            "architecture": repr(self.clip),
            "templates": _digest(templates),
            "temperature": config.loss.logit_scale,  # its name in version 0.1, whose caches stay
            "crop_size": config.data.crop_size,
            "image_size": config.model.image_size,
            "compute_dtype": np.dtype(self.objective.encoder.dtype).name,
            **several,
        }
        return TeacherCache(records_folder(config), description)

    def make_teacher_fn(self) -> Callable[[np.ndarray], jax.Array]:
        """From images [b, h, w, 3] uint8, spread over the mesh, to probabilities [b, c]."""
        visual, text = self.parameters["visual"], self._text()
        program = teacher_program(self.objective, visual, self.mesh)
        shardings = sharding.tree_shardings(visual, self.mesh, self.clip.vision.sharding_rules)
        replicated = sharding.replicated(self.mesh)
        visual, text = jax.device_put((visual, text), (shardings, replicated))
        return lambda images: program(visual, text, images)

    @property
    def _synonyms(self) -> Mapping[str, Sequence[str]]:
        return synonyms(self.config.data, self.source.description)

    def _text(self) -> Float32[np.ndarray, "c *names e"]:
        data = self.config.data
        return cached_class_embeddings(
            self.clip.text,
            self.parameters["text"],
            self.source.class_names,
            data.templates,
            cache_dir(data),
            self._synonyms,
        )


def teacher_program(
    objective: ClipObjective, visual: Mapping, mesh: Mesh
) -> Callable[[Mapping, Array, Array], Array]:
    """From parameters, class embeddings and images [b, h, w, 3] uint8 to probabilities [b, c].

    Jitted with its shardings; `visual` gives shapes alone.
    """

    def answer(visual, text, images):
        pixels = objective.encoder.prepare(images, objective.image_size)
        return teacher_probabilities(objective.encoder, visual, text, pixels)

    replicated = sharding.replicated(mesh)
    return jax.jit(
        answer,
        in_shardings=(
            sharding.tree_shardings(visual, mesh, objective.sharding_rules),
            replicated,
            sharding.batch_sharding(mesh),
        ),
        out_shardings=replicated,
    )


def open_teacher(config: Config) -> Teacher:
    """The teacher of config.model.pretrained for records that are complete.

    Raises:
        ValueError: weights or records are missing, or do not suit the configuration.
    """
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(config.batch_size, config.optimizer.accumulation_steps, mesh)
    weights = open_weights(config.model.pretrained, **config.model.stated, needs_text=True)
    config = resolve(config, weights.config, weights.masking, mesh)
    return Teacher(config, weights.config, weights.parameters(), open_records(config), mesh)


def teacher_fields(
    config: ResolvedConfig, clip: ClipConfig, parameters: dict, source: PreparedSource, mesh: Mesh
) -> dict[str, Float32[np.ndarray, "examples c"]]:
    """Fields of a Batch by name, a row for each example; none without config.loss.cached_teacher.

    Raises:
        ValueError: see cached_probabilities.
    """
    if not config.loss.cached_teacher:
        return {}
    teacher = Teacher(config, clip, parameters, source, mesh)
    return {"teacher_probabilities": cached_probabilities(teacher)}


def cached_probabilities(teacher: Teacher) -> Float32[np.ndarray, "examples c"]:
    """Teacher probabilities of all examples, computing those that are missing.

    Raises:
        ValueError: some are missing, and this process is one of several: each would compute all.
    """
    if jax.process_count() == 1:
        compute_missing(teacher)
    return teacher.cache.read()


def compute_missing(teacher: Teacher, process_index: int = 0, process_count: int = 1) -> None:
    """Computes what is missing of every process_count-th part, config.batch_size images at a time.

    Finished parts are kept, whatever ends this; what killed processes left is removed.

    Raises:
        Stopped: a signal came.
    """
    cache, batch_size = teacher.cache, teacher.config.batch_size
    parts = cache.missing_parts(range(process_index, cache.num_parts, process_count))
    if not parts:
        return
    logger.info("computing teacher probabilities for %s", cache.folder)
    clear_leftovers(cache.folder)
    batches_of = {part: _equal_batches(cache.examples_of(part), batch_size) for part in parts}
    dataset = make_unaugmented_dataset(
        teacher.source,
        np.concatenate(list(batches_of.values())).ravel(),
        batch_size=batch_size,
        geometry=train_geometry(teacher.config.data),
    )
    batches, teacher_fn = NumpyBatches(dataset), teacher.make_teacher_fn()
    with contextlib.closing(batches), _progress(cache, parts) as progress:
        for part in parts:
            computed = []
            for _ in batches_of[part]:
                stop_requests.check()
                computed.append(teacher_fn(next(batches)["image"]))
            examples = cache.examples_of(part)
            cache.write_part(part, np.concatenate(jax.device_get(computed))[: len(examples)])
            progress.update(len(examples))


def _equal_batches(examples: range, batch_size: int):
    """Filled up with repetitions, so that one program serves all."""
    count = -(-len(examples) // batch_size)
    return np.resize(np.array(examples), (count, batch_size))


def _progress(cache: TeacherCache, parts: list[int]) -> tqdm:
    return tqdm(
        total=sum(len(cache.examples_of(part)) for part in parts),
        desc="teacher",
        unit="image",
        mininterval=0.5 if sys.stderr.isatty() else _SECONDS_BETWEEN_LOG_LINES,
    )


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
