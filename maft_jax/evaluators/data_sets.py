"""From the configuration to the data sets that are evaluated, computing proposals if need be."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from etils import epath
from jaxtyping import Bool

from input_pipeline.example_range import ExampleRange, FirstExamples
from input_pipeline.examples import PreparedSource
from input_pipeline.records.label_counts import list_names
from input_pipeline.records.record_shards import DATASET_FILE, read_dataset_file
from input_pipeline.records.record_source import RecordSource
from maft_jax.config import Config
from maft_jax.config.evaluation_section import EvaluationRoots
from maft_jax.evaluators.zero_shot import unseen_mask
from maft_jax.inference.geometric_ensemble import seen_by_name
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config, records_folder
from maft_jax.proposals.precompute_shards import PrecomputeJob
from maft_jax.proposals.record_sets import synonyms, unseen_classes

SPLIT = "val"
DATA_SETS = tuple(field.name for field in dataclasses.fields(EvaluationRoots))
"""In the order of papers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet:
    """A data set with its proposals, ready to be evaluated."""

    name: str
    source: PreparedSource
    description: Mapping
    """Content of the records' dataset.json."""
    unseen_classes: tuple[int, ...]
    """Ids of the classes that are reported apart; empty = there is no zero-shot split."""
    num_generator_classes: int
    """Width of the proposals' class logits; 0 = the generator gave none."""
    digest: str
    """Of the content of the images, labels and proposals that are evaluated."""
    folder: epath.Path
    """Of the records."""
    synonyms: Mapping[str, Sequence[str]]
    """Further names of the classes that have some, by name."""

    def seen(self, trained: Sequence[Sequence[str]] | None) -> Bool[np.ndarray, " c"]:
        """Which classes an ensemble takes for those of the generator's training.

        Those that share a name with one of its classes, whose names `trained` are; None where the
        zero-shot split says it.
        """
        names = self.source.class_names
        if trained is None:
            return ~unseen_mask(self.unseen_classes, len(names))
        return seen_by_name([(name, *self.synonyms.get(name, ())) for name in names], trained)


@dataclass(frozen=True)
class FoundSet:
    """A data set whose files were looked for, and whose proposals may still have to be computed."""

    name: str
    class_names: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    folder: epath.Path
    """Of the records."""
    job: PrecomputeJob | None
    """What computes them; None = they must be there."""
    max_images: int
    """0 = all."""
    synonyms: Mapping[str, Sequence[str]]
    """Further names of the classes that have some, by name."""

    def open(self) -> EvaluationSet:
        """Computes the records that are missing, and opens them.

        Raises:
            ValueError: records are missing, corrupt or of another class list.
        """
        if self.job is not None:
            precompute(self.job)
        source = RecordSource(self.folder, drop_empty=False)
        if source.class_names != self.class_names:
            raise ValueError(
                f"{self.folder}: the records are of other classes than {self.name} has now; "
                "write them again"
            )
        absent = source.label_counts.absent
        if len(self.class_names) - len(absent) < 2:
            logger.warning(
                "%s: the labels in %s show fewer than two classes, no pixel shows %s; see whether "
                "label values and class list agree",
                self.name,
                self.folder,
                list_names(absent) or "another",
            )
        logits = source.record(0).class_logits
        count = min(self.max_images or len(source), len(source))
        logger.info(
            "%s: %d images, %d classes in %s", self.name, count, len(self.class_names), self.folder
        )
        return EvaluationSet(
            self.name,
            ExampleRange(source, 0, count) if count < len(source) else source,
            source.description,
            tuple(map(self.class_names.index, self.unseen_classes)),
            0 if logits is None else logits.shape[1],
            source.digest_of_first(count),
            self.folder,
            self.synonyms,
        )


def check_roots(config: Config) -> None:
    """Refuses folders that do not exist, before weights are read.

    Raises:
        ValueError: names the setting.
    """
    for name, root in dataclasses.asdict(config.evaluation.roots).items():
        if root and not epath.Path(root).exists():
            raise ValueError(
                f"config.evaluation.roots.{name}={root}: there is no such folder; expected the "
                "data set, extracted or in its official archives"
            )


def find_evaluation_data(config: Config) -> list[FoundSet]:
    """Looks for all data sets, before hours may be spent on the first.

    Raises:
        ValueError: there is none, or one of them is not where the configuration says.
    """
    found = [_find(config, name) for name in names_asked_for(config)]
    if not found:
        raise ValueError(
            f"config.evaluation.records={config.evaluation.records}: expected a folder with the "
            f"records of a data set in a folder of its name, of {list(DATA_SETS)}; there is none"
        )
    return found


def names_asked_for(config: Config) -> list[str]:
    """Data sets that have a root or records, in the order of papers."""

    def has_records(name: str) -> bool:
        records = config.evaluation.records
        return bool(records) and (epath.Path(records) / name / DATASET_FILE).exists()

    roots = config.evaluation.roots
    return [name for name in DATA_SETS if getattr(roots, name) or has_records(name)]


def _find(config: Config, name: str) -> FoundSet:
    settings = config.evaluation
    root = getattr(settings.roots, name)
    records = str(epath.Path(settings.records) / name) if settings.records else ""
    data = dataclasses.replace(config.data, dataset=name, root=root, records=records, split=SPLIT)
    set_config = dataclasses.replace(config, data=data)
    job = None
    if root and jax.process_count() == 1:
        job = _first_images(job_from_config(set_config), settings.max_images, cached=not records)
        if not len(job.source):
            raise ValueError(f"config.evaluation.roots.{name}={root}: expected images, found none")
    elif jax.process_count() > 1 and not records:
        raise ValueError(
            f"config.evaluation.records: several hosts need a folder of records of {name} that all "
            "can read; make it first with python -m maft_jax.cli.precompute_proposals "
            f"--config.data.dataset={name} --config.data.split={SPLIT} --config.data.records="
            f"FOLDER/{name}, and give FOLDER"
        )
    folder = epath.Path(job.folder) if job else records_folder(set_config)
    description = job.description if job else read_dataset_file(folder)
    if description["dataset"] != name:
        raise ValueError(
            f"{folder}: expected records of {name}, which the folder's name says, got those of "
            f"{description['dataset']}; rename the folder"
        )
    return FoundSet(
        name,
        tuple(description["class_names"]),
        _unseen_classes(config, name, description),
        folder,
        job,
        settings.max_images,
        synonyms(config.data, description),
    )


def _first_images(job: PrecomputeJob, max_images: int, cached: bool) -> PrecomputeJob:
    """The job for the first images alone, in a folder of its own, unless all are there already.

    Records in a folder that the user chose are made of the whole data set.
    """
    complete = all(map(job.is_finished, range(job.num_shards)))
    if not cached or complete or not 0 < max_images < len(job.source):
        return job
    return dataclasses.replace(
        job,
        source=FirstExamples(job.source, max_images),
        folder=f"{job.folder}-first-{max_images}",
    )


def _unseen_classes(config: Config, name: str, description: Mapping) -> tuple[str, ...]:
    """Training's own for the data set that is trained on, else the published split."""
    if name != config.data.dataset or not config.data.unseen_classes:
        return tuple(description["unseen_classes"])
    names = unseen_classes(config.data, description)
    unknown = sorted(set(names) - set(description["class_names"]))
    if len(unknown) == len(names):
        logger.warning(
            "config.data.unseen_classes: none of them is a class of %s, which is evaluated without "
            "a zero-shot split",
            name,
        )
        return ()
    if unknown:
        raise ValueError(
            f"config.data.unseen_classes: {unknown} are no classes of {name}; its first ones are "
            f"{description['class_names'][:5]}"
        )
    return names
