import numpy as np
import pytest
from skimage.color import hsv2rgb, rgb2hsv

from input_pipeline.color_jitter import ColorJitter, draw_color_jitter, jitter_colors

RNG = np.random.default_rng(0)


def _jittered(pixels, jitter):
    pixels = np.asarray(pixels, np.uint8)
    out = np.empty_like(pixels)
    jitter_colors(pixels, jitter, out)
    return out


def _in_hsv(pixels, jitter):
    """The same by scikit-image, in double precision."""
    pixels = np.clip(pixels.astype(float) + jitter.brightness, 0, 255)
    hsv = rgb2hsv(np.clip(pixels * jitter.early_contrast, 0, 255) / 255)
    hsv[..., 1] = np.clip(hsv[..., 1] * jitter.saturation, 0, 1)
    hsv[..., 0] = (hsv[..., 0] + jitter.hue) % 1
    return np.clip(hsv2rgb(hsv) * 255 * jitter.late_contrast, 0, 255)


@pytest.mark.parametrize("hue", [-0.1, -0.03, 0.0, 0.02, 0.1])
@pytest.mark.parametrize("saturation", [0.5, 1.0, 1.5])
@pytest.mark.parametrize(
    "brightness, early, late", [(0.0, 1.0, 1.0), (30.0, 1.4, 1.0), (-30.0, 1.0, 0.6)]
)
def test_jitter_is_what_scikit_image_computes_in_hsv(hue, saturation, brightness, early, late):
    """All hues, greys, black, white; more rows than are computed at a time."""
    pixels = RNG.integers(0, 256, (150, 40, 3)).astype(np.uint8)
    pixels[:20] = pixels[:20, :, :1]
    pixels[20:60] = np.where(pixels[20:60] > 127, 255, 0)
    jitter = ColorJitter(brightness, early, saturation, hue, late)
    assert np.abs(_jittered(pixels, jitter) - _in_hsv(pixels, jitter)).max() < 0.501


@pytest.mark.parametrize(
    "jitter, color, expected",
    [
        (ColorJitter(), (10, 100, 250), (10, 100, 250)),
        (ColorJitter(brightness=32.0), (10, 100, 250), (42, 132, 255)),
        (ColorJitter(early_contrast=0.5), (10, 100, 250), (5, 50, 125)),
        (ColorJitter(late_contrast=0.5), (10, 100, 250), (5, 50, 125)),
        (ColorJitter(saturation=0.5), (200, 100, 100), (200, 150, 150)),
        (ColorJitter(saturation=1.5), (200, 100, 20), (200, 89, 0)),
        (ColorJitter(hue=1 / 12), (200, 0, 0), (200, 100, 0)),
        (ColorJitter(hue=-1 / 12), (200, 0, 0), (200, 0, 100)),
    ],
)
def test_each_jitter_does_what_it_says(jitter, color, expected):
    assert _jittered([[color]], jitter)[0, 0].tolist() == [
        pytest.approx(e, abs=1) for e in expected
    ]


def test_undrawn_jitter_is_none():
    assert draw_color_jitter(np.array([0.5] * 4 + [0.1] * 5)) == ColorJitter()


@pytest.mark.parametrize("first", [0.0, 0.9])
def test_extreme_draws_are_the_published_ranges(first):
    low = draw_color_jitter(np.array([0.0] * 4 + [first] + [0.0] * 4))
    high = draw_color_jitter(np.array([0.0] * 4 + [first] + [1.0] * 4))
    assert (low.brightness, high.brightness) == (-32, 32)
    assert (low.saturation, high.saturation) == (0.5, 1.5)
    # 18 of OpenCV's 180 hues.
    assert (low.hue, high.hue) == (pytest.approx(-18 / 180), pytest.approx(18 / 180))
    early, late = (0.5, 1.0) if first == 0.0 else (1.0, 0.5)
    assert (low.early_contrast, low.late_contrast) == (early, late)


def test_input_stays_as_it_is():
    pixels = RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    before = pixels.copy()
    _jittered(pixels, ColorJitter(10.0, 1.2, 1.3, 0.05, 1.0))
    np.testing.assert_array_equal(pixels, before)
