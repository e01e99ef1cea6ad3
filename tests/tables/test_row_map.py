"""Which row an item has: a bijection, the same in NumPy and JAX, that no popular id burdens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.tables.row_map import STRIPES, RowMap, read_row_map, row_map_of, spread
from rec_jax.tables.table import MAX_ITEMS, TableConfig, init_table, padded_size

SIZES = [1, 2, 7, 8, 15, 16, 17, 50, 100, 771, 5000, 257 * 19, 257 * 19 + 1, 257 * 20 - 1, 10**5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("library", [np, jnp])
def test_every_id_has_a_row_of_its_own_and_padding_stays(size, library):
    order = spread(size)
    ids = library.arange(size + 40, dtype=np.int32)
    rows = order.rows(ids)
    assert rows.dtype == np.int32
    assert sorted(np.asarray(rows[:size]).tolist()) == list(range(size))
    np.testing.assert_array_equal(rows[size:], ids[size:])
    np.testing.assert_array_equal(order.ids(rows), ids)
    np.testing.assert_array_equal(order.rows(order.ids(ids)), ids)


@pytest.mark.parametrize("size", [MAX_ITEMS, MAX_ITEMS - 1, 257 * 8_000_000 + 255])
def test_int32_is_enough_for_the_largest_table(size):
    order = spread(size)
    ids = np.concatenate([np.arange(1000), np.random.default_rng(0).integers(0, size, 10_000),
                          np.arange(size - 1000, size)])
    rows = order.rows(ids)  # int64
    assert rows.min() >= 0 and rows.max() < size
    np.testing.assert_array_equal(order.ids(rows), ids)
    assert len(np.unique(rows)) == len(np.unique(ids))
    np.testing.assert_array_equal(order.rows(jnp.asarray(ids, jnp.int32)), rows)
    np.testing.assert_array_equal(jax.jit(order.ids)(jnp.asarray(rows, jnp.int32)), ids)


def test_what_is_no_item_is_left_alone():
    order = spread(5000)
    none = np.array([-1, -2**31, 5000, 2**31 - 1], np.int32)
    for library in (np, jnp):
        np.testing.assert_array_equal(order.rows(library.asarray(none)), none)
        np.testing.assert_array_equal(order.ids(library.asarray(none)), none)


def test_without_stripes_a_row_is_an_id():
    for order in (RowMap(100), spread(3), row_map_of("dense", 10**6), read_row_map(None, 100)):
        ids = np.arange(100)
        np.testing.assert_array_equal(order.rows(ids), ids)
        np.testing.assert_array_equal(order.ids(ids), ids)


@pytest.mark.parametrize("shards", [2, 3, 8, 24, 64])
@pytest.mark.parametrize("size", [10**5, 10**6])
def test_shards_get_even_shares_of_popular_of_all_and_of_every_nth_id(shards, size):
    order, per_shard = spread(size), padded_size(size) // shards
    random = np.random.default_rng(0)
    for ids in (np.arange(2000), np.arange(20_000), np.arange(size - 20_000, size),
                random.integers(0, size, 20_000), np.arange(0, size, 2)[:40_000],
                np.arange(0, size, 7), np.arange(0, size, 256), np.arange(0, size, 768),
                np.arange(5, size, 1000)):
        ids = np.unique(ids)
        loads = np.bincount(order.rows(ids) // per_shard, minlength=shards)
        even = len(ids) * per_shard / size
        # A shard may begin more of the stripes than its share of the rows says: by one.
        assert loads.max() <= even * (1 + 2 * shards / STRIPES) + 5 * even**0.5


def test_a_map_is_read_back_from_what_a_checkpoint_keeps():
    order = spread(5000)
    assert read_row_map(order.to_json(), 5000) == order
    assert read_row_map(RowMap(5000).to_json(), 5000) == RowMap(5000)


@pytest.mark.parametrize(("stripes", "step", "num_items"), [
    (1, 1, 1), (1, 1, 100), (7, 7, 100), (7, 0, 100), (7, 8, 100), (7, 3, 7), (7, 3, 6),
    (9, 6, 100), (2**15, 2**15 - 1, 2**15), (2**15, 3, 10**6), (2**15 + 1, 3, 10**6),
    (0, 1, 100), (-7, 1, 100)])
def test_a_map_is_read_where_it_is_one_and_only_there(stripes, step, num_items):
    kept = {"stripes": stripes, "step": step}
    # No stripe is empty, and steps of `step` meet every stripe.
    is_map = 1 <= stripes <= 2**15 and 1 <= step <= stripes and (stripes == 1 or (
        stripes <= num_items
        and {step * turn % stripes for turn in range(stripes)} == set(range(stripes))))
    if not is_map:
        with pytest.raises(ValueError, match=f"a map of {num_items} items"):
            read_row_map(kept, num_items)
        return
    order = read_row_map(kept, num_items)
    rows = order.rows(np.arange(num_items))
    assert np.array_equal(np.sort(rows), np.arange(num_items))
    np.testing.assert_array_equal(order.ids(rows), np.arange(num_items))


@pytest.mark.parametrize("kept", [
    {}, {"stripes": 7}, {"stripes": 7, "step": 0}, {"stripes": 8, "step": 2},
    {"stripes": 7, "step": 9}, {"stripes": 0, "step": 0}, {"stripes": "7", "step": 3},
    {"stripes": 7.0, "step": 3}, {"stripes": True, "step": 1}, {"stripes": 2**20 + 7, "step": 1},
    {"stripes": 101, "step": 3}, [1, 1], 7])
def test_numbers_that_make_no_map_are_refused(kept):
    with pytest.raises((ValueError, KeyError, TypeError)):
        read_row_map(kept, 100)


def test_first_values_follow_the_id():
    config, order = TableConfig(dim=4), spread(1000)
    plain, moved = (init_table(config, 1000, 3, row_map=each) for each in (None, order))
    ids = np.arange(plain.rows.shape[0])
    assert not np.array_equal(plain.rows, moved.rows)
    np.testing.assert_array_equal(np.asarray(moved.rows)[order.rows(ids)], plain.rows)
