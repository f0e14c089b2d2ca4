"""The colour jitter of SSD (Liu et al., 2016) as detectron2 applies it, on 8-bit RGB.

Hue and saturation are changed as in HSV, whose value is the largest of R, G and B. With chroma
c = max - min and the hue in sixths of the circle, h, every colour is max - D(h) c, where D falls
and rises linearly between 0 and 1: no division, and no conversion there and back, is needed.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt8

NUM_DRAWS = 9
_ROWS_AT_A_TIME = 64  # So that the planes of one strip stay in a core's cache.


@dataclass(frozen=True)
class ColorJitter:
    """Applied in this order; the defaults change nothing.

    `brightness` is added, the gains multiply contrast and saturation, `hue` is a part of the
    circle. Contrast comes early or late, never twice.
    """

    brightness: float = 0.0
    early_contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    late_contrast: float = 1.0


def draw_color_jitter(draws: Float64[np.ndarray, " draws"]) -> ColorJitter:
    """Brightness +-32, contrast and saturation x0.5 to x1.5, hue +-36 degrees.

    Each has probability one half, and so has contrast before saturation and hue rather than after
    them. Needs NUM_DRAWS uniform draws of [0, 1).
    """
    use_brightness, use_contrast, use_saturation, use_hue, contrast_first = map(
        bool, draws[:5] < 0.5
    )
    brightness, contrast, saturation, hue = map(float, draws[5:])
    gain = 0.5 + contrast if use_contrast else 1.0
    return ColorJitter(
        brightness=64.0 * brightness - 32.0 if use_brightness else 0.0,
        early_contrast=gain if contrast_first else 1.0,
        saturation=0.5 + saturation if use_saturation else 1.0,
        hue=0.2 * hue - 0.1 if use_hue else 0.0,
        late_contrast=1.0 if contrast_first else gain,
    )


def jitter_colors(
    pixels: UInt8[np.ndarray, "h w 3"], jitter: ColorJitter, out: UInt8[np.ndarray, "h w 3"]
) -> None:
    """Writes the jittered pixels to `out`, computed in float32 and rounded once."""
    levels = np.arange(256, dtype=np.float32)
    levels = np.clip(levels + np.float32(jitter.brightness), 0, 255)
    levels = np.clip(levels * np.float32(jitter.early_contrast), 0, 255)
    if jitter.saturation == 1.0 and jitter.hue == 0.0:
        levels = np.clip(levels * np.float32(jitter.late_contrast), 0, 255)
        out[...] = np.take((levels + np.float32(0.5)).astype(np.uint8), pixels)
        return
    strip_shape = (min(len(pixels), _ROWS_AT_A_TIME), pixels.shape[1])
    planes, scratch = (np.empty((n, *strip_shape), np.float32) for n in (3, 4))
    for first in range(0, len(pixels), _ROWS_AT_A_TIME):
        strip = pixels[first : first + _ROWS_AT_A_TIME]
        planes, scratch = planes[:, : len(strip)], scratch[:, : len(strip)]
        for channel in range(3):
            # Any mode but the default writes to `out` without a buffer.
            np.take(levels, strip[..., channel], out=planes[channel], mode="clip")
        _adjust_saturation_and_hue(planes, jitter.saturation, jitter.hue, scratch)
        if jitter.late_contrast != 1.0:
            planes *= np.float32(jitter.late_contrast)
            np.minimum(planes, 255, out=planes)
        planes += np.float32(0.5)
        for channel in range(3):
            out[first : first + len(strip), :, channel] = planes[channel]


def _adjust_saturation_and_hue(
    planes: Float32[np.ndarray, "3 h w"],
    gain: float,
    turn: float,
    scratch: Float32[np.ndarray, "4 h w"],
) -> None:
    """In place. `gain` multiplies the saturation, which is at most 1; `turn` is of the circle."""
    largest, chroma, factor, _ = scratch
    np.maximum(np.maximum(planes[0], planes[1], out=largest), planes[2], out=largest)
    np.minimum(np.minimum(planes[0], planes[1], out=chroma), planes[2], out=chroma)
    np.subtract(largest, chroma, out=chroma)
    if turn:
        _turn_hue(planes, np.float32(6.0 * turn), scratch)
    else:
        np.subtract(largest, planes, out=planes)
    if gain > 1.0:
        np.maximum(chroma, np.float32(1e-6), out=factor)
        np.divide(largest, factor, out=factor)
        planes *= np.minimum(factor, np.float32(gain), out=factor)
    elif gain < 1.0:
        planes *= np.float32(gain)
    np.subtract(largest, planes, out=planes)


def _turn_hue(
    planes: Float32[np.ndarray, "3 h w"], turn: np.float32, scratch: Float32[np.ndarray, "4 h w"]
) -> None:
    """Replaces each channel by its distance from the largest after `turn` sixths of the circle.

    Everything is multiplied by the chroma: hues lie between -2 and 6 times the chroma.
    """
    red, green, blue = planes
    largest, chroma, hue, other = scratch
    np.multiply(chroma, 4, out=hue)
    hue += red
    hue -= green
    np.multiply(chroma, 2, out=other)
    other += blue
    other -= red
    np.copyto(hue, other, where=green == largest)
    np.subtract(green, blue, out=other)
    np.copyto(hue, other, where=red == largest)
    np.multiply(chroma, turn, out=other)
    hue += other
    for distance, center in zip(planes, (3, 2, 4), strict=True):
        np.multiply(chroma, center, out=distance)
        distance -= hue
        np.abs(distance, out=distance)
        distance -= chroma
    # Left of 0 the circle goes on where it ends at 6: blue falls to 0 at -1, red rises from there.
    np.add(hue, chroma, out=hue)
    np.minimum(blue, hue, out=blue)
    np.subtract(chroma, red, out=red)
    np.maximum(red, np.negative(hue, out=hue), out=red)
    np.maximum(planes, 0, out=planes)
    np.minimum(planes, chroma, out=planes)
