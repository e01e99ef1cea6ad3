"""A model is asked about tiles of users, on every device of its mesh.

As many tiles as there are devices make a round. Each device encodes one of them, and every device
ranks the users of its group against its own rows; so a round needs no array of the table's size
anywhere, and on one device it is one tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from rec_jax.inference.histories import Tiles
from rec_jax.mesh import BOTH, replicated
from rec_jax.model.encoder import Encoder, Params
from rec_jax.model.encoders import Inputs
from rec_jax.tables import INPUTS, Table
from rec_jax.tables.on_mesh import island
from rec_jax.tables.tiles import map_used, rows_of

Answer = TypeVar("Answer")


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
    params = dict(params)
    vectors = rows_of(mesh, _read_by(params, table), tiles.items)  # [D, T, L, d]

    def body(params: Params, tiles: Tiles, vectors: jax.Array) -> jax.Array:
        def one(tile: Tiles, vectors: jax.Array) -> jax.Array:
            inputs = Inputs(tile.segments, tile.positions, tile.times, tile.features)
            queries = encoder(params, vectors, inputs, None, tile.hidden, tile.last[:, None])
            found = queries[:, 0].astype(jnp.float32)
            return encoder.source.expand(params, found) if expanded else found

        return map_used(one, tiles.used, (tiles, vectors))

    cut = PartitionSpec(BOTH)
    queries: jax.Array = island(body, mesh, (PartitionSpec(), cut, cut), cut)(
        params, tiles, vectors)
    return queries


def _read_by(params: dict[str, jax.Array], table: Table) -> Table:
    """The table whose rows feed the encoder; those of an untied one leave `params`, which every
    device holds whole."""
    return table.replace(rows=params.pop(INPUTS, table.rows))
