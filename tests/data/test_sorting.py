"""Ranges of users hold whole users and stay within the memory that was allowed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rec_jax.data.sorting import user_ranges


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 30))
def test_ranges_of_users_are_whole_and_small(counts: list[int], memory_rows: int) -> None:
    starts, last = user_ranges(np.array(counts, np.int64), memory_rows)
    assert starts[0] == 0
    assert starts[-1] == sum(counts)
    first = 0
    for number, user in enumerate(last):
        rows = sum(counts[first:user + 1])
        assert starts[number + 1] - starts[number] == rows
        assert rows <= memory_rows or user == first
        if user + 1 < len(counts):  # the next user would not have fitted
            assert rows + counts[user + 1] > memory_rows
        first = user + 1
    assert first == len(counts)
