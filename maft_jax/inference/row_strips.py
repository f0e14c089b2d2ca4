"""Strips of rows of one image, so that memory does not grow with it."""

from collections.abc import Iterator

from input_pipeline.eval_pipeline import SIZE_MULTIPLE

_PIXELS_AT_A_TIME = 2**22
"""Of a strip, about."""


def row_strips(size: tuple[int, int]) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Rows of each strip of an image of this size, and height and width of arrays that hold it.

    Images of similar sizes have arrays of the same sizes, so that few programs are compiled.
    """
    height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size)
    most = _PIXELS_AT_A_TIME // width // SIZE_MULTIPLE * SIZE_MULTIPLE
    height = min(height, max(most, SIZE_MULTIPLE))
    for first in range(0, size[0], height):
        yield slice(first, min(first + height, size[0])), (height, width)
