"""Record sets on gs:// paths, as pods read them; TensorFlow's file system in memory stands in."""

import pytest
import tensorflow as tf
from etils.epath import backend

from input_pipeline.records.record_shards import index_path, record_path
from input_pipeline.records.record_source import RecordSource
from input_pipeline.records.record_verification import verify_records
from tests.record_sets import assert_records_equal, make_record, write_record_set

RECORDS = [make_record(seed) for seed in range(3)]
STEM = "train-00000-of-00002"


class _Ram:
    """tf.io.gfile with gs:// led to ram://."""

    def __getattr__(self, name):
        def call(*arguments, **options):
            here = [
                argument.replace("gs://", "ram://") if isinstance(argument, str) else argument
                for argument in arguments
            ]
            result = getattr(tf.io.gfile, name)(*here, **options)
            if name == "glob":
                return [path.replace("ram://", "gs://") for path in result]
            return result

        return call


@pytest.fixture
def bucket(monkeypatch, request):
    monkeypatch.setattr(backend._TfBackend, "gfile", _Ram())
    return write_record_set(f"gs://{request.node.name}/records", RECORDS, num_shards=2)


def test_records_are_written_and_read(bucket):
    names = tf.io.gfile.listdir(bucket.replace("gs://", "ram://"))
    assert len(names) == 7 and not [name for name in names if name.endswith("unfinished")]
    source = RecordSource(bucket)
    for index, record in enumerate(RECORDS):
        assert_records_equal(source.record(index), record)
    assert verify_records(bucket, progress=False) == []


def test_missing_files_are_named(bucket):
    source = RecordSource(bucket)
    record_path(bucket, STEM).unlink()
    with pytest.raises(ValueError, match=r"^gs://.*00002\.tfrecord, byte 0, .*: there is no such"):
        source.record(0)
    index_path(bucket, STEM).unlink()
    with pytest.raises(ValueError, match=r"^gs://.*00002\.idx: there is no such file"):
        RecordSource(bucket)
