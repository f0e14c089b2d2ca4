"""Record sets written by former versions of this code, which must be readable for good.

`records_version_1` was written once and is never written again: a version that cannot read it has
to say so in docs/records.md and in its error, not here. A new schema version adds a folder.
"""

import pathlib

import numpy as np
from PIL import Image

from input_pipeline.examples import IGNORE
from input_pipeline.records.proposal_records import ProposalRecord, Provenance
from input_pipeline.records.record_shards import read_dataset_file, read_done
from input_pipeline.records.record_source import RecordSource
from input_pipeline.records.record_verification import verify_records
from tests.record_sets import assert_records_equal, encode_image

FOLDER = pathlib.Path(__file__).with_name("records_version_1")


def version_1_records() -> list[ProposalRecord]:
    """What the folder holds, from arithmetic alone but for the encoding of the images."""
    provenance = Provenance("superpixels", "weights ff", "vocabulary 00", "maft_jax 0.1.0")
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    plain = ProposalRecord(
        example_id="höhle/1",
        image_bytes=encode_image(Image.fromarray(pixels), "png"),
        image_size=(2, 3),
        label_map=np.array([[0, 1, 1], [IGNORE, 4, 4]], np.int32),
        proposals=np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3) * 8,
        scores=np.array([4, 2, 1, 0.5, -0.25], np.float32),
        provenance=provenance,
    )
    large_ids = ProposalRecord(
        example_id="2",
        image_bytes=encode_image(Image.fromarray(pixels[::-1]), "png"),
        image_size=(2, 3),
        label_map=np.array([[0, 300, IGNORE], [255, 255, 0]], np.int32),
        proposals=np.zeros((2, 1, 1), np.uint8),
        scores=np.zeros(2, np.float32),
        provenance=provenance,
        class_logits=np.array([[1, -1, 0.5], [2, 3, 4]], np.float32),
        teacher_probabilities=np.array([0.125, 0.875], np.float32),
    )
    return [plain, large_ids]


def test_records_of_version_1_are_read_as_they_were_written():
    assert verify_records(FOLDER, progress=False) == []
    source = RecordSource(FOLDER)
    assert len(source) == 2
    for index, expected in enumerate(version_1_records()):
        record = source.record(index)
        example = source[index]
        pixels = np.arange(18).reshape(2, 3, 3)[:: 1 - 2 * index]
        np.testing.assert_array_equal(example.image, pixels)
        np.testing.assert_array_equal(example.label_map, expected.label_map)
        assert_records_equal(_without_image(record), _without_image(expected))


def test_side_files_of_version_1_are_read_as_they_were_written():
    description = read_dataset_file(FOLDER)
    assert description["schema_version"] == 1
    assert description["class_names"] == [f"class {i}" for i in range(301)]
    assert (description["num_examples"], description["num_shards"]) == (2, 2)
    done = read_done(FOLDER, "train-00001-of-00002")
    assert (done["schema_version"], done["key"], done["num_examples"]) == (1, "recipe", 1)
    assert RecordSource(FOLDER).image_sizes.tolist() == [[2, 3], [2, 3]]


def _without_image(record: ProposalRecord) -> ProposalRecord:
    """PNG encoders differ from one version of Pillow to the next."""
    return ProposalRecord(**(vars(record) | {"image_bytes": b""}))
