"""Examples with proposals, read from a folder of record shards by index."""

import difflib
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath
from jaxtyping import Int32

from input_pipeline.examples import IGNORE, PreparedExample
from input_pipeline.image_files import read_image
from input_pipeline.records.label_counts import count_labels
from input_pipeline.records.proposal_records import ProposalRecord, decode_record
from input_pipeline.records.record_shards import (
    describe_place,
    read_data,
    read_dataset_file,
    read_done,
    read_shard_index,
    shard_stem,
)
from input_pipeline.records.shard_index import IndexEntry, ShardIndex

_MAX_LISTED = 10
_NUM_READERS = 16


class RecordSource:
    """The PreparedSource of a folder that maft_jax.cli.precompute_proposals wrote.

    Pixels of `unseen_classes` (names) become IGNORE, and the other classes are numbered anew in
    their order. Examples in which nothing is labelled then are left out where `drop_empty` says
    so: training drops them, evaluation does not. Reading is safe in any number of threads.

    Raises ValueError for folders that are incomplete or corrupt, and for unknown class names.
    """

    def __init__(
        self, folder: epath.PathLike, unseen_classes: Sequence[str] = (), drop_empty: bool = True
    ):
        self._folder = epath.Path(folder)
        self.description = read_dataset_file(folder)
        """What `write_dataset_file` wrote: dataset, split, recipe and so on."""
        self._stems = shard_stems(self.description)
        dones, indexes = _open_shards(self._folder, self._stems)
        all_names = self.description["class_names"]
        self._class_lookup = _class_lookup(all_names, unseen_classes)
        self.class_names = tuple(name for name in all_names if name not in unseen_classes)
        check_complete(self._folder, self.description, indexes)

        self._indexes = indexes
        self.label_counts = count_labels(
            all_names,
            Counter(itertools.chain.from_iterable(_column(indexes, "classes"))),
            [done["extra"].get("statistics", {}) for done in dones],
        )
        """Of all examples and classes, unseen ones included."""

        seen = frozenset(np.flatnonzero(self._class_lookup != IGNORE).tolist())
        num_classes = np.array(
            [len(seen.intersection(classes)) for classes in _column(indexes, "classes")]
        )
        kept = np.flatnonzero(num_classes) if drop_empty else np.arange(len(num_classes))
        if not len(kept):
            raise ValueError(
                f"{self._folder}: expected at least one example with a labelled pixel, none of "
                f"{self.description['num_examples']} has any after leaving out the "
                f"{len(unseen_classes)} unseen classes; check unseen_classes"
            )
        shard_sizes = list(map(len, indexes))
        self._shards = np.repeat(np.arange(len(indexes)), shard_sizes)[kept]
        self._rows = np.concatenate([np.arange(size) for size in shard_sizes])[kept]
        all_ids = list(_column(indexes, "example_id"))
        self.example_ids = tuple(all_ids[index] for index in kept)
        sizes = [list(_column(indexes, name)) for name in ("height", "width")]
        self.image_sizes = np.array(sizes, np.int32).T[kept]
        num_proposals = np.array(list(_column(indexes, "num_proposals")))[kept]
        self.num_proposals = max(1, int(num_proposals.max()))
        self.max_classes_per_image = max(1, int(num_classes[kept].max()))
        parts = (all_names, sorted(unseen_classes), drop_empty)
        fingerprint = hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape"))
        for done in dones:
            fingerprint.update(bytes.fromhex(done["tfrecord_sha256"]))
        self.fingerprint = fingerprint.hexdigest()

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: int) -> PreparedExample:
        """Raises ValueError naming shard, offset and example where the record is corrupt."""
        record = self.record(index)
        stem, entry = self._place(index)
        where = describe_place(self._folder, stem, entry)
        image = read_image(record.image_bytes, where)
        if image.shape[:2] != record.image_size:
            raise ValueError(
                f"{where}: expected an image of {entry.width}x{entry.height} pixels, got "
                f"{image.shape[1]}x{image.shape[0]}; write the records again"
            )
        # IGNORE is -1, the last entry of the lookup.
        label_map = self._class_lookup[record.label_map]
        return PreparedExample(
            record.example_id,
            image,
            label_map,
            record.proposals,
            record.scores,
            record.class_logits,
        )

    def digest_of_first(self, count: int) -> str:
        """Of the content of the first examples, however many shards they are in."""
        digest = hashlib.sha256(repr(self.class_names).encode("utf-8", "surrogateescape"))
        for index in range(count):
            _, entry = self._place(index)
            digest.update(
                repr((entry.example_id, entry.checksum)).encode("utf-8", "surrogateescape")
            )
        return digest.hexdigest()

    def record(self, index: int) -> ProposalRecord:
        """The record as it is stored, with labels of the full class list."""
        stem, entry = self._place(index)
        data = read_data(self._folder, stem, entry)
        return decode_record(data, describe_place(self._folder, stem, entry))

    def _place(self, index: int) -> tuple[str, IndexEntry]:
        shard = self._shards[index]
        return self._stems[shard], self._indexes[shard][self._rows[index]]


def shard_stems(description: dict) -> tuple[str, ...]:
    """Stems of all shards of a record set, in order."""
    num_shards = description["num_shards"]
    return tuple(shard_stem(description["split"], i, num_shards) for i in range(num_shards))


def _open_shards(folder: epath.Path, stems: Sequence[str]) -> tuple[list[dict], list[ShardIndex]]:
    # Buckets answer slowly, but many at a time.
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        dones = list(pool.map(lambda stem: read_done(folder, stem), stems))
        missing = [stem for stem, done in zip(stems, dones, strict=True) if done is None]
        if missing:
            more = ", ..." if len(missing) > _MAX_LISTED else ""
            raise ValueError(
                f"{folder}: {len(missing)} of {len(stems)} shards are not finished: "
                f"{', '.join(missing[:_MAX_LISTED])}{more}; run "
                "`python -m maft_jax.cli.precompute_proposals` again with the configuration that "
                "made the others"
            )
        indexes = pool.map(functools.partial(read_shard_index, folder), stems, dones)
        return dones, list(indexes)


def _column(indexes: Sequence[ShardIndex], name: str) -> Iterator:
    return itertools.chain.from_iterable(index.column(name) for index in indexes)


def _class_lookup(names: Sequence[str], unseen: Sequence[str]) -> Int32[np.ndarray, " v"]:
    """New class id of every class id, and IGNORE at the end, for itself."""
    for name in unseen:
        if name not in names:
            close = ", ".join(map(repr, difflib.get_close_matches(name, names))) or "none"
            raise ValueError(
                f"unseen_classes: {name!r} is no class of this data set; close matches: {close}"
            )
    seen = np.array([name not in unseen for name in names] + [False])
    return np.where(seen, np.cumsum(seen) - 1, IGNORE).astype(np.int32)


def check_complete(folder: epath.Path, description: dict, indexes: Sequence[ShardIndex]) -> None:
    """Raises ValueError where the indexes of all shards do not add up to what is described."""
    rewrite = "delete the folder and run maft_jax.cli.precompute_proposals again"
    found = sum(map(len, indexes))
    ids = Counter(_column(indexes, "example_id"))
    if len(ids) != found:
        example_id, count = ids.most_common(1)[0]
        raise ValueError(f"{folder}: example {example_id!r} is there {count} times; {rewrite}")
    if found != description["num_examples"]:
        raise ValueError(
            f"{folder}: expected {description['num_examples']} examples, the shards have {found}; "
            f"{rewrite}"
        )
    num_classes = len(description["class_names"])
    highest = max((ids[-1] for ids in _column(indexes, "classes") if ids), default=-1)
    if highest >= num_classes:
        raise ValueError(
            f"{folder}: the labels go up to class {highest}, but the class list has {num_classes} "
            f"names; {rewrite}"
        )
