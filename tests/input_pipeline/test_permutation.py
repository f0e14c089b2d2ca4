import numpy as np
import pytest

from input_pipeline.permutation import example_index, permute


@pytest.mark.parametrize("n", range(1, 51))
def test_every_index_appears_once(n):
    for epoch in range(3):
        assert sorted(permute(np.arange(n), n, 5, epoch).tolist()) == list(range(n))


def test_order_never_changes_between_versions():
    assert permute(np.arange(10), 10, seed=0, epoch=0).tolist() == [7, 5, 1, 8, 6, 3, 4, 0, 9, 2]
    assert int(permute(123456, 2**40, seed=1, epoch=2)) == 301244135433


def test_scalar_and_array_agree():
    assert [int(permute(i, 13, 3, 4)) for i in range(13)] == permute(
        np.arange(13), 13, 3, 4
    ).tolist()


def test_epochs_and_seeds_have_their_own_order():
    orders = {tuple(permute(np.arange(20), 20, s, e).tolist()) for s in range(4) for e in range(4)}
    assert len(orders) == 16


def test_all_orders_of_a_small_set_are_about_equally_frequent():
    orders = permute(np.arange(3)[:, None], 3, 1, np.arange(6000))
    _, counts = np.unique(orders, axis=1, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 850 and counts.max() < 1150


def test_each_epoch_of_the_stream_visits_every_example():
    stream = example_index(np.arange(35), 7, seed=-1).reshape(5, 7)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(7), (5, 1)))


def test_index_outside_the_range_is_an_error():
    with pytest.raises(ValueError, match=r"n = 3"):
        permute(3, 3, 0, 0)
