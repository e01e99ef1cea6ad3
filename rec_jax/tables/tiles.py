"""Tiles of users against a table on a mesh: rows that they read, ranks and lists that they get.

A tile is computed in one static shape on every mesh, so that its numbers do not depend on how many
devices there are: what a device adds is another tile, never a part of one. Leading axes count
tiles; where they are cut over both mesh axes, their number is a multiple of the devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from rec_jax.kernels import count_ahead, join_top_k, target_rank, target_scores, top_k
from rec_jax.kernels.rows import gather_rows
from rec_jax.mesh import BOTH, Axes, island
from rec_jax.tables.on_mesh import fetch, shards_of, spread
from rec_jax.tables.table import Table

Array = jax.Array
P = PartitionSpec
Answer = TypeVar("Answer")

_CUT = P(BOTH)


def rows_of(mesh: Mesh, table: Table, ids: Array) -> Array:
    """f32 `[G, ..., d]`: the rows of `ids` int32 `[G, ...]`; NaN for an id that is no item.

    Ids and their rows are cut over both axes; a device gets from the others the rows that its own
    ids name, each once, and nothing of the table's size exists.
    """
    if shards_of(mesh, table.over).pieces == 1:
        def body(rows: Array, ids: Array) -> Array:
            flat = ids.reshape(-1)
            found = gather_rows(rows, flat).astype(jnp.float32)
            known = (flat >= 0) & (flat < table.num_items)
            return jnp.where(known[:, None], found, jnp.nan).reshape(*ids.shape, -1)

        return island(body, mesh, (P(), _CUT), _CUT)(table.rows, ids)
    wanted = {"ids": ids.reshape(1, -1)}
    fetched = fetch(mesh, table, wanted, {"ids": jnp.ones(wanted["ids"].shape, bool)})
    found = spread(mesh, fetched.rows, fetched.unique, wanted)["ids"]
    return found.reshape(*ids.shape, -1)


def bias_of(mesh: Mesh, bias: Array, ids: Array, table: Table) -> Array:
    """f32 `[G, ...]`: entries of `bias` f32 `[V_padded]` at `ids` int32 `[G, ...]`, as `rows_of`
    has rows: both are cut as the table is."""
    column = Table(bias[:, None], (), table.num_items, table.over)
    return rows_of(mesh, column, ids)[..., 0]


def rank_tiles(mesh: Mesh, queries: Array, table: Table, targets: Array,
               seen: tuple[Array, Array] | None, used: Array, *,
               bias: Array | None = None) -> Array:
    """`target_rank` of each tile: int32 `[G, T]`, 0 in tiles that are not used.

    queries: f32 `[G, T, d]`; targets: int32 `[G, T]`; seen: (offsets `[G, T + 1]`, items
      `[G, E]`), see `rec_jax.kernels.target_rank`; used: bool `[G]`.
    bias: f32 `[V_padded]`, one number a row, added to the scores of all queries; cut as the rows.

    Tiles are cut over the mesh axes that do not cut the rows, and answers are, too.
    """
    axis = shards_of(mesh, table.over).axis

    def body(rows: Array, bias: Array | None, used: Array, *tiles: Any) -> Array:
        def one(queries: Array, targets: Array, seen: Any) -> Array:
            return target_rank(queries, rows, targets, exclude=seen, bias=bias,
                               num_items=table.num_items, axis_name=axis)

        return _each(mesh, table.over, one, used, tiles)

    tile, cut = P(_uncut(mesh, table.over)), P(table.over)
    return island(body, mesh, (cut, cut, tile, tile, tile, tile), tile)(
        table.rows, bias, used, queries, targets, seen)


def scores_in_part(mesh: Mesh, queries: Array, part: Table, targets: Array, used: Array, *,
                   bias: Array | None = None) -> Array:
    """`target_scores` of each tile, f32 `[G, T]`; the arguments are those of `rank_tiles`.

    part: some rows, of which `targets` are the numbers; as many as every part that `ahead_in_part`
    counts has, and then these scores have the bits that it sees.
    """
    axis = shards_of(mesh, part.over).axis

    def body(rows: Array, bias: Array | None, used: Array, *tiles: Any) -> Array:
        def one(queries: Array, targets: Array) -> Array:
            return target_scores(queries, rows, targets, bias=bias, num_items=part.num_items,
                                 axis_name=axis)

        return _each(mesh, part.over, one, used, tiles)

    tile, cut = P(_uncut(mesh, part.over)), P(part.over)
    return island(body, mesh, (cut, cut, tile, tile, tile), tile)(
        part.rows, bias, used, queries, targets)


def ahead_in_part(mesh: Mesh, queries: Array, part: Table, first: Array, targets: Array,
                  scores: Array, seen: tuple[Array, Array] | None, used: Array, *,
                  bias: Array | None = None) -> Array:
    """`count_ahead` of each tile, int32 `[G, T]`: what the rows of a part add to `rank_tiles` less
    1. targets and `seen` are of the whole table, of which `part.num_items` are items.

    first: int32 `[]`, number of the part's first row; scores: f32 `[G, T]` of `scores_in_part`.
    """
    axis = shards_of(mesh, part.over).axis

    def body(rows: Array, bias: Array | None, first: Array, used: Array, *tiles: Any) -> Array:
        def one(queries: Array, targets: Array, scores: Array, seen: Any) -> Array:
            return count_ahead(queries, rows, targets, scores, first=first, exclude=seen,
                               bias=bias, num_items=part.num_items, axis_name=axis)

        return _each(mesh, part.over, one, used, tiles)

    tile, cut = P(_uncut(mesh, part.over)), P(part.over)
    return island(body, mesh, (cut, cut, P(), tile, tile, tile, tile, tile), tile)(
        part.rows, bias, first, used, queries, targets, scores, seen)


def top_k_tiles(mesh: Mesh, queries: Array, table: Table, k: int,
                seen: tuple[Array, Array] | None, used: Array, *,
                bias: Array | None = None) -> tuple[Array, Array]:
    """`top_k` of each tile: scores f32 and ids int32 `[G, T, k]`; arguments as in `rank_tiles`."""
    axis = shards_of(mesh, table.over).axis

    def body(rows: Array, bias: Array | None, used: Array, *tiles: Any) -> tuple[Array, Array]:
        def one(queries: Array, seen: Any) -> tuple[Array, Array]:
            return top_k(queries, rows, k, exclude=seen, bias=bias, num_items=table.num_items,
                         axis_name=axis)

        return _each(mesh, table.over, one, used, tiles)

    tile, cut = P(_uncut(mesh, table.over)), P(table.over)
    found: tuple[Array, Array] = island(
        body, mesh, (cut, cut, tile, tile, tile), (tile, tile))(
        table.rows, bias, used, queries, seen)
    return found


def top_k_in_part(mesh: Mesh, queries: Array, part: Table, first: Array,
                  before: tuple[Array, Array], seen: tuple[Array, Array] | None, used: Array, *,
                  bias: Array | None = None) -> tuple[Array, Array]:
    """`top_k_tiles` of the parts of a table up to this one; arguments as in `ahead_in_part`.

    before: of the parts in front of it; ids -1 and scores -inf where this is the first one.
    """
    axis, k = shards_of(mesh, part.over).axis, before[0].shape[-1]

    def body(rows: Array, bias: Array | None, first: Array, used: Array, *tiles: Any
             ) -> tuple[Array, Array]:
        def one(queries: Array, before: tuple[Array, Array], seen: Any) -> tuple[Array, Array]:
            return join_top_k(before, top_k(
                queries, rows, k, first=first, exclude=seen, bias=bias,
                num_items=part.num_items, axis_name=axis))

        return _each(mesh, part.over, one, used, tiles)

    tile, cut = P(_uncut(mesh, part.over)), P(part.over)
    found: tuple[Array, Array] = island(
        body, mesh, (cut, cut, P(), tile, tile, tile, tile), (tile, tile))(
        part.rows, bias, first, used, queries, before, seen)
    return found


def _uncut(mesh: Mesh, over: Axes) -> Axes:
    """The mesh axes that do not cut the rows."""
    return tuple(axis for axis in mesh.axis_names if axis not in over)


def _each(mesh: Mesh, over: Axes, one: Callable[..., Answer], used: Array,
          tiles: tuple[Any, ...]) -> Answer:
    """`one` of each tile of this device, stacked; zeros in places that no device has a user in.

    All devices skip a place or none does, since `one` waits for the others.
    """
    if mesh.size > 1:
        used = jax.lax.pmax(used.astype(jnp.int32), _uncut(mesh, over)) > 0
    return map_used(one, used, tiles)


def map_used(one: Callable[..., Answer], used: Array, parts: tuple[Any, ...]) -> Answer:
    """`one(*part)` for each part along the leading axis, stacked; zeros where `used` is false."""
    def nothing(*part: Any) -> Answer:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                            jax.eval_shape(one, *part))

    found: Answer = jax.lax.map(lambda each: jax.lax.cond(each[0], one, nothing, *each[1]),
                                (used, parts))
    return found
