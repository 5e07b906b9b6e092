"""The data order is a permutation known from (seed, epoch, position) alone, the same on any number of processes."""

import numpy as np
import pytest

from realm_hf.training.data_order import DataOrder, permute, step_positions


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 256, 1000, 4097])
def test_each_epoch_visits_every_row_once(size):
    for epoch in range(3):
        assert sorted(permute(np.arange(size), size, seed=5, epoch=epoch)) == list(range(size))


def test_epochs_and_seeds_give_unrelated_orders():
    orders = [permute(np.arange(1000), 1000, seed, epoch) for seed, epoch in [(1, 0), (1, 1), (2, 0)]]
    for i in range(3):
        # A random permutation has one fixed point on average; and neighbours are far apart.
        assert (orders[i] == orders[(i + 1) % 3]).sum() < 8
        assert (np.abs(np.diff(orders[i])) == 1).mean() < 0.02


def test_positions_of_a_small_set_look_uniform():
    first = [int(permute(np.array([0]), 10, seed, 0)[0]) for seed in range(2000)]
    counts = np.bincount(first, minlength=10)
    assert counts.min() > 140 and counts.max() < 260  # 200 +- 4.5 sigma


def test_stream_crosses_an_epoch_within_one_call():
    order = DataOrder(10, seed=3)
    rows, epochs = order(np.arange(5, 25))
    assert list(epochs) == [0] * 5 + [1] * 10 + [2] * 5
    assert sorted(rows[5:15]) == list(range(10))
    one_by_one = [int(order(np.array([p]))[0][0]) for p in range(5, 25)]
    assert one_by_one == list(rows)


def test_ranks_share_a_step_as_one_process_would_take_it():
    one = step_positions(cursor=40, batch=3, accumulation=4, rank=0, world_size=1)
    two = [step_positions(cursor=40, batch=3, accumulation=2, rank=r, world_size=2) for r in range(2)]
    assert one.tolist() == [two[0][0].tolist(), two[1][0].tolist(), two[0][1].tolist(), two[1][1].tolist()]
    assert sorted(one.ravel()) == list(range(40, 52))


def test_no_row_is_refused():
    with pytest.raises(ValueError, match="0 examples"):
        DataOrder(0, seed=1)
