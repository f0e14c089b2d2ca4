"""Small record sets: random images, labels and proposals, written as training reads them."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

from input_pipeline.examples import IGNORE
from input_pipeline.records.proposal_records import ProposalRecord, Provenance
from input_pipeline.records.record_shards import ShardWriter, shard_stem, write_dataset_file

CLASS_NAMES = ("cat", "dog", "potted plant", "sofa", "train")
PROVENANCE = Provenance("superpixels", "weights 0f", "vocabulary 1e", "maft_jax 0.1")


def make_record(seed: int, size=(20, 24), num_proposals=4, **fields) -> ProposalRecord:
    """A record of random content; `fields` replaces parts of it."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    record = ProposalRecord(
        example_id=f"example {seed}",
        image_bytes=encode_image(image, "jpeg"),
        image_size=size,
        label_map=rng.integers(IGNORE, len(CLASS_NAMES), size, np.int32),
        proposals=rng.integers(0, 256, (num_proposals, 5, 6), np.uint8),
        scores=rng.random(num_proposals, np.float32),
        provenance=PROVENANCE,
    )
    return dataclasses.replace(record, **fields)


def encode_image(image: Image.Image, file_format: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()


def write_shard(folder: epath.PathLike, stem: str, records: Sequence[ProposalRecord]) -> None:
    with ShardWriter(folder, stem, key="recipe") as shard:
        for record in records:
            shard.add(record)
        shard.finish({"made": "by a test"})


def write_record_set(
    folder: epath.PathLike,
    records: Sequence[ProposalRecord],
    num_shards: int = 1,
    class_names: Sequence[str] = CLASS_NAMES,
) -> epath.PathLike:
    """Writes records to shards of equal size, in their order; returns the folder."""
    shards = np.array_split(np.arange(len(records)), num_shards)
    for shard, indices in enumerate(shards):
        write_shard(
            folder, shard_stem("train", shard, num_shards), [records[index] for index in indices]
        )
    description = {
        "dataset": "test",
        "split": "train",
        "class_names": class_names,
        "unseen_classes": [],
        "num_examples": len(records),
        "num_shards": num_shards,
        "recipe": {},
    }
    write_dataset_file(folder, description)
    return folder


def assert_records_equal(actual: ProposalRecord, expected: ProposalRecord) -> None:
    """Every field, its type included."""
    for field in dataclasses.fields(ProposalRecord):
        got, wanted = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(wanted, np.ndarray):
            assert got.dtype == wanted.dtype, field.name
            np.testing.assert_array_equal(got, wanted, err_msg=field.name)
        else:
            assert type(got) is type(wanted) and got == wanted, field.name
