"""Rows into and out of a device's cache, between two steps: what moves is all that is touched.

Each function is one program on the mesh; its arrays have as many places as the next power of two,
so that few programs are compiled. A place that is not used names a slot behind the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rec_jax.dtypes import DTYPES
from rec_jax.kernels.rows import gather_rows, scatter_rows
from rec_jax.mesh import Axes, island, row_sharding
from rec_jax.sizes import power_of_two
from rec_jax.tables import RowMap, RowOptimizer, Table, TableConfig
from rec_jax.tables.table import first_rows, table_stream

Array = jax.Array
NOWHERE = np.iinfo(np.int32).max
"""The slot of a place that is not used."""
_FEWEST = 64


def empty_cache(config: TableConfig, num_items: int, slots: int, mesh: Mesh, *,
                optimizer: RowOptimizer, over: Axes, row_map: RowMap) -> Table:
    """A cache of `slots` rows of a table, of all shards together, in which nothing is yet."""
    def make() -> tuple[Array, Any]:
        shape = (slots, config.dim)
        return jnp.zeros(shape, DTYPES[config.dtype]), optimizer.init(shape)

    rows, state = jax.jit(make, out_shardings=row_sharding(mesh, over))()
    return Table(rows, state, num_items, over, row_map)


class Exchange:
    """The programs of one table."""

    def __init__(self, config: TableConfig, name: str, num_items: int, seed: int, mesh: Mesh,
                 cache: Table) -> None:
        """cache: `rows` and `state` of all shards' slots; see `init_table` for the others."""
        self._mesh, self._over = mesh, cache.over
        self._sharding = row_sharding(mesh, cache.over)
        cut = PartitionSpec(cache.over)
        dtype = cache.rows.dtype
        stream = jnp.uint32(seed % 2**32)

        def take(leaves: Any, slots: Array) -> Any:
            return jax.tree.map(lambda leaf: gather_rows(leaf, slots), leaves)

        def put(leaves: Any, slots: Array, values: Any) -> Any:
            return jax.tree.map(lambda leaf, value: scatter_rows(
                leaf, slots, value, backend="xla"), leaves, values)

        def begin(leaves: Any, slots: Array, items: Array) -> Any:
            rows, *state = leaves
            new = first_rows(table_stream(stream, name), items, dim=config.dim,
                             scale=config.init_scale, num_items=num_items).astype(dtype)
            zeros = [jnp.zeros((slots.size, *leaf.shape[1:]), leaf.dtype) for leaf in state]
            return put([rows, *state], slots, [new, *zeros])

        def first(items: Array) -> Array:
            return first_rows(table_stream(stream, name), items, dim=config.dim,
                              scale=config.init_scale, num_items=num_items).astype(dtype)

        self._take = jax.jit(island(take, mesh, (cut, cut), cut))
        self._put = jax.jit(island(put, mesh, (cut, cut, cut), cut), donate_argnums=0)
        self._begin = jax.jit(island(begin, mesh, (cut, cut, cut), cut), donate_argnums=0)
        self._first = jax.jit(first)

    def take(self, table: Table, slots: Sequence[np.ndarray]) -> list[Array]:
        """A copy of those slots' rows and state, `[shards * n, ...]` each; see `taken`."""
        places = _padded(slots, NOWHERE)
        return self._take(_leaves(table), self._placed(places))  # type: ignore[no-any-return]

    def put(self, table: Table, slots: Sequence[np.ndarray],
            values: Sequence[Sequence[np.ndarray]]) -> Table:
        """The table with those slots set; values: of each shard, by leaf `[M, ...]`."""
        places = _padded(slots, NOWHERE)
        parts = [self._placed(_padded(leaf, 0)) for leaf in zip(*values, strict=True)]
        return _with_leaves(table, self._put(_leaves(table), self._placed(places), parts))

    def begin(self, table: Table, slots: Sequence[np.ndarray], items: Sequence[np.ndarray]
              ) -> Table:
        """The table with those slots as they are in a new table; items: their ids, by shard."""
        return _with_leaves(table, self._begin(
            _leaves(table), self._placed(_padded(slots, NOWHERE)),
            self._placed(_padded(items, 0))))

    def first(self, items: np.ndarray) -> np.ndarray:
        """First rows of `items` int `[n]`: `[n, d]`, as a new table has them."""
        padded = _padded([items], 0)
        return np.asarray(self._first(padded))[:len(items)]

    def placed(self, values: Sequence[np.ndarray], count: int, fill: int) -> Array:
        """int32 `[shards * count]`: of each shard its `values`, and `fill` behind them."""
        return self._placed(_padded(values, fill, count))

    def _placed(self, values: np.ndarray) -> Array:
        return jax.device_put(values, self._sharding)


def taken(values: Sequence[Array], slots: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What `Exchange.take` gave, without the places that were not used: by leaf `[E, ...]`, one
    shard behind the other. It waits for the device."""
    here = np.concatenate([np.arange(_room(slots)) < len(part) for part in slots])
    return [np.asarray(leaf)[here] for leaf in values]


def _leaves(table: Table) -> list[Array]:
    return [table.rows, *jax.tree.leaves(table.state)]


def _with_leaves(table: Table, leaves: Sequence[Array]) -> Table:
    rows, *state = leaves
    return table.replace(rows=rows, state=jax.tree.unflatten(
        jax.tree.structure(table.state), state))


def _room(parts: Sequence[np.ndarray]) -> int:
    most = max(map(len, parts))
    return max(_FEWEST, power_of_two(most))


def _padded(parts: Sequence[np.ndarray], fill: int, count: int | None = None) -> np.ndarray:
    """The parts with as many places each, `[len(parts) * count, ...]`; integers as int32."""
    room = _room(parts) if count is None else count
    dtype = np.dtype(np.int32) if parts[0].dtype == np.int64 else parts[0].dtype
    whole = np.full((len(parts), room, *parts[0].shape[1:]), fill, dtype)
    for row, part in zip(whole, parts, strict=True):
        row[:len(part)] = part
    return whole.reshape(-1, *parts[0].shape[1:])
