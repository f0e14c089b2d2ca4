"""Shards of records: a TFRecord file, an index for random access, and a file that says it is done.

`<stem>.tfrecord` any TFRecord reader can read. `<stem>.idx` says where its records lie and what
must be known of all of them before any is read. `<stem>.done.json` is written last: a shard
without it does not exist. All three are written aside and renamed.
"""

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from etils import epath

from input_pipeline.records.proposal_records import ProposalRecord, encode_record, present_classes
from input_pipeline.records.sealed_json import read_sealed, seal
from input_pipeline.records.shard_index import IndexEntry, ShardIndex, decode_index, encode_index
from input_pipeline.records.tfrecord_framing import OVERHEAD, frame, masked_crc32c, unframe
from input_pipeline.write_errors import naming

DATASET_FILE = "dataset.json"
REWRITE = "delete the file and run maft_jax.cli.precompute_proposals again"

_UNFINISHED = "unfinished"
_DESCRIPTION = frozenset(
    ("dataset", "split", "class_names", "unseen_classes", "num_examples", "num_shards", "recipe")
)


def shard_stem(split: str, shard: int, num_shards: int) -> str:
    """train-00003-of-00128"""
    if not 0 <= shard < num_shards:
        raise ValueError(f"shard: expected 0 .. {num_shards - 1}, got {shard}")
    return f"{split}-{shard:05d}-of-{num_shards:05d}"


def record_path(folder: epath.PathLike, stem: str) -> epath.Path:
    return epath.Path(folder) / f"{stem}.tfrecord"


def index_path(folder: epath.PathLike, stem: str) -> epath.Path:
    return epath.Path(folder) / f"{stem}.idx"


def done_path(folder: epath.PathLike, stem: str) -> epath.Path:
    return epath.Path(folder) / f"{stem}.done.json"


@dataclass(frozen=True)
class PackedRecord:
    """A record as its bytes, and what the index keeps of it; any thread may make it."""

    data: bytes
    checksum: int
    example_id: str
    image_size: tuple[int, int]
    num_proposals: int
    classes: tuple[int, ...]


def pack_record(record: ProposalRecord) -> PackedRecord:
    """Raises ValueError where the parts of the record do not fit each other."""
    data = encode_record(record)
    return PackedRecord(
        data,
        masked_crc32c(data),
        record.example_id,
        record.image_size,
        len(record.proposals),
        present_classes(record.label_map),
    )


class ShardWriter(AbstractContextManager):
    """Writes one shard: `with ShardWriter(...) as shard: shard.add(record) ... shard.finish(...)`.

    `key` stands for everything the content is computed from; `read_done` gives it back. Equal
    records give equal files. Unless `finish` was called nothing of the shard is left behind, and a
    former shard of the same name stays as it was; what killed runs left is removed.
    """

    def __init__(self, folder: epath.PathLike, stem: str, key: str):
        self._folder = epath.Path(folder)
        self._stem = stem
        self._key = key
        self._entries: list[IndexEntry] = []
        self._num_bytes = 0
        self._sha256 = hashlib.sha256()
        self._aside = _aside(record_path(self._folder, stem))
        self._open_files = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> "ShardWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob(f"{self._stem}.*.{_UNFINISHED}"):
            path.unlink(missing_ok=True)
        self._file = self._open_files.enter_context(self._aside.open("wb"))
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        # Closing writes what is left in its buffer; its failure must not hide the first one.
        with suppress(OSError if kind else ()):
            self._open_files.close()
        self._aside.unlink(missing_ok=True)

    def add(self, record: ProposalRecord) -> None:
        """Appends a record. Raises ValueError where its parts do not fit each other."""
        self.add_packed(pack_record(record))

    def add_packed(self, record: PackedRecord) -> None:
        """Appends a record that was packed before."""
        with naming(record_path(self._folder, self._stem)):
            for part in frame(record.data):
                self._file.write(part)
                self._sha256.update(part)
        entry = IndexEntry(
            self._num_bytes,
            len(record.data) + OVERHEAD,
            record.checksum,
            record.example_id,
            *record.image_size,
            record.num_proposals,
            record.classes,
        )
        self._entries.append(entry)
        self._num_bytes += entry.length

    def finish(self, extra: dict) -> None:
        """Gives the files their names; `extra` is a JSON object kept in the done-file."""
        index = encode_index(self._entries)
        done = seal(
            {
                "stem": self._stem,
                "key": self._key,
                "num_examples": len(self._entries),
                "num_bytes": self._num_bytes,
                "tfrecord_sha256": self._sha256.hexdigest(),
                "idx_sha256": hashlib.sha256(index).hexdigest(),
                "extra": extra,
            }
        )
        with naming(record_path(self._folder, self._stem)):
            _sync(self._file)
            self._open_files.close()
        # From here to the end there is no done-file, so that none describes other files.
        done_path(self._folder, self._stem).unlink(missing_ok=True)
        _sync_folder(self._folder)
        self._aside.replace(record_path(self._folder, self._stem))
        atomic_write_bytes(index_path(self._folder, self._stem), index)
        atomic_write_bytes(done_path(self._folder, self._stem), done)


def read_done(folder: epath.PathLike, stem: str) -> dict | None:
    """Content of a done-file, None where there is none; ValueError where it is corrupt."""
    path = done_path(folder, stem)
    try:
        done = read_sealed(path, REWRITE)
    except FileNotFoundError:
        return None
    if done.get("stem") != stem:
        raise ValueError(f"{path}: this is the done-file of {done.get('stem')}, renamed; {REWRITE}")
    return done


def read_index(folder: epath.PathLike, stem: str) -> list[IndexEntry]:
    """Where the records of a finished shard lie, in the order of the file.

    Raises ValueError, which names the file, where any of the three files is missing, corrupt or
    of another size than the done-file says; the records themselves are not read.
    """
    done = read_done(folder, stem)
    if done is None:
        raise ValueError(
            f"{done_path(folder, stem)}: there is no such file, so the shard is unfinished; run "
            "maft_jax.cli.precompute_proposals again"
        )
    return list(read_shard_index(folder, stem, done))


def read_shard_index(folder: epath.PathLike, stem: str, done: dict) -> ShardIndex:
    """As `read_index`, for a done-file that was read already."""
    path, records = index_path(folder, stem), record_path(folder, stem)
    advice = f"delete {done_path(folder, stem)} and run maft_jax.cli.precompute_proposals again"
    with _must_exist(path, advice):
        content = path.read_bytes()
    with _must_exist(records, advice):
        num_bytes = _size(records)
    if hashlib.sha256(content).hexdigest() != done["idx_sha256"]:
        raise ValueError(f"{path}: the file is corrupt, or of another run; {advice}")
    if num_bytes != done["num_bytes"]:
        raise ValueError(
            f"{records}: expected {done['num_bytes']} bytes, the file has {num_bytes}; {advice}"
        )
    return decode_index(content)


def read_data(folder: epath.PathLike, stem: str, entry: IndexEntry) -> bytes:
    """Data of the record at an index entry; safe in any number of threads.

    Raises ValueError, which names shard, offset and example, where any byte of it is corrupt.
    """
    path = record_path(folder, stem)
    try:
        # A handle per read costs microseconds, and neither locks nor limits on open files.
        with path.open("rb") as file:
            file.seek(entry.offset)
            data = unframe(file.read(entry.length))
        if masked_crc32c(data) != entry.checksum:
            raise ValueError("this is another record than the index says")
    except (OSError, ValueError) as error:
        problem = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise ValueError(
            f"{describe_place(folder, stem, entry)}: {problem}; delete "
            f"{done_path(folder, stem)} and run maft_jax.cli.precompute_proposals again"
        ) from error
    return data


def describe_place(folder: epath.PathLike, stem: str, entry: IndexEntry) -> str:
    """Shard, offset and example, for messages."""
    return f"{record_path(folder, stem)}, byte {entry.offset}, example {entry.example_id!r}"


def write_dataset_file(folder: epath.PathLike, description: dict) -> None:
    """Writes what holds for all shards of a folder.

    That is dataset, split, class_names, unseen_classes (names), num_examples, num_shards and
    recipe. Raises ValueError where one of them is missing.
    """
    if missing := _DESCRIPTION - set(description):
        raise ValueError(
            f"{DATASET_FILE}: expected {sorted(_DESCRIPTION)}, missing {sorted(missing)}"
        )
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(epath.Path(folder) / DATASET_FILE, seal(description))


def read_dataset_file(folder: epath.PathLike) -> dict:
    """What `write_dataset_file` wrote; ValueError where it is missing or corrupt."""
    path = epath.Path(folder) / DATASET_FILE
    advice = "expected a folder of records, as maft_jax.cli.precompute_proposals makes them"
    with _must_exist(path, advice):
        description = read_sealed(path, REWRITE)
    if missing := _DESCRIPTION - set(description):
        raise ValueError(f"{path}: another file, renamed: {sorted(missing)} are missing; {REWRITE}")
    return description


def atomic_write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a neighbour and renames it, so that no half-written file has the final name."""
    aside = _aside(path)
    try:
        with naming(path), aside.open("wb") as file:
            file.write(content)
            _sync(file)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _aside(path: epath.Path) -> epath.Path:
    # Two processes that write the same shard by mistake must not write into one file.
    return path.parent / f"{path.name}.{uuid.uuid4().hex}.{_UNFINISHED}"


@contextmanager
def _must_exist(path: epath.Path, advice: str) -> Iterator[None]:
    # Asking first whether the file exists would be another request to a bucket, for every shard.
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: there is no such file; {advice}") from None


def _size(path: epath.Path) -> int:
    # epath's stat() fails on local files whose owner has no name, as in many containers.
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END) or file.tell()


def _sync(file: BinaryIO) -> None:
    """Flushes to the disk, where the file is on one; buckets keep what was closed."""
    file.flush()
    with suppress(AttributeError, io.UnsupportedOperation):  # by TensorFlow's version
        os.fsync(file.fileno())


def _sync_folder(folder: epath.Path) -> None:
    if "://" in str(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
