"""Maps from ids to rows, against a dict."""

from __future__ import annotations

import numpy as np
import pytest

from rec_jax.kernels.native import id_map
from rec_jax.tier.id_map import NativeMap, SortedMap, new_map

EXTREMES = np.array([0, -1, 1, 2**63 - 1, -2**63, 2**32, -2**32])


@pytest.mark.parametrize("native", [False, True])
def test_a_map_does_what_a_dict_does(native: bool) -> None:
    random = np.random.default_rng(int(native))
    tried, known = new_map(native=native), {}
    pool = np.concatenate([EXTREMES, random.integers(-2**62, 2**62, 9000),
                           np.arange(3000) * 64 + 17])
    pool = random.permutation(np.unique(pool))
    for turn in range(24):
        there = np.array(list(known), np.int64)
        absent = pool[~np.isin(pool, there)]
        new = random.choice(absent, min(len(absent), 700), replace=False)
        rows = random.integers(1, 2**31, len(new)).astype(np.int32)
        tried.add(new, rows)
        known.update(zip(new.tolist(), rows.tolist(), strict=True))
        if turn % 3 == 2:
            gone = random.choice(np.array(list(known)), len(known) // 2, replace=False)
            tried.remove(gone)
            for one in gone.tolist():
                del known[one]
        asked = random.permutation(np.concatenate([pool, pool[:100], pool + 1]))
        assert tried.find(asked).tolist() == [known.get(one, 0) for one in asked.tolist()]
        assert len(tried) == len(known)


def test_a_full_table_is_searched_to_its_end_and_no_further() -> None:
    table, ids = id_map.new_table(3), np.arange(100, 115)
    assert id_map.insert(table, ids, np.arange(1, 16)) == 15
    assert id_map.find(table, ids).tolist() == list(range(1, 16))
    assert id_map.find(table, np.array([5]))[0] == 0
    assert id_map.insert(table, np.array([5]), np.array([1])) == 0
    assert id_map.erase(table, np.array([5])) == 0 and id_map.erase(table, ids[3:9]) == 6
    assert id_map.find(table, ids).tolist() == [1, 2, 3, 0, 0, 0, 0, 0, 0, *range(10, 16)]


def test_what_is_erased_leaves_no_trace() -> None:
    tried, random = NativeMap(), np.random.default_rng(3)
    for _ in range(30):
        ids = np.unique(random.integers(-2**62, 2**62, 4000))
        tried.add(ids, np.arange(1, len(ids) + 1))
        tried.remove(random.permutation(ids))
        assert not tried.table.any()
    assert len(tried) == 0 and 18 * 4000 < tried.nbytes < 23 * 4000


@pytest.mark.parametrize("kind", [NativeMap, SortedMap])
def test_to_remove_what_is_not_there_is_an_error(kind: type) -> None:
    tried = kind()
    tried.add(np.array([4]), np.array([1]))
    with pytest.raises(ValueError, match="not in the map"):
        tried.remove(np.array([4, 9]))


def test_lines_are_read_whole() -> None:
    table = id_map.new_table(8)
    table.view(np.int64)[:] = np.arange(64).reshape(8, 8)
    assert id_map.read_lines(table, np.array([2, 7, 2])) == 2 * sum(range(16, 24)) + sum(
        range(56, 64))
