"""One round of messages suffices for popular ids and for uniform ones, and more where it must."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.tables import RowMap, TableConfig, init_table
from rec_jax.tables.on_mesh import fetch
from rec_jax.tables.row_map import spread

V, POSITIONS = 100_000, 8 * 512


@functools.cache
def fetching(data: int, items: int, moved: bool, slack: float | None = None):
    """ids `[POSITIONS]` -> (rounds, vectors of the distinct rows by position are right)."""
    mesh = make_mesh(MeshConfig(data, items))
    order = spread(V) if moved else RowMap(V)
    table = init_table(TableConfig(dim=2), V, 0, mesh, row_map=order)
    run = jax.jit(lambda ids: fetch(mesh, table, {"ids": ids[None]},
                                    {"ids": ids[None] >= 0}, slack=slack))
    rows = np.asarray(table.rows)

    def check(ids: np.ndarray) -> int:
        fetched = run(ids.astype(np.int32))
        # `slot` counts within a device, each with as many slots as it has positions.
        first = np.arange(POSITIONS) // (POSITIONS // 8) * (POSITIONS // 8)
        found = np.asarray(fetched.rows)[first + np.asarray(fetched.unique.slot)]
        np.testing.assert_array_equal(found, rows[order.rows(ids)])
        return int(fetched.route.rounds)

    return check


def drawn(name: str, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if name == "uniform":
        return random.integers(0, V, POSITIONS)
    chances = np.arange(1, V + 1) ** -1.05
    return random.choice(V, POSITIONS, p=chances / chances.sum())


@pytest.mark.parametrize(("data", "items"), [(1, 8), (2, 4)])
@pytest.mark.parametrize("name", ["zipf", "uniform"])
def test_one_round_suffices(name, data, items):
    rounds = [fetching(data, items, True)(drawn(name, seed)) for seed in range(8)]
    assert rounds == [1] * 8


def test_without_spreading_popular_ids_need_more():
    assert min(fetching(1, 8, False, 1.0)(drawn("zipf", seed)) for seed in range(3)) >= 8


def test_a_batch_of_one_shard_takes_more_rounds_and_loses_nothing():
    ids = spread(V).ids(np.random.default_rng(0).permutation(V // 16)[:POSITIONS])
    assert fetching(1, 8, True)(ids) > 1


@pytest.mark.parametrize("every", [2, 256, 257, 768])
def test_arithmetic_patterns_are_fetched_right(every):
    ids = np.arange(POSITIONS) * every % V
    rounds = fetching(1, 8, True)(ids)
    assert rounds == 1 or every == 257  # the one stride that the stripes have
