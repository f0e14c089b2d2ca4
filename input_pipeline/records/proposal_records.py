"""The schema of a training record, written and read here alone; docs/records.md explains it."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from input_pipeline.examples import IGNORE
from input_pipeline.limits import MAX_PIXELS, check_limit
from input_pipeline.records.example_message import Feature, decode_features, encode_features
from input_pipeline.records.mask_codec import decode_masks, encode_masks

SCHEMA_VERSION = 1
"""Raised with every change that code which reads the former version would misread."""

IGNORE_IN_8_BITS = 255
IGNORE_IN_16_BITS = 65535

_PROVENANCE = ("generator", "weights_fingerprint", "vocabulary_hash", "code_version")


@dataclass(frozen=True)
class Provenance:
    """What made the proposals of a record."""

    generator: str
    weights_fingerprint: str
    vocabulary_hash: str
    code_version: str


@dataclass(frozen=True)
class ProposalRecord:
    """An example as it is stored: the encoded image, labels of the full class list, proposals.

    `image_size` is (height, width) of the upright image, which `label_map` covers pixel by pixel.
    `class_logits` are the generator's, over a vocabulary of its own; `teacher_probabilities` are
    those of the frozen CLIP for the whole image.
    """

    example_id: str
    image_bytes: bytes
    image_size: tuple[int, int]
    label_map: Int32[np.ndarray, "h w"]
    proposals: UInt8[np.ndarray, "n grid_h grid_w"]
    scores: Float32[np.ndarray, " n"]
    provenance: Provenance
    class_logits: Float32[np.ndarray, "n c"] | None = None
    teacher_probabilities: Float32[np.ndarray, " c"] | None = None


def encode_record(record: ProposalRecord) -> bytes:
    """A serialized tf.train.Example; equal records give equal bytes.

    Raises ValueError where the parts of the record do not fit each other.
    """
    _check(record)
    codec, masks = encode_masks(record.proposals)
    features: dict[str, Feature] = {
        "schema_version": [SCHEMA_VERSION],
        "example_id": [_to_bytes(record.example_id)],
        "image/encoded": [record.image_bytes],
        "image/size": list(record.image_size),
        "label_map/png": [_encode_label_map(record.label_map)],
        "proposals/codec": [_to_bytes(codec)],
        "proposals/masks": [masks],
        "proposals/shape": list(record.proposals.shape),
        "proposals/scores": record.scores.tolist(),
    }
    for name in _PROVENANCE:
        features[f"provenance/{name}"] = [_to_bytes(getattr(record.provenance, name))]
    if record.class_logits is not None:
        features["proposals/class_logits"] = record.class_logits.ravel().tolist()
        features["proposals/num_classes"] = [record.class_logits.shape[1]]
    if record.teacher_probabilities is not None:
        features["teacher/probabilities"] = record.teacher_probabilities.tolist()
    return encode_features(features)


def decode_record(data: bytes, where: str) -> ProposalRecord:
    """The record that `encode_record` was given; its large arrays are read-only.

    Features this version does not know are passed over. Raises ValueError, which starts with
    `where`, for a newer schema, for missing features and for sizes that contradict each other.
    """
    try:
        features = _Features(decode_features(data))
        _check_version(features.integers("schema_version", 1)[0])
        return _decode(features)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def present_classes(label_map: Int32[np.ndarray, "h w"]) -> tuple[int, ...]:
    """Class ids of the labelled pixels, ascending."""
    counts = np.bincount(label_map.ravel() - IGNORE)
    return tuple((np.flatnonzero(counts[1:])).tolist())


def _decode(features: "_Features") -> ProposalRecord:
    height, width = features.integers("image/size", 2)
    shape = features.integers("proposals/shape", 3)
    class_logits = teacher_probabilities = None
    if "proposals/num_classes" in features:
        num_classes = features.integers("proposals/num_classes", 1)[0]
        logits = features.floats("proposals/class_logits", shape[0] * num_classes)
        class_logits = logits.reshape(shape[0], num_classes)
    if "teacher/probabilities" in features:
        teacher_probabilities = features.floats("teacher/probabilities")
    return ProposalRecord(
        example_id=features.text("example_id"),
        image_bytes=features.bytes("image/encoded"),
        image_size=(height, width),
        label_map=_decode_label_map(features.bytes("label_map/png"), (height, width)),
        proposals=decode_masks(
            features.text("proposals/codec"), features.bytes("proposals/masks"), shape
        ),
        scores=features.floats("proposals/scores", shape[0]),
        provenance=Provenance(*(features.text(f"provenance/{name}") for name in _PROVENANCE)),
        class_logits=class_logits,
        teacher_probabilities=teacher_probabilities,
    )


class _Features:
    """Named features of one message, taken out with the type and number that the schema says."""

    def __init__(self, values: dict[str, Feature]):
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def integers(self, name: str, count: int) -> tuple[int, ...]:
        return tuple(self._take(name, int, count))

    def floats(self, name: str, count: int | None = None) -> Float32[np.ndarray, " n"]:
        return np.array(self._take(name, float, count), np.float32)

    def bytes(self, name: str) -> bytes:
        return self._take(name, bytes, 1)[0]

    def text(self, name: str) -> str:
        return self.bytes(name).decode("utf-8", "surrogateescape")

    def _take(self, name: str, kind: type, count: int | None) -> Feature:
        if name not in self._values:
            raise ValueError(
                f"the record has no feature {name!r}; write the records again with "
                "maft_jax.cli.precompute_proposals"
            )
        values = self._values[name]
        if (count is not None and len(values) != count) or not all(
            isinstance(value, kind) for value in values[:1]
        ):
            expected = kind.__name__ if count is None else f"{count} of type {kind.__name__}"
            got = f"{len(values)} of type {type(values[0]).__name__}" if values else "none"
            raise ValueError(f"feature {name!r}: expected {expected}, got {got}")
        return values


def _check_version(version: int) -> None:
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"the record has schema version {version}, this code reads versions up to "
            f"{SCHEMA_VERSION}; update maft_jax, or write the records again with this version"
        )
    if version < 1:
        raise ValueError(f"feature 'schema_version': expected 1 or more, got {version}")


def _check(record: ProposalRecord) -> None:
    height, width = record.image_size
    num_proposals = len(record.proposals)
    _expect(record, "image_bytes", bool(record.image_bytes), "an encoded image", "no bytes")
    _expect(record, "image_size", min(height, width) > 0, "positive sizes", f"{height}, {width}")
    _expect_array(record, "label_map", np.int32, (height, width))
    _expect_array(record, "proposals", np.uint8, (None, None, None))
    _expect_array(record, "scores", np.float32, (num_proposals,))
    if record.class_logits is not None:
        _expect_array(record, "class_logits", np.float32, (num_proposals, None))
    if record.teacher_probabilities is not None:
        _expect_array(record, "teacher_probabilities", np.float32, (None,))
    lowest, highest = int(record.label_map.min()), int(record.label_map.max())
    _expect(
        record,
        "label_map",
        lowest >= IGNORE and highest < IGNORE_IN_16_BITS,
        f"class ids from {IGNORE} to {IGNORE_IN_16_BITS - 1}",
        f"{lowest} to {highest}",
    )
    scores_are_finite = bool(np.isfinite(record.scores).all())
    _expect(record, "scores", scores_are_finite, "finite numbers", "NaN or infinity")


def _expect_array(
    record: ProposalRecord, field: str, dtype: type, shape: tuple[int | None, ...]
) -> None:
    array = getattr(record, field)
    fits = array.dtype == dtype and array.ndim == len(shape)
    fits = fits and all(
        size in (None, found) for size, found in zip(shape, array.shape, strict=True)
    )
    shown = ", ".join("any" if size is None else str(size) for size in shape)
    got = f"{array.dtype} {list(array.shape)}"
    _expect(record, field, fits, f"{np.dtype(dtype)} [{shown}]", got)


def _expect(record: ProposalRecord, field: str, fits: bool, expected: str, got: str) -> None:
    if not fits:
        raise ValueError(f"{record.example_id}: {field}: expected {expected}, got {got}")


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _encode_label_map(label_map: Int32[np.ndarray, "h w"]) -> bytes:
    narrow = label_map.max() < IGNORE_IN_8_BITS
    dtype, ignore = (np.uint8, IGNORE_IN_8_BITS) if narrow else (np.uint16, IGNORE_IN_16_BITS)
    values = np.where(label_map == IGNORE, ignore, label_map).astype(dtype)
    content = io.BytesIO()
    Image.fromarray(values).save(content, "png")
    return content.getvalue()


def _decode_label_map(png: bytes, size: tuple[int, int]) -> Int32[np.ndarray, "h w"]:
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            found = image.size[::-1]
            if found != size or image.mode not in ("L", "I;16"):
                raise ValueError(
                    f"expected {size[1]}x{size[0]} grey pixels, got {found[1]}x{found[0]} of mode "
                    f"{image.mode}"
                )
            check_limit(MAX_PIXELS, size[0] * size[1], f"pixels of {size[1]} x {size[0]}")
            ignore = IGNORE_IN_8_BITS if image.mode == "L" else IGNORE_IN_16_BITS
            values = np.array(image, np.int32)
    except Exception as error:  # Of many kinds: Pillow's decoders have no common one.
        raise ValueError(f"feature 'label_map/png': {error}") from None
    values[values == ignore] = IGNORE
    return values
