"""Packing by histogram: every segment has one place, and little space is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_jax.data.packing import Packing, no_packing, pack


def places(packing: Packing) -> list[list[tuple[int, int, int]]]:
    """For each row: (column, length, number among the segments of that length)."""
    rows = []
    for pattern in range(len(packing.rows) - 1):
        own = range(packing.places[pattern], packing.places[pattern + 1])
        rows += [[(int(packing.columns[place]), int(packing.lengths[place]),
                   int(packing.base[place]) + index) for place in own]
                 for index in range(packing.rows[pattern + 1] - packing.rows[pattern])]
    return rows


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_each_segment_has_one_place_and_rows_do_not_overflow(counts: list[int]) -> None:
    histogram = np.array([0, *counts])
    length = len(counts)
    for packing in (pack(histogram, length), no_packing(histogram)):
        rows = places(packing)
        assert len(rows) == packing.num_rows
        used = sorted((size, number) for row in rows for _, size, number in row)
        assert used == [(size, number) for size in range(1, length + 1)
                        for number in range(histogram[size])]
        for row in rows:
            ends = [column + size for column, size, _ in row]
            assert ends[-1] <= length
            assert [column for column, _, _ in row] == [0, *ends[:-1]]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_no_two_rows_could_share_one(counts: list[int]) -> None:
    rows = places(pack(np.array([0, *counts]), len(counts)))
    filled = sorted(sum(size for _, size, _ in row) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > len(counts)


def test_many_short_segments_fill_rows_almost_completely() -> None:
    lengths = np.random.default_rng(0).geometric(0.1, 100_000).clip(1, 50)
    histogram = np.bincount(lengths, minlength=51)
    packing = pack(histogram, 50)
    assert lengths.sum() / (packing.num_rows * 50) > 0.995
    assert len(packing.rows) < 500  # patterns, not users, are what packing costs


def test_padding_gives_each_segment_its_own_row() -> None:
    assert places(no_packing([9, 2, 0, 1])) == [[(0, 3, 0)], [(0, 1, 0)], [(0, 1, 1)]]


def test_a_histogram_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected length \\+ 1 = 4"):
        pack([0, 1], 3)
