"""Checks every byte of a record set, as `precompute_proposals --verify` does."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from etils import epath
from tqdm import tqdm

from input_pipeline.image_files import read_image
from input_pipeline.records.proposal_records import decode_record, present_classes
from input_pipeline.records.record_shards import (
    describe_place,
    read_data,
    read_dataset_file,
    read_done,
    read_shard_index,
    record_path,
)
from input_pipeline.records.record_source import check_complete, shard_stems
from input_pipeline.records.shard_index import IndexEntry, ShardIndex

_CHUNK = 2**24


def verify_records(folder: epath.PathLike, progress: bool = True) -> list[str]:
    """Reads and decodes everything in a folder of records; returns what is wrong with it.

    Every problem names a file, and the offset and the example where it is a record. A bar on
    stderr shows the progress unless told otherwise.
    """
    folder = epath.Path(folder)
    try:
        description = read_dataset_file(folder)
    except ValueError as error:
        return [str(error)]
    problems: list[str] = []
    indexes: list[ShardIndex] = []
    with (
        tqdm(total=description["num_examples"], desc="records", disable=not progress) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for stem in shard_stems(description):
            try:
                done, entries = _open_shard(folder, stem)
            except ValueError as error:
                problems.append(str(error))
                continue
            indexes.append(entries)
            found = []
            for in_record in pool.map(partial(_record_problems, folder, stem), entries):
                bar.update()
                found += in_record
            problems += found or _shard_problems(folder, stem, done, entries)
    if not problems:
        try:
            check_complete(folder, description, indexes)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _open_shard(folder: epath.Path, stem: str) -> tuple[dict, ShardIndex]:
    done = read_done(folder, stem)
    if done is None:
        raise ValueError(
            f"{record_path(folder, stem)}: the shard has no done-file; run "
            "maft_jax.cli.precompute_proposals again"
        )
    return done, read_shard_index(folder, stem, done)


def _record_problems(folder: epath.Path, stem: str, entry: IndexEntry) -> list[str]:
    where = describe_place(folder, stem, entry)
    try:
        record = decode_record(read_data(folder, stem, entry), where)
        image = read_image(record.image_bytes, where)
    except ValueError as error:
        return [str(error)]
    found = (
        record.example_id,
        *image.shape[:2],
        len(record.proposals),
        present_classes(record.label_map),
    )
    indexed = (
        entry.example_id,
        entry.height,
        entry.width,
        entry.num_proposals,
        entry.classes,
    )
    if found != indexed:
        return [f"{where}: the index says {indexed}, the record holds {found}"]
    return []


def _shard_problems(
    folder: epath.Path, stem: str, done: dict, entries: ShardIndex
) -> Iterator[str]:
    """What reading record by record does not see."""
    path = record_path(folder, stem)
    end = 0
    for entry in entries:
        if entry.offset != end:
            yield f"{path}, byte {end}: the index goes on at byte {entry.offset}"
        end = entry.offset + entry.length
    if end != done["num_bytes"] or len(entries) != done["num_examples"]:
        yield (
            f"{path}: the done-file says {done['num_examples']} examples in {done['num_bytes']} "
            f"bytes, the index {len(entries)} in {end}"
        )
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != done["tfrecord_sha256"]:
        yield f"{path}: the SHA-256 of the file is not the one in its done-file"
