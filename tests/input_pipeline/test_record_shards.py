import json

import pytest
import tensorflow as tf
from etils import epath

from input_pipeline.records.proposal_records import decode_record, encode_record
from input_pipeline.records.record_shards import (
    ShardWriter,
    done_path,
    index_path,
    read_data,
    read_dataset_file,
    read_done,
    read_index,
    record_path,
    shard_stem,
    write_dataset_file,
)
from tests.record_sets import assert_records_equal, make_record, write_record_set, write_shard

STEM = "train-00000-of-00001"
RECORDS = [make_record(seed, num_proposals=seed) for seed in range(4)]


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path, STEM, RECORDS)
    return tmp_path


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_stems_sort_in_the_order_of_shards():
    assert shard_stem("train", 3, 128) == "train-00003-of-00128"
    with pytest.raises(ValueError, match=r"shard: expected 0 \.\. 3, got 4"):
        shard_stem("val", 4, 4)


def test_file_is_what_tensorflow_writes_of_the_same_records(folder, tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for record in RECORDS:
            writer.write(encode_record(record))
    assert record_path(folder, STEM).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensorflow_reads_the_file(folder):
    dataset = tf.data.TFRecordDataset(str(record_path(folder, STEM)))
    assert [item.numpy() for item in dataset] == [encode_record(record) for record in RECORDS]


def test_index_leads_to_every_record(folder):
    entries = read_index(folder, STEM)
    assert [entry.example_id for entry in entries] == [record.example_id for record in RECORDS]
    for entry, record in reversed(list(zip(entries, RECORDS, strict=True))):
        assert (entry.height, entry.width) == (20, 24)
        assert entry.num_proposals == len(record.proposals)
        assert entry.classes == (0, 1, 2, 3, 4)
        data = read_data(folder, STEM, entry)
        assert_records_equal(decode_record(data, "here"), record)


def test_done_file_describes_the_shard(folder):
    done = read_done(folder, STEM)
    assert (done["schema_version"], done["stem"], done["key"]) == (1, STEM, "recipe")
    assert done["num_examples"] == 4
    assert done["num_bytes"] == len(record_path(folder, STEM).read_bytes())
    assert done["extra"] == {"made": "by a test"}


def test_empty_shard_is_a_shard(tmp_path):
    write_shard(tmp_path, STEM, [])
    assert read_index(tmp_path, STEM) == []


def test_equal_records_give_equal_files(folder, tmp_path):
    write_shard(tmp_path / "again", STEM, RECORDS)
    for path in (record_path, index_path, done_path):
        assert path(folder, STEM).read_bytes() == path(tmp_path / "again", STEM).read_bytes()


def test_nothing_stays_of_a_shard_that_failed(tmp_path):
    with pytest.raises(RuntimeError, match="generator"), ShardWriter(tmp_path, STEM, "") as shard:
        shard.add(RECORDS[0])
        raise RuntimeError("generator")
    with ShardWriter(tmp_path, STEM, "") as shard:
        shard.add(RECORDS[0])
    assert _names(tmp_path) == []
    assert read_done(tmp_path, STEM) is None


def test_failure_leaves_the_former_shard_as_it_was(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RuntimeError, match="generator"), ShardWriter(folder, STEM, "new") as shard:
        shard.add(RECORDS[3])
        raise RuntimeError("generator")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("killed_at", range(3))
def test_killed_while_files_get_their_names_there_is_no_done_file(folder, monkeypatch, killed_at):
    """Also where a former shard had one, which would describe other files now."""
    replace, calls = type(epath.Path(folder)).replace, []

    def replace_or_die(self, target):
        calls.append(target)
        if len(calls) > killed_at:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(type(epath.Path(folder)), "replace", replace_or_die)
    with pytest.raises(KeyboardInterrupt), ShardWriter(folder, STEM, "new") as shard:
        shard.add(RECORDS[3])
        shard.finish({})
    assert read_done(folder, STEM) is None
    assert not [name for name in _names(folder) if name.endswith(".unfinished")]
    with pytest.raises(ValueError, match=r"done\.json: there is no such file"):
        read_index(folder, STEM)


def test_what_killed_runs_left_is_removed_and_other_shards_are_not(folder):
    other = folder / "train-00001-of-00002.tfrecord.1234.unfinished"
    left = folder / f"{STEM}.tfrecord.1234.unfinished"
    for path in (other, left):
        path.write_bytes(b"half a rec")
    write_shard(folder, STEM, RECORDS)
    assert other.exists() and not left.exists()
    assert len(read_index(folder, STEM)) == 4


def test_done_file_of_another_shard_is_refused(folder):
    done_path(folder, STEM).rename(done_path(folder, "train-00000-of-00002"))
    with pytest.raises(ValueError, match=f"done-file of {STEM}, renamed"):
        read_done(folder, "train-00000-of-00002")


def test_edited_done_file_is_refused(folder):
    path = done_path(folder, STEM)
    done = json.loads(path.read_text())
    path.write_text(json.dumps(done | {"key": "another recipe"}))
    with pytest.raises(ValueError, match=r"done\.json: the file is corrupt or was edited"):
        read_done(folder, STEM)


def test_index_of_other_records_is_refused(folder, tmp_path):
    write_shard(tmp_path / "other", STEM, RECORDS[::-1])
    index_path(folder, STEM).write_bytes(index_path(tmp_path / "other", STEM).read_bytes())
    with pytest.raises(ValueError, match=r"\.idx: the file is corrupt, or of another run; delete"):
        read_index(folder, STEM)


def test_dataset_file_gives_back_what_was_written(tmp_path):
    write_record_set(tmp_path, RECORDS, class_names=("höhle", "写真", "a", "b", "c"))
    description = read_dataset_file(tmp_path)
    assert description["class_names"] == ["höhle", "写真", "a", "b", "c"]
    assert (description["num_examples"], description["num_shards"]) == (4, 1)
    del description["recipe"]
    with pytest.raises(ValueError, match=r"missing \['recipe'\]"):
        write_dataset_file(tmp_path, description)


def test_folder_without_dataset_file_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"dataset\.json: there is no such file; expected a folder"
    ):
        read_dataset_file(tmp_path)
