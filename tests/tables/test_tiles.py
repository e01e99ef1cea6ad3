"""Rows, ranks and lists of tiles on a mesh, held against plain NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.mesh import BOTH, ITEMS, MeshConfig, make_mesh, row_sharding
from rec_jax.tables import Table
from rec_jax.tables.bias import place_bias
from rec_jax.tables.tiles import bias_of, rank_tiles, rows_of, top_k_tiles

TOTAL, ITEM_COUNT, DIM, TILE, ROOM = 48, 45, 3, 4, 16
MESHES = [(1, 1, (ITEMS,)), (4, 1, (ITEMS,)), (2, 2, (ITEMS,)), (1, 8, (ITEMS,)), (2, 4, BOTH)]


def whole(rng, *shape):
    """Small whole numbers: every score is exact, and many tie."""
    return rng.integers(-2, 3, shape).astype(np.float32)


@pytest.fixture(params=MESHES, ids=str)
def placed(request):
    data, items, over = request.param
    mesh = make_mesh(MeshConfig(data, items))
    rows = whole(np.random.default_rng(3), TOTAL, DIM)  # padding would be found, if it competed
    return mesh, Table(jax.device_put(rows, row_sharding(mesh, over)), (), ITEM_COUNT, over)


def test_rows_come_to_who_names_them_and_no_item_is_no_number(placed):
    mesh, table = placed
    rng = np.random.default_rng(0)
    for dtype in (jnp.float32, jnp.bfloat16):
        held = table.replace(rows=table.rows.astype(dtype))
        ids = rng.integers(0, ITEM_COUNT, (8, 5, 2)).astype(np.int32)
        found = jax.jit(lambda ids, held=held: rows_of(mesh, held, ids))(ids)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, np.asarray(table.rows)[ids])
    ids[:, 0, 0] = -1, ITEM_COUNT, TOTAL, 2**31 - 1, -2**31, TOTAL - 1, 1000, -48
    found = np.asarray(jax.jit(lambda ids: rows_of(mesh, table, ids))(ids))
    assert np.isnan(found[:, 0, 0]).all() and not np.isnan(found[:, 1:]).any()


def test_entries_of_a_bias_come_to_who_names_them(placed):
    mesh, table = placed
    values = np.random.default_rng(2).normal(size=ITEM_COUNT).astype(np.float32)
    values[5] = -np.inf
    bias = place_bias(TOTAL, mesh, values=values, over=table.over)
    ids = np.random.default_rng(0).integers(0, ITEM_COUNT, (8, 5)).astype(np.int32)
    ids[0, :3] = 5, -1, ITEM_COUNT
    found = np.asarray(jax.jit(lambda ids: bias_of(mesh, bias, ids, table))(ids))
    np.testing.assert_array_equal(found[1:], values[ids[1:]])
    np.testing.assert_array_equal(found[0, :3], [-np.inf, np.nan, np.nan])


@pytest.mark.parametrize(("filtered", "barred", "biased"), [
    (False, False, False), (True, True, True),
    pytest.param(True, False, True, marks=pytest.mark.slow),
    pytest.param(False, True, False, marks=pytest.mark.slow)])
def test_ranks_and_lists_are_those_of_all_scores(placed, barred, biased, filtered):
    mesh, table = placed
    rng = np.random.default_rng(1)
    used = np.array([True, True, True, False, True, False, False, False])
    queries = whole(rng, 8, TILE, DIM)
    targets = rng.integers(0, ITEM_COUNT, (8, TILE)).astype(np.int32)
    counts = rng.integers(0, 5, (8, TILE))
    offsets = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0))).astype(np.int32)
    seen = rng.integers(0, ITEM_COUNT, (8, ROOM)).astype(np.int32)
    cold = rng.random(ITEM_COUNT) < 0.2
    values = whole(rng, ITEM_COUNT) if biased else None
    bias = place_bias(TOTAL, mesh, values=values, barred=cold if barred else None,
                      over=table.over) if barred or biased else None
    given = (offsets, seen) if filtered else None
    k = 20  # more than the six rows of a device
    ranks, (scores, best) = jax.jit(lambda *args: (
        rank_tiles(mesh, args[0], table, args[1], given, args[2], bias=bias),
        top_k_tiles(mesh, args[0], table, k, given, args[2], bias=bias)))(queries, targets, used)
    dense = queries @ np.asarray(table.rows)[:ITEM_COUNT].T
    dense = dense if values is None else dense + values
    for tile, user in np.argwhere(used[:, None] & np.ones(TILE, bool)):
        mine, target = dense[tile, user], targets[tile, user]
        may = ~(cold & barred)
        if filtered:
            may[seen[tile, offsets[tile, user]:offsets[tile, user + 1]]] = False
        others = may.copy()
        others[target] = False
        if not (barred and cold[target]):
            assert ranks[tile, user] == 1 + np.sum(others & (mine >= mine[target]))
        order = [item for item in np.lexsort((np.arange(ITEM_COUNT), -mine)) if may[item]][:k]
        assert best[tile, user].tolist()[:len(order)] == order
        np.testing.assert_array_equal(np.asarray(scores)[tile, user, :len(order)], mine[order])
