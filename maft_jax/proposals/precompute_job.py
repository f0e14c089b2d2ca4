"""From the configuration to a precompute job, and the place of its records."""

import dataclasses
import hashlib
import json
import os
import pathlib

from etils import epath

from input_pipeline.dataset_specs import SPECS
from input_pipeline.layouts import open_dataset
from input_pipeline.records.proposal_records import SCHEMA_VERSION
from maft_jax.config import Config
from maft_jax.config_sections import DataConfig
from maft_jax.proposals.generators import make_generator
from maft_jax.proposals.precompute_shards import RECIPE_VERSION, PrecomputeJob

_WHAT_IS_READ = ("dataset", "split", "images", "annotations", "classes", "ignore_labels")


def job_from_config(config: Config, overwrite: bool = False) -> PrecomputeJob:
    """Opens the data set and the generator that the configuration names.

    Records in the cache are replaced when the recipe changes, those in config.data.records only
    with `overwrite`.

    Raises:
        ValueError: files are missing, or settings cannot work.
    """
    data = config.data
    if not data.root:
        raise ValueError(
            "config.data.root: no data to compute records from; give the folder "
            "(--config.data.root=photos)"
        )
    source = open_dataset(
        data.dataset,
        data.root,
        data.split,
        images=data.images,
        annotations=data.annotations,
        classes=data.classes,
        ignore_labels=data.ignore_labels,
    )
    spec = SPECS.get(data.dataset)
    path = config.proposals.path.replace("{dataset}", data.dataset)
    proposals = dataclasses.replace(config.proposals, path=path)
    return PrecomputeJob(
        source=source,
        dataset=data.dataset,
        split=data.split,
        generator=make_generator(proposals, source.class_names),
        num_proposals=config.proposals.num_proposals,
        folder=str(records_folder(config)),
        unseen_classes=spec.unseen_classes if spec else (),
        replace=overwrite or not data.records,
    )


def records_folder(config: Config) -> epath.Path:
    """config.data.records, or a folder in the cache with a name of its own for these settings.

    Nothing is read: what the files below config.data.root hold is part of the shards' keys.
    """
    data, proposals = config.data, config.proposals
    if data.records:
        return epath.Path(data.records)
    settings = {name: getattr(data, name) for name in _WHAT_IS_READ}
    settings["root"] = str(pathlib.Path(data.root).resolve())
    settings["proposals"] = dataclasses.asdict(proposals)
    settings["versions"] = (SCHEMA_VERSION, RECIPE_VERSION)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{data.dataset}-{data.split}-{proposals.generator}-{proposals.num_proposals}-{digest}"
    return epath.Path(cache_dir(data)) / "records" / name


def cache_dir(config: DataConfig) -> pathlib.Path:
    """Where records and text embeddings are kept between runs."""
    if config.cache_dir:
        return pathlib.Path(config.cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "maft_jax"
