"""Ranks against rows that pass by in parts are those against the whole table."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import MeanSoFar

from rec_jax.inference.apart import make_apart_ranker
from rec_jax.inference.evaluate import make_ranker
from rec_jax.inference.histories import Reading, TileShape, make_tiles
from rec_jax.inference.rows_apart import RowsApart
from rec_jax.mesh import MeshConfig, make_mesh, row_sharding
from rec_jax.metrics import MISSED
from rec_jax.model.encoder import Encoder
from rec_jax.tables import INPUTS, RowMap, padded_size
from rec_jax.tables.bias import place_bias
from rec_jax.tables.row_map import spread

COUNT, DIM, LENGTH = 2000, 6, 8
ORDER = spread(COUNT)


def rows_of(seed: int, order: RowMap, dtype: Any = np.float32) -> np.ndarray:
    """Rows beside each other with few values, so that scores tie, and noise behind the last."""
    rows = np.random.default_rng(seed).integers(-2, 3, (padded_size(COUNT), DIM)) / np.float32(8)
    return rows[order.ids(np.arange(len(rows)))].astype(dtype)


def tiles_of(seed: int, groups: int) -> Any:
    draw = np.random.default_rng(seed)
    histories = [draw.integers(0, COUNT, draw.integers(1, 20)).astype(np.int32)
                 for _ in range(32 * groups - 5)]
    targets = draw.integers(0, COUNT, len(histories)).astype(np.int32)
    for user in range(0, len(targets), 7):  # seen by their users
        targets[user] = histories[user][0]
    return make_tiles(histories, targets, group=groups, shape=TileShape(32, LENGTH),
                      reading=Reading(LENGTH), capacity=1024), len(histories)


@pytest.mark.parametrize(("shape", "options"), [
    ((1, 2), {"bias": True, "untied": True}),
    pytest.param((1, 1), {}, marks=pytest.mark.slow),
    pytest.param((1, 1), {"cold": True, "dtype": jnp.bfloat16}, marks=pytest.mark.slow),
    pytest.param((2, 2), {"cold": True, "bias": True, "seen": False}, marks=pytest.mark.slow),
    pytest.param((1, 4), {"dtype": jnp.bfloat16, "untied": True}, marks=pytest.mark.slow)])
def test_ranks_are_those_of_the_whole_table(shape: tuple[int, int], options: dict[str, Any]
                                            ) -> None:
    mesh = make_mesh(MeshConfig(*shape))
    where = row_sharding(mesh)
    draw = np.random.default_rng(9)
    rows = rows_of(1, ORDER, options.get("dtype", np.float32))
    settings: dict[str, Any] = {
        "list_length": 9, "filter_seen": options.get("seen", True), "row_map": ORDER,
        "cold": draw.random(COUNT) < 0.3 if "cold" in options else None}
    bias = place_bias(len(rows), mesh, values=draw.normal(size=COUNT).astype(np.float32),
                      row_map=ORDER) if "bias" in options else None
    params: dict[str, Any] = {"kernel": jnp.eye(DIM)}
    away = dict(params)
    if "untied" in options:
        inputs = rows_of(2, ORDER)
        params[INPUTS] = jax.device_put(inputs, where)
        away[INPUTS] = RowsApart(inputs.shape, inputs.dtype, lambda numbers: inputs[numbers])
    tiles, count = tiles_of(3, 2 * mesh.size)
    encoder = cast(Encoder, MeanSoFar())
    expected = make_ranker(encoder, COUNT, mesh, **settings)(
        params, jax.device_put(rows, where), tiles, bias)
    found = make_apart_ranker(encoder, COUNT, mesh, **settings, part_bytes=1)(
        away, cast(Any, RowsApart(rows.shape, rows.dtype, lambda numbers: rows[numbers])), tiles,
        bias)
    lists = [np.asarray(each.best).reshape(-1, 9)[:count] for each in (expected, found)]
    assert (lists[0] == lists[1]).all() and (lists[0] >= 0).all()
    ranks = np.asarray(expected.ranks).reshape(-1)[:count]
    assert np.asarray(found.ranks).reshape(-1)[:count].tolist() == ranks.tolist()
    assert len(set(ranks.tolist())) > count // 2
    assert (ranks == MISSED).any() == (settings["filter_seen"] or settings["cold"] is not None)
