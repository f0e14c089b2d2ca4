"""Soft masks as bytes; docs/records.md has the measurement that chose this encoding."""

import math

import numpy as np
import zstandard
from jaxtyping import UInt8

from input_pipeline.limits import MAX_UNPACKED_BYTES, check_limit

ZSTD = "zstd"

_LEVEL = 9


def encode_masks(masks: UInt8[np.ndarray, "n grid_h grid_w"]) -> tuple[str, bytes]:
    """The name of the encoding, and the encoded masks. Equal masks give equal bytes."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
    return ZSTD, compressor.compress(np.ascontiguousarray(masks))


def decode_masks(
    codec: str, data: bytes, shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "n grid_h grid_w"]:
    """The masks that `encode_masks` was given, as a read-only array.

    Raises ValueError where the data do not hold exactly `shape`; nothing larger is unpacked.
    """
    if codec != ZSTD:
        raise ValueError(f"expected masks encoded as {ZSTD!r}, got {codec!r}")
    num_bytes = math.prod(shape)
    if min(shape) < 0:
        raise ValueError(f"expected masks of sizes from 0, got shape {shape}")
    check_limit(MAX_UNPACKED_BYTES, num_bytes, f"bytes of masks of shape {shape}")
    try:
        declared = zstandard.frame_content_size(data)
        if declared != num_bytes:
            raise ValueError(
                f"expected {num_bytes} bytes of masks of shape {shape}, got {declared}"
            )
        unpacked = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"masks cannot be unpacked: {error}") from None
    return np.frombuffer(unpacked, np.uint8).reshape(shape)
