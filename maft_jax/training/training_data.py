"""From the configuration to the examples that training reads, computing proposals if need be."""

import hashlib
import json
import logging

import jax
import numpy as np
from etils import epath

from input_pipeline.examples import PreparedSource
from input_pipeline.numpy_dataset import NumpyBatches
from input_pipeline.records.label_counts import list_names
from input_pipeline.records.record_shards import read_dataset_file
from input_pipeline.records.record_source import RecordSource
from input_pipeline.train_pipeline import TrainGeometry, example_ids_at, make_train_dataset
from maft_jax.config import Config
from maft_jax.config.sections import DataConfig
from maft_jax.models.array_types import Batch
from maft_jax.pictures.sheets import contact_sheet
from maft_jax.proposals.label_agreement import check_several_classes
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config, records_folder
from maft_jax.proposals.record_sets import synonyms, unseen_classes

logger = logging.getLogger(__name__)


def open_training_data(config: Config) -> RecordSource:
    """The records of config.data.records, or those in the cache, completed first.

    Raises:
        ValueError: files are missing, corrupt or contradict the configuration.
    """
    if not config.data.records:
        if jax.process_count() > 1:
            raise ValueError(
                "config.data.records: several hosts need a folder of records that all can read; "
                "make it first, on one host or several (docs/precompute.md), with python -m "
                "maft_jax.cli.precompute_proposals and the same --config and settings, and "
                "--config.data.records=FOLDER, then train with that, too"
            )
        job = job_from_config(config)
        check_several_classes(job.source, unseen_classes(config.data, job.description))
        precompute(job)
    return open_records(config)


def open_records(config: Config) -> RecordSource:
    """The records of config.data.records, or those in the cache, as training reads them.

    Raises:
        ValueError: files are missing, corrupt or contradict the configuration, or the labels show
            fewer than two classes that are to be learnt.
    """
    folder = records_folder(config)
    description = read_dataset_file(folder)
    source = RecordSource(folder, unseen_classes(config.data, description))
    _check_classes_to_learn(source, folder)
    logger.info(
        "%d images, %d classes, at most %d proposals an image in %s",
        len(source),
        len(source.class_names),
        source.num_proposals,
        folder,
    )
    return source


def _check_classes_to_learn(source: RecordSource, folder: epath.Path) -> None:
    """Names the classes that no pixel shows, and refuses what leaves fewer than two."""
    counts = source.label_counts
    absent = [name for name in counts.absent if name in source.class_names]
    shown = [name for name in source.class_names if name not in absent]
    ignored = counts.ignored_share
    cause = f"; {ignored:.1%} of all pixels are ignored" if ignored else ""
    if len(shown) < 2:
        others = f", no pixel shows {list_names(absent)}{cause}" if absent else ""
        raise ValueError(
            f"{folder}: only {list_names(shown)} is left to learn of {len(counts.class_names)} "
            f"classes{others}; training needs two. See to it that label values and class list "
            "agree (masks of 0 and 255 need lines such as '0<TAB>background' and "
            "'255<TAB>lesion', or other --config.data.ignore_labels), and that "
            "config.data.unseen_classes leaves some, then compute the records again"
        )
    if absent:
        logger.warning(
            "%s: no pixel shows %s (%d of %d classes), which cannot be learnt%s",
            folder,
            list_names(absent),
            len(absent),
            len(source.class_names),
            cause,
        )


def describe_data(source: RecordSource) -> dict[str, int | str]:
    """What a run that resumes must find again; small JSON values, for people to compare."""
    recipe = source.description["recipe"]
    return {
        "data_set": f"{source.description['dataset']} {source.description['split']}",
        "proposals": f"{recipe['generator']}, at most {recipe['num_proposals']}",
        "num_images": len(source),
        "num_classes": len(source.class_names),
        "num_shards": source.description["num_shards"],
        "data": source.fingerprint,
    }


def describe_synonyms(data: DataConfig, source: RecordSource) -> str | None:
    """A digest of the further names that classes are scored by; None as before there were any."""
    further = synonyms(data, source.description)
    return hashlib.sha256(json.dumps(further).encode()).hexdigest()[:16] if further else None


def train_geometry(data: DataConfig) -> TrainGeometry:
    """How config.data says that examples become training squares."""
    return TrainGeometry(data.crop_size, data.short_sides, data.max_long_side, data.augment)


def batch_shapes(
    config: Config, max_classes_per_image: int, num_classes: int, *, with_positions: bool = False
) -> Batch:
    """What a step reads, as shapes; without any data.

    Args:
        with_positions: as of read_train_batches, which a Task says.
    """
    size = config.data.crop_size
    grid = train_geometry(config.data).proposal_grid
    num_proposals = config.proposals.num_proposals

    def shape(dtype, *dimensions: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *dimensions), dtype)

    return Batch(
        image=shape(np.uint8, size, size, 3),
        label_map=shape(np.int32, size, size),
        present_classes=shape(np.int32, max_classes_per_image),
        proposals=shape(np.uint8, num_proposals, *grid),
        proposal_valid=shape(bool, num_proposals),
        teacher_probabilities=(
            shape(np.float32, num_classes) if config.loss.cached_teacher else None
        ),
        position=shape(np.int32) if with_positions else None,
    )


def draw_training_data(
    source: PreparedSource, config: Config, num_examples: int = 4, step: int = 0
) -> np.ndarray:
    """Contact sheet [h, w, 3] uint8 of the first examples of a step, as training gets them."""
    ids = example_ids_at(source, step, config.batch_size, config.seed)[:num_examples]
    dataset = make_train_dataset(
        source,
        global_batch_size=config.batch_size,
        seed=config.seed,
        start_step=step,
        geometry=train_geometry(config.data),
    )
    batch = next(NumpyBatches(dataset))
    return contact_sheet(batch, source.class_names, ids)
