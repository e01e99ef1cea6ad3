"""A model is asked about tiles of users, on every device of its mesh.

As many tiles as there are devices make a round. Each device encodes one of them, and every device
ranks the users of its group against its own rows; so a round needs no array of the table's size
anywhere, and on one device it is one tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from rec_jax.inference.histories import Tiles
from rec_jax.kernels import auto
from rec_jax.mesh import BOTH, Axes, island, replicated
from rec_jax.model.encoder import Encoder, Params
from rec_jax.model.encoders import Inputs
from rec_jax.tables import INPUTS, USERS, RowMap, Table
from rec_jax.tables.tiles import map_used, rows_of

Answer = TypeVar("Answer")
Program = TypeVar("Program")

_KEPT = 16


def made_once(make: Callable[..., Program]) -> Callable[..., Program]:
    """`make`, which jits functions, and whose results are kept and found again.

    What is asked of one model again and again, or of models that differ in their weights alone, is
    compiled once. A jitted function that is made anew is compiled anew, whatever it is.
    Arguments that cannot be hashed, as an encoder of one's own may have, are never found again.
    """
    kept = functools.lru_cache(_KEPT)(lambda backends, *arguments: make(*arguments))

    @functools.wraps(make)
    def find(*arguments: Any) -> Program:
        try:
            hash(arguments)
        except TypeError:
            return make(*arguments)
        return kept(auto.asked_for(), *arguments)

    return find


def map_rounds(mesh: Mesh, one: Callable[[Any], Answer], tiles: Any) -> Answer:
    """`one` of each round of tiles `[D, ...]`, for D devices; answers `[G, ...]` on all of them.

    tiles: a pytree of arrays `[G, ...]`; empty tiles fill the last round.
    """
    (count,) = {leaf.shape[0] for leaf in jax.tree.leaves(tiles)}
    rounds = -(-count // mesh.size)

    def cut(leaf: jax.Array) -> jax.Array:
        spare = rounds * mesh.size - count
        padded = jnp.pad(leaf, ((0, spare), *((0, 0),) * (leaf.ndim - 1)))
        return padded.reshape(rounds, mesh.size, *leaf.shape[1:])

    def whole(leaf: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(
            leaf.reshape(-1, *leaf.shape[2:])[:count], replicated(mesh))

    return jax.tree.map(whole, jax.lax.map(one, jax.tree.map(cut, tiles)))


def tile_queries(mesh: Mesh, encoder: Encoder, params: Params, table: Table,
                 tiles: Tiles, *, expanded: bool = True) -> jax.Array:
    """Queries f32 `[D, T, w]` of a round, each at its `last` place; 0 in tiles without users.

    They are cut over both axes: a device has those of its own tile. expanded: as stored rows are
    scored by (`rec_jax.model.rows`); else `[D, T, d]`, in the space of the items' vectors.
    """
    # Rows of tables leave the parameters, which every device holds whole.
    params = dict(params)
    read = table.replace(rows=params.pop(INPUTS, table.rows))
    vectors = rows_of(mesh, read, tiles.items)  # [D, T, L, w]
    askers = None
    if USERS in params:
        assert tiles.users is not None
        people = params.pop(USERS)
        askers = rows_of(mesh, Table(people, (), people.shape[0], table.over),
                         tiles.users[..., None])  # [D, T, 1, d]

    def body(params: Params, tiles: Tiles, vectors: jax.Array, askers: jax.Array | None
             ) -> jax.Array:
        def one(tile: Tiles, vectors: jax.Array, askers: jax.Array | None) -> jax.Array:
            users = None if askers is None else jnp.broadcast_to(
                askers, (*vectors.shape[:2], askers.shape[-1]))
            inputs = Inputs(tile.segments, tile.positions, tile.times, tile.features, users)
            queries = encoder(params, vectors, inputs, None, tile.hidden, tile.last[:, None])
            found = queries[:, 0].astype(jnp.float32)
            return encoder.source.expand(params, found) if expanded else found

        return map_used(one, tiles.used, (tiles, vectors, askers))

    cut = PartitionSpec(BOTH)
    queries: jax.Array = island(body, mesh, (PartitionSpec(), cut, cut, cut), cut)(
        params, tiles, vectors, askers)
    return queries


@made_once
def jitted_queries(encoder: Encoder, num_items: int, mesh: Mesh, over: Axes,
                   row_map: RowMap | None = None) -> Callable[..., jax.Array]:
    """`(params, rows, tiles)` -> queries f32 `[G, T, d]`, in the space of the items' vectors."""

    @jax.jit
    def encode(params: Params, rows: jax.Array, tiles: Tiles) -> jax.Array:
        table = Table(rows, (), num_items, over)
        if row_map is not None:
            tiles = tiles._replace(items=row_map.rows(tiles.items))
        return map_rounds(mesh, lambda each: tile_queries(
            mesh, encoder, params, table, each, expanded=False), tiles)

    return encode
