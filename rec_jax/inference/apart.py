"""Ranks against a table that does not lie on the devices: its rows pass by in parts.

The rows that a call's users read, and those of their targets, are fetched alone; then every part of
the table says how many of its rows stand before each target. That is what `rank_tiles` counts on a
mesh, where parts are the devices', so the ranks are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rec_jax.inference.asking import made_once, map_rounds, tile_queries
from rec_jax.inference.histories import Tiles
from rec_jax.inference.ranked import Ranked, Ranker, target_seen
from rec_jax.inference.rows_apart import RowsApart
from rec_jax.mesh import ITEMS, Axes, row_sharding
from rec_jax.metrics import MISSED
from rec_jax.model.encoder import TABLES, Encoder, Params
from rec_jax.sizes import power_of_two
from rec_jax.tables import INPUTS, USERS, RowMap, Table
from rec_jax.tables.bias import place_bias
from rec_jax.tables.on_mesh import shards_of
from rec_jax.tables.tiles import (
    ahead_in_part,
    bias_of,
    rows_of,
    scores_in_part,
    top_k_in_part,
)

PART_BYTES = 64 * 2**20
"""Bytes of a part, all shards together; two are on the devices at once."""
_FEWEST = 768


def apart(rows: jax.Array | RowsApart) -> RowsApart:
    """Rows of either kind as those that lie elsewhere."""
    if isinstance(rows, RowsApart):
        return rows
    return RowsApart((rows.shape[0], rows.shape[1]), rows.dtype,
                     lambda numbers: np.asarray(jnp.take(rows, numbers, axis=0)))


def make_apart_ranker(encoder: Encoder, num_items: int, mesh: Mesh, *, filter_seen: bool,
                      cold: np.ndarray | None = None, list_length: int = 0,
                      over: Axes = (ITEMS,), row_map: RowMap | None = None,
                      part_bytes: int = PART_BYTES) -> Ranker:
    """As `make_ranker`, for rows that are `RowsApart`, also those beside the parameters."""
    order = RowMap(num_items) if row_map is None else row_map
    pieces = shards_of(mesh, over).pieces
    placed, some = make_placed(mesh, over)
    against = cache(lambda total: None if cold is None else np.asarray(place_bias(
        total, mesh, barred=cold, over=over, row_map=order)))
    ask, score, count, best = part_programs(encoder, num_items, mesh, filter_seen, over)

    def rank(params: Params, rows: RowsApart, tiles: Tiles, bias: jax.Array | None = None
             ) -> Ranked:
        total = rows.shape[0]
        # From here on an item is the number of its row.
        numbers: dict[str, Any] = {name: order.rows(np.asarray(getattr(tiles, name)))
                                   for name in ("items", "targets", "seen_items")}
        tiles = tiles._replace(**numbers)
        params, read, here = read_apart(params, rows, tiles, some)
        given = None if bias is None else np.asarray(bias)
        added = against(total)
        if given is not None:
            added = given if added is None else given + added
        distinct, label = np.unique(tiles.targets, return_inverse=True)
        label = label.reshape(tiles.targets.shape).astype(np.int32)
        size = _part_rows(rows, part_bytes, pieces, len(distinct))
        labels = placed(rows.take(distinct), size)
        barred = None if cold is None else cold[np.asarray(order.ids(tiles.targets))]
        queries, listed = ask(params, read, labels, None if given is None else placed(
            given[distinct], size), here, tiles, label, barred)
        scores = score(labels, None if added is None else placed(added[distinct], size), queries,
                       label, tiles.used)
        ahead, before = jnp.zeros(label.shape, jnp.int32), None
        lists = no_list((*label.shape, list_length)) if list_length else None
        for first, part, extra in _parts(rows, added, size, placed):
            counted = ahead
            ahead = count(ahead, part, extra, np.int32(first), queries, scores, tiles)
            if lists is not None:
                lists = best(lists, part, extra, np.int32(first), queries, tiles)
            if before is not None:
                before.block_until_ready()  # or parts pile up faster than they are counted
            before = counted
        return Ranked(jnp.where(listed, 1 + ahead, MISSED),
                      None if lists is None else order.ids(lists[1]))

    return rank


def read_apart(params: Params, rows: RowsApart, tiles: Tiles, some: Callable[..., Any]
               ) -> tuple[Params, jax.Array, Tiles]:
    """Parameters, rows and tiles as they are where only the rows are that these users read; tiles
    name items by the numbers of their rows. some: (rows, numbers) -> those rows alone, and where
    among them each is."""
    params = dict(params)
    elsewhere = {name: apart(params.pop(name)) for name in TABLES if name in params}
    read, where = some(elsewhere.get(INPUTS, rows), tiles.items)
    here = tiles._replace(items=where)
    if USERS in elsewhere:
        params[USERS], users = some(elsewhere[USERS], np.asarray(tiles.users))
        here = here._replace(users=users)
    return params, read, here


def make_placed(mesh: Mesh, over: Axes) -> tuple[Callable[..., jax.Array], Callable[..., Any]]:
    """Two functions that bring rows to the devices: `placed(values, size)`, padded with 0, and
    `some` of `read_apart`."""
    sharding, pieces = row_sharding(mesh, over), shards_of(mesh, over).pieces

    def placed(values: np.ndarray, size: int) -> jax.Array:
        whole = np.zeros((size, *values.shape[1:]), values.dtype)
        whole[:len(values)] = values
        return jax.device_put(whole, sharding)

    def some(rows: RowsApart, numbers: np.ndarray) -> tuple[jax.Array, np.ndarray]:
        distinct, where = np.unique(numbers, return_inverse=True)
        size = -(-max(_FEWEST, power_of_two(len(distinct))) // pieces) * pieces
        return placed(rows.take(distinct), size), where.reshape(numbers.shape).astype(np.int32)

    return placed, some


def no_list(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Scores and ids of lists in which nothing is yet."""
    return jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32)


def _part_rows(rows: RowsApart, part_bytes: int, pieces: int, labels: int) -> int:
    """Rows of a part: so many bytes, but all labels have room, and no more than there are."""
    wanted = max(part_bytes // (rows.shape[1] * np.dtype(rows.dtype).itemsize), labels)
    unit = _FEWEST * pieces // np.gcd(_FEWEST, pieces)
    return int(min(rows.shape[0], -(-wanted // unit) * unit))


def parts_of(rows: RowsApart, added: np.ndarray | None, part_bytes: int, pieces: int,
             placed: Callable[..., jax.Array]) -> Iterator[tuple[int, jax.Array, jax.Array | None]]:
    """(number of its first row, rows, what is added to their scores) of each part.

    added: f32 `[V_padded]`, or None; pieces: that the mesh cuts rows into.
    """
    return _parts(rows, added, _part_rows(rows, part_bytes, pieces, 1), placed)


def _parts(rows: RowsApart, added: np.ndarray | None, size: int, placed: Callable[..., jax.Array]
           ) -> Iterator[tuple[int, jax.Array, jax.Array | None]]:
    """(number of its first row, rows, what is added to their scores) of each part."""
    for first in range(0, rows.shape[0], size):
        numbers = np.arange(first, min(first + size, rows.shape[0]))
        yield first, placed(rows.take(numbers), size), (
            None if added is None else placed(added[numbers], size))


@made_once
def part_programs(encoder: Encoder, num_items: int, mesh: Mesh, filter_seen: bool, over: Axes
            ) -> tuple[Callable[..., Any], ...]:
    """What `make_apart_ranker` calls: for queries, for scores of targets, and for each part counts
    and lists."""

    @jax.jit
    def ask(params: Params, read: jax.Array, labels: jax.Array, given: jax.Array | None,
            here: Tiles, tiles: Tiles, label: jax.Array, barred: jax.Array | None) -> Any:
        table, targets = (Table(rows, (), rows.shape[0], over) for rows in (read, labels))

        def one(each: Any) -> tuple[jax.Array, jax.Array]:
            here, tiles, label, barred = each
            queries = tile_queries(mesh, encoder, params, table, here)
            scores = jnp.sum(queries * rows_of(mesh, targets, label), axis=-1)
            if given is not None:
                scores += bias_of(mesh, given, label, targets)
            listed = scores > -jnp.inf
            if filter_seen:
                listed &= ~jax.vmap(target_seen)(tiles)
            return queries, listed if barred is None else listed & ~barred

        return map_rounds(mesh, one, (here, tiles, label, barred))

    @jax.jit
    def score(labels: jax.Array, added: jax.Array | None, queries: jax.Array, label: jax.Array,
              used: jax.Array) -> jax.Array:
        part = Table(labels, (), labels.shape[0], over)
        return map_rounds(mesh, lambda each: scores_in_part(
            mesh, each[0], part, each[1], each[2], bias=added), (queries, label, used))

    @jax.jit
    def count(ahead: jax.Array, rows: jax.Array, added: jax.Array | None, first: jax.Array,
              queries: jax.Array, scores: jax.Array, tiles: Tiles) -> jax.Array:
        part = Table(rows, (), num_items, over)

        def one(each: Any) -> jax.Array:
            queries, scores, tiles = each
            seen = (tiles.seen_offsets, tiles.seen_items) if filter_seen else None
            return ahead_in_part(mesh, queries, part, first, tiles.targets, scores, seen,
                                 tiles.used, bias=added)

        return ahead + map_rounds(mesh, one, (queries, scores, tiles))

    @jax.jit
    def best(before: Any, rows: jax.Array, added: jax.Array | None, first: jax.Array,
             queries: jax.Array, tiles: Tiles) -> Any:
        part = Table(rows, (), num_items, over)

        def one(each: Any) -> Any:
            queries, before, tiles = each
            seen = (tiles.seen_offsets, tiles.seen_items) if filter_seen else None
            return top_k_in_part(mesh, queries, part, first, before, seen, tiles.used, bias=added)

        return map_rounds(mesh, one, (queries, before, tiles))

    return ask, score, count, best
