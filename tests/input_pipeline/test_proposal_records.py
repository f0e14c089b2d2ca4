import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError

from input_pipeline.examples import IGNORE
from input_pipeline.records import proposal_records
from input_pipeline.records.example_message import decode_features, encode_features
from input_pipeline.records.proposal_records import decode_record, encode_record, present_classes
from tests.record_sets import assert_records_equal, make_record

OPTIONAL = {
    "class_logits": np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32),
    "teacher_probabilities": np.array([0.25, 0.75], np.float32),
}


def _labels(*values, dtype=np.int32):
    return np.array([values], dtype)


@pytest.mark.parametrize(
    "record",
    [
        make_record(0),
        make_record(1, **OPTIONAL),
        make_record(2, num_proposals=0, class_logits=np.zeros((0, 3), np.float32)),
        make_record(3, num_proposals=1000),
        make_record(4, size=(1, 1)),
        make_record(5, example_id="höhle/写真 1"),
        make_record(6, example_id="not \udcff utf-8"),
        make_record(7, size=(1, 3), label_map=_labels(IGNORE, 846, 65534)),
        make_record(8, label_map=np.full((20, 24), IGNORE, np.int32)),
    ],
    ids=lambda record: record.example_id,
)
def test_records_come_back_as_they_were(record):
    assert_records_equal(decode_record(encode_record(record), "here"), record)


def test_message_is_what_tensorflow_writes_and_reads():
    data = encode_record(make_record(1, **OPTIONAL))
    message = tf.train.Example.FromString(data)
    assert message.SerializeToString(deterministic=True) == data
    assert decode_features(data) == {
        name: list(getattr(feature, feature.WhichOneof("kind")).value)
        for name, feature in message.features.feature.items()
    }


def test_any_features_are_what_tensorflow_writes_and_reads():
    draw = np.random.default_rng(0)
    integers = [0, 1, 127, 128, -1, 2**63 - 1, -(2**63)]
    kinds = (
        lambda n: [draw.bytes(draw.choice([0, 1, 127, 128, 20000])) for _ in range(n)],
        lambda n: draw.standard_normal(n).tolist(),
        lambda n: draw.choice(integers, n).tolist(),
    )
    for _ in range(50):
        names = {prefix * draw.integers(12) + suffix for prefix in "aé" for suffix in ("", "/b")}
        features = {name: kinds[draw.integers(3)](draw.integers(1, 200)) for name in names}
        data = encode_features(features | {"none": []})
        message = tf.train.Example.FromString(data)
        assert message.SerializeToString(deterministic=True) == data
        read = message.features.feature
        assert decode_features(data) == {name: _values(read[name]) for name in read}
    assert encode_features({}) == b"" and decode_features(b"") == {}


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64", "uint64"])
def test_numpys_integers_are_integers(dtype):
    numbers = [0, 1, 127]
    assert encode_features({"a": list(np.array(numbers, dtype))}) == encode_features({"a": numbers})


@pytest.mark.parametrize(
    "value", [True, np.True_, np.float32(1), "1", None, 2**63, -(2**63) - 1, np.uint64(2**63)]
)
def test_no_other_values_are_integers(value):
    for others in ([1], [b"1"], [1.5]):
        with pytest.raises(ValueError, match=r"feature 'a': expected bytes alone.*got ") as caught:
            encode_features({"a": [*others, value]})
        assert type(value).__name__ in str(caught.value).partition("got ")[2]


def test_numbers_may_be_unpacked_lists_in_parts_and_fields_unknown():
    """What other writers may do: serializations that follow each other are one message."""
    one, two = (tf.train.Example() for _ in range(2))
    one.features.feature["a"].int64_list.value.extend([1, -1])
    two.features.feature["a"].float_list.value.extend([0.5])
    unpacked = b"\x0a\x0d\x0a\x0b\x0a\x01b\x12\x06\x1a\x04\x08\x03\x08\x7f\x78\x01\x7d1234"
    data = one.SerializeToString() + two.SerializeToString() + unpacked
    theirs = tf.train.Example.FromString(data).features.feature
    assert decode_features(data) == {name: _values(theirs[name]) for name in theirs}
    assert decode_features(data) == {"a": [0.5], "b": [3, 127]}


def _values(feature) -> list:
    return list(getattr(feature, feature.WhichOneof("kind")).value)


def test_a_tensorflow_pipeline_reads_the_schema():
    record = make_record(0)
    read = tf.io.parse_single_example(
        encode_record(record),
        {
            "schema_version": tf.io.FixedLenFeature([], tf.int64),
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/size": tf.io.FixedLenFeature([2], tf.int64),
            "label_map/png": tf.io.FixedLenFeature([], tf.string),
            "proposals/shape": tf.io.FixedLenFeature([3], tf.int64),
            "proposals/scores": tf.io.VarLenFeature(tf.float32),
            "provenance/generator": tf.io.FixedLenFeature([], tf.string),
        },
    )
    assert read["schema_version"] == 1
    assert read["image/encoded"] == record.image_bytes
    assert tuple(read["image/size"]) == (20, 24)
    assert tuple(read["proposals/shape"]) == (4, 5, 6)
    assert read["provenance/generator"] == b"superpixels"
    np.testing.assert_array_equal(read["proposals/scores"].values, record.scores)
    labels = tf.io.decode_png(read["label_map/png"])[..., 0].numpy()
    np.testing.assert_array_equal(labels, np.where(record.label_map < 0, 255, record.label_map))


@pytest.mark.parametrize(
    ("highest", "dtype", "ignore"), [(254, tf.uint8, 255), (255, tf.uint16, 65535)]
)
def test_label_maps_take_16_bits_only_where_255_is_a_class(highest, dtype, ignore):
    record = make_record(0, size=(1, 3), label_map=_labels(IGNORE, 0, highest))
    png = decode_features(encode_record(record))["label_map/png"][0]
    values = tf.io.decode_png(png, dtype=tf.uint16)[0, :, 0].numpy() // (
        257 if ignore == 255 else 1
    )
    assert values.tolist() == [ignore, 0, highest]
    np.testing.assert_array_equal(
        decode_record(encode_record(record), "").label_map, record.label_map
    )


def test_equal_records_give_equal_bytes():
    assert encode_record(make_record(3)) == encode_record(make_record(3))
    assert encode_record(make_record(3)) != encode_record(make_record(4))


def test_newer_schema_is_refused_with_both_versions(monkeypatch):
    monkeypatch.setattr(proposal_records, "SCHEMA_VERSION", 3)
    data = encode_record(make_record(0))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"^here: .*version 3, .* reads versions up to 1; update"):
        decode_record(data, "here")


def test_schema_version_below_one_is_refused():
    with pytest.raises(ValueError, match="expected 1 or more, got 0"):
        decode_record(_changed(schema_version=[0]), "here")


def test_features_of_others_are_passed_over():
    record = make_record(0)
    features = decode_features(encode_record(record)) | {"depth/png": [b"123"], "z": []}
    assert_records_equal(decode_record(encode_features(features), "here"), record)


@pytest.mark.parametrize("name", sorted(decode_features(encode_record(make_record(1, **OPTIONAL)))))
def test_missing_features_are_named(name):
    record = make_record(1, **OPTIONAL)
    features = decode_features(encode_record(record))
    del features[name]
    data = encode_features(features)
    if name in ("proposals/num_classes", "teacher/probabilities"):
        decoded = decode_record(data, "here")
        assert decoded.class_logits is None or decoded.teacher_probabilities is None
        return
    with pytest.raises(ValueError, match=f"^here: the record has no feature '{name}'; write"):
        decode_record(data, "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proposals/scores": [0.5]}, "'proposals/scores': expected 4 of type float, got 1"),
        ({"proposals/scores": [1, 2, 3, 4]}, "expected 4 of type float, got 4 of type int"),
        ({"proposals/scores": []}, "expected 4 of type float, got none"),
        ({"proposals/shape": [4, 5]}, "'proposals/shape': expected 3 of type int, got 2"),
        ({"proposals/shape": [4, 5, 7]}, "expected 140 bytes of masks"),
        ({"proposals/codec": [b"lzma"]}, "encoded as 'zstd', got 'lzma'"),
        ({"image/size": [20, 25]}, "'label_map/png': expected 25x20 grey pixels, got 24x20"),
        ({"label_map/png": [b"GIF89a"]}, "'label_map/png': cannot identify"),
        ({"example_id": [1]}, "'example_id': expected 1 of type bytes, got 1 of type int"),
    ],
)
def test_features_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^here: .*{message}"):
        decode_record(_changed(**changes), "here")


def test_cut_off_label_map_is_refused():
    png = decode_features(encode_record(make_record(0)))["label_map/png"][0]
    with pytest.raises(ValueError, match=r"^here: feature 'label_map/png'"):
        decode_record(_changed(**{"label_map/png": [png[:-40]]}), "here")


def test_fields_without_a_number_are_refused_as_protobuf_refuses_them():
    for data in (bytes(8), encode_features({"a": [1]}) + b"\x02\x01x"):
        with pytest.raises(DecodeError):
            tf.train.Example.FromString(data)
        with pytest.raises(ValueError, match=r"expected a tf\.train\.Example message: a field"):
            decode_features(data)


def test_data_that_are_no_message_are_refused():
    with pytest.raises(ValueError, match=r"^here: expected a tf\.train\.Example"):
        decode_record(b"\xff\xff\xff", "here")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scores": np.zeros(3, np.float32)}, r"scores: expected float32 \[4\], got float32 \[3\]"),
        ({"scores": np.full(4, np.nan, np.float32)}, "scores: expected finite numbers"),
        ({"scores": np.zeros(4)}, r"scores: expected float32 \[4\], got float64 \[4\]"),
        ({"proposals": np.zeros((4, 5), np.uint8)}, "proposals: expected uint8"),
        ({"proposals": np.zeros((4, 5, 6), bool)}, "proposals: expected uint8"),
        ({"label_map": np.zeros((24, 20), np.int32)}, r"label_map: expected int32 \[20, 24\]"),
        ({"label_map": np.full((20, 24), 65535, np.int32)}, "label_map: expected class ids"),
        ({"label_map": np.full((20, 24), -2, np.int32)}, "label_map: expected class ids"),
        ({"class_logits": np.zeros((3, 9), np.float32)}, "class_logits: expected float32"),
        ({"image_bytes": b""}, "image_bytes: expected an encoded image"),
        ({"image_size": (0, 24)}, "image_size: expected positive sizes, got 0, 24"),
    ],
)
def test_records_that_contradict_themselves_are_not_written(fields, message):
    with pytest.raises(ValueError, match=f"^example 0: {message}"):
        encode_record(make_record(0, **fields))


def test_present_classes_are_those_with_pixels():
    assert present_classes(_labels(IGNORE, 7, 0, 7)) == (0, 7)
    assert present_classes(_labels(IGNORE)) == ()


def test_records_are_read_without_tensorflow():
    """Worker processes that write records would each take seconds to import it."""
    code = (
        "import sys, input_pipeline.records.record_verification as _; "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'jax', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _changed(**features) -> bytes:
    return encode_features(decode_features(encode_record(make_record(0))) | features)
