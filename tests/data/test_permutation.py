"""A computed permutation is one, for any size and key, and looks shuffled."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_jax.data.permutation import key, mix, permuted


@given(size=st.integers(1, 3_000), secret=st.integers(0, 2**63))
@settings(max_examples=40, deadline=None)
def test_each_element_occurs_once(size: int, secret: int) -> None:
    result = permuted(np.arange(size), size, key(secret))
    assert sorted(result.tolist()) == list(range(size))


def test_sizes_and_keys_may_differ_elementwise() -> None:
    sizes = np.array([5, 5, 1, 1000, 2**40])
    keys = key(3, np.arange(5))
    together = permuted(np.array([0, 4, 0, 999, 2**40 - 1]), sizes, keys)
    alone = [int(permuted(index, size, secret)[0]) for index, size, secret in
             zip([0, 4, 0, 999, 2**40 - 1], sizes, keys, strict=True)]
    assert together.tolist() == alone
    assert (together < sizes).all()


def test_another_key_gives_another_order() -> None:
    orders = {tuple(permuted(np.arange(6), 6, key(secret))) for secret in range(2_000)}
    assert len(orders) > 0.8 * 720


def test_positions_are_uniform_and_neighbours_are_torn_apart() -> None:
    size, draws = 10, 20_000
    first = permuted(np.zeros(draws, np.int64), size, key(np.arange(draws)))
    counts = np.bincount(first, minlength=size)
    assert abs(counts / draws - 1 / size).max() < 0.01
    order = permuted(np.arange(100_000), 100_000, key(1))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02


def test_mix_and_key_are_fixed_for_ever() -> None:
    # saved positions in the data mean an order; another hash would change it silently
    assert mix(0).tolist() == [0xE220A8397B1DCDAF]  # the published first output of splitmix64
    assert permuted(np.arange(8), 8, key(1, 2)).tolist() == [1, 7, 6, 3, 0, 2, 4, 5]
