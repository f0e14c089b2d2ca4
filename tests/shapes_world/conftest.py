"""One draw of pictures and captions for all tests here: it starts a pool of processes."""

import pytest

from maft_jax.shapes_world.caption_pairs import draw_pairs

NUM_PICTURES, SEED = 100, 3


@pytest.fixture(scope="session")
def drawn_pairs():
    """(what `draw_pairs` gave, its arguments)."""
    return draw_pairs(NUM_PICTURES, SEED), (NUM_PICTURES, SEED)
