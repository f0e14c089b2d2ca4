"""tf.train.Example messages without TensorFlow, whose import takes a worker process seconds.

The message is described here field by field as in tensorflow/core/example/{example,feature}.proto,
whose field numbers are fixed for good. It lives in a descriptor pool of its own, so that importing
TensorFlow beside it registers nothing twice.
"""

from collections.abc import Mapping

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

Feature = list[bytes] | list[int] | list[float]

_FIELD = descriptor_pb2.FieldDescriptorProto
_LISTS = {
    "BytesList": _FIELD.TYPE_BYTES,
    "FloatList": _FIELD.TYPE_FLOAT,
    "Int64List": _FIELD.TYPE_INT64,
}
_KINDS = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}


def encode_features(features: Mapping[str, Feature]) -> bytes:
    """Serializes named lists of bytes, integers or floats; equal features give equal bytes."""
    example = _Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        if values and isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif values and isinstance(values[0], float):
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend(values)
    return example.SerializeToString(deterministic=True)


def decode_features(data: bytes) -> dict[str, Feature]:
    """The named lists of a serialized message; ValueError where it is none."""
    try:
        example = _Example.FromString(data)
    except message.DecodeError as error:
        raise ValueError(f"expected a tf.train.Example message: {error}") from None
    return {
        name: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else []
        for name, feature in example.features.feature.items()
    }


def _build_message_class() -> type[message.Message]:
    file = descriptor_pb2.FileDescriptorProto(
        name="tensorflow/core/example/example.proto", package="tensorflow", syntax="proto3"
    )
    for name, value_type in _LISTS.items():
        _add_field(file.message_type.add(name=name), "value", 1, value_type, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, list_type) in enumerate(_KINDS.items(), start=1):
        field = _add_field(feature, name, number, list_type)
        field.oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, _FIELD.TYPE_STRING)
    _add_field(entry, "value", 2, "Feature")
    _add_field(features, "feature", 1, "Features.FeatureEntry", repeated=True)
    _add_field(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def _add_field(
    parent: descriptor_pb2.DescriptorProto,
    name: str,
    number: int,
    field_type: int | str,
    repeated: bool = False,
) -> descriptor_pb2.FieldDescriptorProto:
    """A field of a scalar type, or of the message type of that name."""
    label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    field = parent.field.add(name=name, number=number, label=label)
    if isinstance(field_type, str):
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".tensorflow.{field_type}"
    else:
        field.type = field_type
    return field


_Example = _build_message_class()
