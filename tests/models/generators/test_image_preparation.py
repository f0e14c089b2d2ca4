"""Images as the generators' own code prepares them: sizes, pixels, padding."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.models.generators.image_preparation import (
    OFFICIAL_PREPARATION,
    ImagePreparation,
    normalised,
)
from tests.golden_files import golden


@pytest.fixture(scope="module")
def arrays():
    return golden("generators/preprocessing")


@pytest.mark.parametrize("case", "abcde")
def test_pixels_are_resized_as_transformers_resizes_them(arrays, case):
    settings = json.loads(str(arrays[f"{case}_settings"]))
    preparation = ImagePreparation.of_transformers(settings, "preprocessor_config.json")
    resized = preparation.prepare(arrays[f"{case}_image_uint8"])
    np.testing.assert_array_equal(resized, arrays[f"{case}_resized_uint8"])
    if preparation.divisor == 32:
        assert (
            preparation.padded_size(*arrays[f"{case}_image_uint8"].shape[:2]) == resized.shape[:2]
        )


def test_images_of_a_batch_are_normalised_and_padded_with_zeros(arrays):
    """The second image is smaller than the batch: what lies beyond it does not matter."""
    settings = {"size": {"shortest_edge": 48, "longest_edge": 96}, "size_divisor": 32}
    preparation = ImagePreparation.of_transformers(settings, "here")
    expected = np.moveaxis(arrays["batch_pixel_values"], 1, -1)
    pixels = np.full(expected.shape, 77, np.uint8)
    sizes = []
    for index in range(2):
        resized = preparation.prepare(arrays[f"batch_image_{index}_uint8"])
        pixels[index, : resized.shape[0], : resized.shape[1]] = resized
        sizes.append(resized.shape[:2])
        mask = arrays["batch_pixel_mask"][index]
        assert sizes[-1] == (mask.any(1).sum(), mask.any(0).sum())
    found = normalised(jax.device_put(pixels), jnp.array(sizes))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)  # kept in float16
    exact = arrays["b_pixel_values"]
    resized = jax.device_put(arrays["b_resized_uint8"])[None]
    found = normalised(resized, jnp.array([resized.shape[1:3]]))[0]
    np.testing.assert_allclose(found, np.moveaxis(exact, 0, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "resized", "padded"),
    [
        ((480, 640), (640, 853), (640, 864)),
        ((640, 640), (640, 640), (640, 640)),
        ((100, 1000), (256, 2560), (256, 2560)),
        ((333, 251), (849, 640), (864, 640)),
    ],
)
def test_the_official_geometry_keeps_the_aspect_ratio_and_pads(image, resized, padded):
    assert OFFICIAL_PREPARATION.resized_size(*image) == resized
    assert OFFICIAL_PREPARATION.padded_size(*image) == padded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean: expected"),
        ({"do_resize": False}, "do_resize: expected True"),
        ({"size": {"width": 3}}, "size: expected height and width"),
        ({"size": {"shortest_edge": "800"}}, "shortest_edge: expected an integer"),
        ({"size": {"shortest_edge": 800}, "size_divisor": -1}, "size_divisor: expected"),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^folder/preprocessor_config.json: {message}"):
        ImagePreparation.of_transformers(settings, "folder/preprocessor_config.json")


def test_settings_of_early_versions_and_defaults_are_known():
    early = ImagePreparation.of_transformers({"size": 512, "max_size": 2048}, "here")
    assert (early.shortest_edge, early.longest_edge, early.divisor) == (512, 2048, 32)
    default = ImagePreparation.of_transformers({}, "here")
    assert (default.shortest_edge, default.longest_edge, default.stretch) == (800, 1333, True)
