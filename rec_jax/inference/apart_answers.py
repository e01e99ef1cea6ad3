"""Queries and lists of users whose model's rows are left where they lie; they pass by in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rec_jax.inference.apart import (
    PART_BYTES,
    make_placed,
    no_list,
    part_programs,
    parts_of,
    read_apart,
)
from rec_jax.inference.asking import jitted_queries, made_once, map_rounds, tile_queries
from rec_jax.inference.histories import Tiles
from rec_jax.inference.rows_apart import RowsApart
from rec_jax.mesh import Axes
from rec_jax.model.encoder import Encoder, Params
from rec_jax.tables import Table
from rec_jax.tables.on_mesh import shards_of


def apart_queries(encoder: Encoder, num_items: int, mesh: Mesh, over: Axes
                  ) -> Callable[..., jax.Array]:
    """As `jitted_queries`, for rows that are `RowsApart`."""
    encode, (_, some) = jitted_queries(encoder, num_items, mesh, over), make_placed(mesh, over)

    def queries(params: Params, rows: RowsApart, tiles: Tiles) -> jax.Array:
        return encode(*read_apart(params, rows, tiles, some))

    return queries


def apart_best(encoder: Encoder, num_items: int, mesh: Mesh, over: Axes
               ) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """As a `Best`, for rows that are `RowsApart`."""
    placed, some = make_placed(mesh, over)
    ask, pieces = _asked(encoder, mesh, over), shards_of(mesh, over).pieces

    def best(params: Params, rows: RowsApart, tiles: Tiles, bias: jax.Array | None, *, k: int,
             filter_seen: bool, part_bytes: int = PART_BYTES) -> tuple[jax.Array, jax.Array]:
        more = part_programs(encoder, num_items, mesh, filter_seen, over)[3]
        queries = ask(*read_apart(params, rows, tiles, some))
        lists = no_list((*queries.shape[:2], k))
        added = None if bias is None else np.asarray(bias)
        for first, part, extra in parts_of(rows, added, part_bytes, pieces, placed):
            before = lists
            lists = more(lists, part, extra, np.int32(first), queries, tiles)
            jax.block_until_ready(before)  # or parts pile up faster than they are looked through
        return lists

    return best


@made_once
def _asked(encoder: Encoder, mesh: Mesh, over: Axes) -> Callable[..., jax.Array]:
    """`(params, read rows, tiles)` -> queries f32 `[G, T, w]`, as stored rows are scored by."""

    @jax.jit
    def ask(params: Params, read: jax.Array, here: Any) -> jax.Array:
        table = Table(read, (), read.shape[0], over)
        return map_rounds(mesh, lambda each: tile_queries(mesh, encoder, params, table, each),
                          here)

    return ask
