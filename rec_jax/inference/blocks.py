"""Rows of a model that lies on a mesh: all of them on the host, in blocks, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from rec_jax.inference.rows_apart import RowsApart
from rec_jax.inference.served import Served
from rec_jax.mesh import replicated
from rec_jax.tables import Table
from rec_jax.tables.tiles import rows_of

Floats = npt.NDArray[np.float32]
BLOCK = 65536  # rows


def host_rows(served: Served, rows: jax.Array) -> Floats:
    """All items' rows of an array `[V_padded, w]` that is cut as the model's, on every process."""
    return np.concatenate(list(row_blocks(served, rows)))


def row_blocks(served: Served, rows: jax.Array,
               compose: Callable[[Any, jax.Array], jax.Array] | None = None) -> Iterator[Floats]:
    """The same in blocks f32 `[n, w]`.

    compose: (parameters, stored rows) -> vectors; None: the rows are the vectors.
    """
    if isinstance(rows, RowsApart):
        return _apart_blocks(served, rows, compose)
    return table_blocks(served.mesh, Table(rows, (), served.dataset.num_items, served.over),
                        served.params, compose)


def _apart_blocks(served: Served, rows: RowsApart, compose: Any) -> Iterator[Floats]:
    total = served.dataset.num_items
    for first in range(0, total, BLOCK):
        block = rows.take(np.arange(first, min(first + BLOCK, total))).astype(np.float32)
        yield block if compose is None else np.asarray(compose(served.params, block))


def table_blocks(mesh: Mesh, table: Table, params: Any = None,
                 compose: Callable[[Any, jax.Array], jax.Array] | None = None
                 ) -> Iterator[Floats]:
    """Rows f32 `[n, w]` of a table's items, in their order, on every process; see `row_blocks`."""
    total, over = table.num_items, table.over

    @jax.jit
    def fetch(params: Any, rows: jax.Array, places: jax.Array) -> jax.Array:
        found = rows_of(mesh, Table(rows, (), rows.shape[0], over), places)
        found = found if compose is None else compose(params, found)
        return jax.lax.with_sharding_constraint(found, replicated(mesh))

    size = -(-min(BLOCK, total) // mesh.size) * mesh.size
    for first in range(0, total, size):
        ids = np.minimum(np.arange(first, first + size, dtype=np.int32), total - 1)
        yield np.asarray(fetch(params, table.rows, table.row_map.rows(ids)))[:total - first]


def set_rows(rows: jax.Array, places: npt.NDArray[np.int64], values: Floats) -> jax.Array:
    """A copy of `rows` `[V_padded, ...]`, cut as they are, with `values` in these places."""
    if not len(places):
        return rows

    def put(rows: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
        return rows.at[places].set(values.astype(rows.dtype))

    found: jax.Array = jax.jit(put, out_shardings=rows.sharding)(
        rows, places.astype(np.int32), values)
    return found
