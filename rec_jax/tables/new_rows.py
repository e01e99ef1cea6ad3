"""Rows that change hands while a table trains: what a new id begins with, and what is left behind.

A row of a new id is what a hash of (seed, table, id) says, whichever row it is and whoever had it
before, and its optimizer has seen nothing. A row that nobody has is 0, with its state.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rec_jax.kernels.rows import gather_rows, scatter_rows
from rec_jax.mesh import row_sharding
from rec_jax.sizes import power_of_two
from rec_jax.tables.table import Table, TableConfig, first_rows, table_stream

Array = jax.Array
_LOW, _LEAST = 30, 64
_ALL = 2**31 - 1


def given_to(table: Table, config: TableConfig, rows: np.ndarray, ids: np.ndarray, *, seed: int,
             name: str, mesh: Mesh) -> Table:
    """The table whose `rows`, distinct int `[n]`, go to new `ids` int64 `[n]`; it is donated."""
    return _changed(table, rows, ids, mesh, (config.dim, config.init_scale, seed, name))


def taken_away(table: Table, rows: np.ndarray, *, mesh: Mesh) -> Table:
    """The table whose `rows`, distinct int `[n]`, are nobody's; it is donated."""
    return _changed(table, rows, np.zeros(len(rows), np.int64), mesh, None)


def rows_at(table: Table, rows: np.ndarray) -> np.ndarray:
    """f32 `[n, d]` on the host: the rows int `[n]` of a table."""
    where = np.zeros(_size(len(rows)), np.int32)
    where[:len(rows)] = rows
    return np.asarray(_reader(table.rows, where))[:len(rows)]


@jax.jit
def _reader(rows: Array, where: Array) -> Array:
    return gather_rows(rows, where).astype(jnp.float32)


def first_of_ids(seed: int, name: str, ids: np.ndarray, *, dim: int, scale: float) -> Array:
    """f32 `[n, dim]`: what the rows of `ids` int64 `[n]` begin with, from 62 bits of their hash."""
    return _values(dim, scale, seed, name, *_halves(ids))


def _halves(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32 and uint32 `[n]`, of a bijection of `ids`."""
    bits = np.ascontiguousarray(ids, np.int64).view(np.uint64)
    bits = (bits ^ (bits >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    bits = bits ^ (bits >> np.uint64(32))
    low = (bits & np.uint64(2**_LOW - 1)).astype(np.int32)
    return low, ((bits >> np.uint64(_LOW)) & np.uint64(2**32 - 1)).astype(np.uint32)


def _values(dim: int, scale: float, seed: int, name: str, low: Any, high: Any) -> Array:
    stream = table_stream(jnp.uint32(seed % 2**32), name)
    return first_rows(stream ^ jnp.asarray(high), jnp.asarray(low), dim=dim, scale=scale,
                      num_items=_ALL)


def _size(count: int) -> int:
    """A size for `count`, of few, so that few programs are compiled."""
    return max(_LEAST, power_of_two(count))


def _changed(table: Table, rows: np.ndarray, ids: np.ndarray, mesh: Mesh,
             begin: tuple[int, float, int, str] | None) -> Table:
    if not len(rows):
        return table
    order = np.argsort(rows)
    spare = _size(len(rows)) - len(rows)  # these have no row
    where = np.concatenate([rows[order], table.total + np.arange(spare)]).astype(np.int32)
    low, high = (np.concatenate([part[order], np.zeros(spare, part.dtype)])
                 for part in _halves(ids))
    new_rows, state = _writer(begin, mesh, table.over)(table.rows, table.state, where, low, high)
    return table.replace(rows=new_rows, state=state)


@functools.lru_cache(32)
def _writer(begin: tuple[int, float, int, str] | None, mesh: Mesh, over: tuple[str, ...]) -> Any:
    def write(rows: Array, state: Any, where: Array, low: Array, high: Array) -> tuple[Array, Any]:
        values = jnp.zeros((len(where), rows.shape[1]), jnp.float32)
        if begin is not None:
            values = _values(*begin, low, high)

        def cleared(leaf: Array) -> Array:
            return scatter_rows(leaf, where, jnp.zeros((len(where), *leaf.shape[1:]), leaf.dtype))

        return scatter_rows(rows, where, values), jax.tree.map(cleared, state)

    return jax.jit(write, donate_argnums=(0, 1), out_shardings=row_sharding(mesh, over))
