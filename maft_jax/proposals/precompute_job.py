"""From the configuration to a precompute job, and the place of its records."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import tempfile

from etils import epath

from input_pipeline.class_lists import DEFAULT_IGNORED, UNLESS_NAMED
from input_pipeline.dataset_specs import SPECS
from input_pipeline.layouts import open_dataset
from input_pipeline.records.proposal_records import SCHEMA_VERSION
from maft_jax.config import Config
from maft_jax.config.sections import DataConfig
from maft_jax.proposals.generators import make_generator
from maft_jax.proposals.precompute_shards import RECIPE_VERSION, PrecomputeJob

logger = logging.getLogger(__name__)

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
    further_names = source.synonyms if data.synonyms else {}
    path = config.proposals.path.replace("{dataset}", data.dataset)
    proposals = dataclasses.replace(config.proposals, path=path)
    return PrecomputeJob(
        source=source,
        dataset=data.dataset,
        split=data.split,
        generator=make_generator(proposals, source.class_names, further_names),
        num_proposals=config.proposals.num_proposals,
        folder=str(records_folder(config)),
        unseen_classes=spec.unseen_classes if spec else (),
        synonyms=source.synonyms,
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
    if data.ignore_labels == UNLESS_NAMED:  # as earlier versions named folders by default
        settings["ignore_labels"] = DEFAULT_IGNORED
    settings["root"] = str(pathlib.Path(data.root).resolve())
    settings["proposals"] = dataclasses.asdict(proposals)
    settings["versions"] = (SCHEMA_VERSION, RECIPE_VERSION)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{data.dataset}-{data.split}-{proposals.generator}-{proposals.num_proposals}-{digest}"
    return epath.Path(cache_dir(data)) / "records" / name


def cache_dir(config: DataConfig) -> pathlib.Path:
    """Where records and text embeddings are kept between runs.

    Where nobody says and the home cannot be written, a folder of temporary files that later
    commands of the same user find again; this is warned of once.

    Raises:
        ValueError: that cannot be written either, or belongs to another user.
    """
    if config.cache_dir:
        return pathlib.Path(config.cache_dir)
    return _default_cache_dir(os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


@functools.cache
def _default_cache_dir(xdg_cache_home: str | None, home: str | None) -> pathlib.Path:
    try:
        base = pathlib.Path(xdg_cache_home) if xdg_cache_home else pathlib.Path.home() / ".cache"
        _try_to_write(base / "maft_jax")
        return base / "maft_jax"
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home at all
        return _temporary_cache_dir(error)


def _try_to_write(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def _temporary_cache_dir(reason: Exception) -> pathlib.Path:
    folder = pathlib.Path(tempfile.gettempdir(), f"maft_jax-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _try_to_write(folder)
        owner = folder.stat().st_uid
    except OSError as error:
        raise ValueError(
            f"no folder for the cache of proposals and text embeddings: {reason}, and {error}; say "
            "where it may be (--config.data.cache_dir=..., of predict --cache_dir=...)"
        ) from error
    if owner != os.getuid():
        raise ValueError(f"{folder}: belongs to another user; set --config.data.cache_dir=...")
    logger.warning(
        "no home to write to (%s): proposals and text embeddings are kept in %s; "
        "--config.data.cache_dir=... (of predict --cache_dir=...) says where else",
        reason,
        folder,
    )
    return folder
