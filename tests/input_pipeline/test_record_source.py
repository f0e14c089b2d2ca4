import io
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from input_pipeline.examples import IGNORE, PreparedSource
from input_pipeline.records.record_shards import done_path, record_path
from input_pipeline.records.record_source import RecordSource
from input_pipeline.records.record_verification import verify_records
from tests.record_sets import (
    CLASS_NAMES,
    assert_records_equal,
    make_record,
    write_record_set,
    write_shard,
)


def _labelled(seed, labels, **fields):
    return make_record(seed, size=(2, 2), label_map=np.array(labels, np.int32), **fields)


RECORDS = [
    _labelled(0, [[0, 1], [IGNORE, 3]], num_proposals=2),
    _labelled(1, [[1, 1], [1, 1]], num_proposals=9),
    _labelled(2, [[IGNORE, IGNORE], [IGNORE, IGNORE]]),
    _labelled(3, [[4, 4], [4, 2]], num_proposals=0),
    make_record(4, size=(30, 40)),
]


@pytest.fixture
def folder(tmp_path):
    return write_record_set(tmp_path / "records", RECORDS, num_shards=2)


def test_examples_are_those_that_were_written(folder):
    source = RecordSource(folder, drop_empty=False)
    assert isinstance(source, PreparedSource)
    assert source.class_names == CLASS_NAMES
    assert source.example_ids == tuple(record.example_id for record in RECORDS)
    assert (len(source), source.num_proposals, source.max_classes_per_image) == (5, 9, 5)
    np.testing.assert_array_equal(source.image_sizes, [[2, 2]] * 4 + [[30, 40]])
    for index, record in enumerate(RECORDS):
        example = source[index]
        assert example.example_id == record.example_id
        with Image.open(io.BytesIO(record.image_bytes)) as image:
            np.testing.assert_array_equal(example.image, np.asarray(image))
        np.testing.assert_array_equal(example.label_map, record.label_map)
        np.testing.assert_array_equal(example.proposals, record.proposals)
        np.testing.assert_array_equal(example.scores, record.scores)
        assert_records_equal(source.record(index), record)


def test_examples_without_labelled_pixels_are_dropped_for_training(folder):
    assert [example_id[-1] for example_id in RecordSource(folder).example_ids] == list("0134")


def test_unseen_classes_are_ignored_and_the_others_numbered_anew(folder):
    source = RecordSource(folder, unseen_classes=("dog", "train"))
    assert source.class_names == ("cat", "potted plant", "sofa")
    assert [example_id[-1] for example_id in source.example_ids] == list("034")
    np.testing.assert_array_equal(source[0].label_map, [[0, IGNORE], [IGNORE, 2]])
    np.testing.assert_array_equal(source[1].label_map, [[IGNORE, IGNORE], [IGNORE, 1]])
    assert source[0].label_map.dtype == np.int32
    assert (source.num_proposals, source.max_classes_per_image) == (4, 3)
    assert_records_equal(source.record(0), RECORDS[0])


def test_evaluation_keeps_what_training_drops(folder):
    source = RecordSource(folder, unseen_classes=("dog",), drop_empty=False)
    assert len(source) == 5
    np.testing.assert_array_equal(source[1].label_map, np.full((2, 2), IGNORE))


def test_bounds_are_at_least_one(tmp_path):
    folder = write_record_set(tmp_path, [RECORDS[2]])
    with pytest.raises(ValueError, match=r"at least one example .* none of 1 has any"):
        RecordSource(folder)
    source = RecordSource(folder, drop_empty=False)
    assert source.max_classes_per_image == 1
    folder = write_record_set(tmp_path, [RECORDS[3]])
    assert RecordSource(folder).num_proposals == 1


def test_unknown_unseen_class_is_named_with_close_ones(folder):
    with pytest.raises(ValueError, match=r"'pottedplant' is no class .* matches: 'potted plant'"):
        RecordSource(folder, unseen_classes=("dog", "pottedplant"))


def test_fingerprint_follows_content_order_and_classes_but_not_the_place(folder, tmp_path):
    def fingerprint(*arguments, **options):
        return RecordSource(*arguments, **options).fingerprint

    original = fingerprint(folder)
    shutil.copytree(folder, tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == original
    others = [
        fingerprint(folder, unseen_classes=("dog",)),
        fingerprint(folder, drop_empty=False),
        fingerprint(write_record_set(tmp_path / "order", RECORDS[::-1], 2)),
        fingerprint(write_record_set(tmp_path / "names", RECORDS, 2, CLASS_NAMES[::-1])),
        fingerprint(write_record_set(tmp_path / "other", [*RECORDS[:4], make_record(9)], 2)),
    ]
    assert len({original, *others}) == 6


def test_threads_and_pickled_copies_read_the_same(folder):
    source = RecordSource(folder)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    expected = [source[index].proposals.tobytes() for index in range(len(source))]
    order = np.random.default_rng(0).integers(len(source), size=400).tolist()
    with ThreadPoolExecutor(16) as pool:
        for index, example in zip(order, pool.map(copy.__getitem__, order), strict=True):
            assert example.proposals.tobytes() == expected[index]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux does")
def test_no_file_stays_open(folder):
    before = len(os.listdir("/proc/self/fd"))
    source = RecordSource(folder)
    for index in range(len(source)):
        _ = source[index]
    assert len(os.listdir("/proc/self/fd")) == before


def test_unfinished_shards_are_named(folder):
    done_path(folder, "train-00001-of-00002").unlink()
    message = r"1 of 2 shards are not finished: train-00001-of-00002; run .*precompute_proposals"
    with pytest.raises(ValueError, match=message):
        RecordSource(folder)


def test_shards_that_do_not_add_up_are_refused(folder):
    write_shard(folder, "train-00001-of-00002", RECORDS[3:4])
    with pytest.raises(ValueError, match="expected 5 examples, the shards have 4"):
        RecordSource(folder)


def test_example_in_two_shards_is_refused(folder):
    write_shard(folder, "train-00001-of-00002", RECORDS[:2])
    with pytest.raises(ValueError, match="'example 0' is there 2 times"):
        RecordSource(folder)


def test_labels_beyond_the_class_list_are_refused(tmp_path):
    write_record_set(tmp_path, RECORDS, class_names=CLASS_NAMES[:4])
    with pytest.raises(ValueError, match="labels go up to class 4, but the class list has 4"):
        RecordSource(tmp_path)


def test_image_of_another_size_than_its_labels_is_refused(tmp_path):
    image_bytes = make_record(0, size=(24, 20)).image_bytes
    write_record_set(tmp_path, [make_record(1), make_record(0, image_bytes=image_bytes)])
    source = RecordSource(tmp_path)
    assert source[0].image.shape == (20, 24, 3)
    message = r"00001\.tfrecord, byte \d+, example 'example 0': expected an image of 24x20 .* 20x24"
    with pytest.raises(ValueError, match=message):
        _ = source[1]
    assert len(verify_records(tmp_path, progress=False)) == 1


def test_verification_finds_nothing_wrong_with_a_whole_set(folder):
    assert verify_records(folder, progress=False) == []


def test_verification_reports_progress_on_stderr(folder, capsys):
    assert verify_records(folder) == []
    assert "5/5" in capsys.readouterr().err


def test_replaced_shard_of_equal_size_is_noticed(folder, tmp_path):
    """Every checksum inside the file is right, but it is another file than the index is of."""
    for score, other in ((0, folder), (1, tmp_path / "other")):
        write_record_set(other, [make_record(7, scores=np.full(4, score, np.float32))])
    theirs, ours = (record_path(f, "train-00000-of-00001") for f in (tmp_path / "other", folder))
    assert len(theirs.read_bytes()) == len(ours.read_bytes())
    shutil.copy(theirs, ours)
    with pytest.raises(ValueError, match="another record than the index says"):
        _ = RecordSource(folder)[0]
