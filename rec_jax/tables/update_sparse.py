"""Update the rows that a step touched, and nothing else: in place, in time and memory O(rows).

Call it under `jit` with rows and state donated. XLA on CPU before JAX 0.12 widens a bf16 table
to f32 around a scatter, which costs a pass over the table; f32 tables, and later versions, are
updated in place.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.kernels.primitives import RowUpdate
from rec_jax.kernels.rounding import store_rows
from rec_jax.kernels.rows import gather_rows, scatter_rows
from rec_jax.tables.gather import Route, Shards, deliver_grads
from rec_jax.tables.places import Places
from rec_jax.tables.row_map import RowMap
from rec_jax.tables.unique import NO_ID, Unique

Array = jax.Array


def update_rows(rows: Array, state: Any, ids: Array, grads: Array, update: RowUpdate, hyper: Any,
                *, offset: int | Array = 0, seed: Array | None = None,
                row_map: RowMap | None = None, places: Places | None = None
                ) -> tuple[Array, Any]:
    """One optimizer step of rows `ids`; the other rows keep their bits.

    Args:
      rows: `[T, d]`, the table's rows from number `offset` on; state: pytree of `[T, ...]`.
      ids: int32 `[M]`, numbers of rows of the whole table, ascending and distinct; those that are
        no row here are ignored.
      grads: `[M, d]`, sums over everything that used the row.
      update, hyper: the row optimizer.
      seed: uint32 `[]` for stochastic rounding of bf16 rows; None rounds to nearest.
      row_map: which item has a row, since rounding follows the item; by default its number.
      places: where the rows are, if `rows` is a cache; then there is no offset.
    """
    if places is None:
        local, backend = jnp.where(ids == NO_ID, ids, ids - offset), "auto"
    else:
        local, backend = places.find(ids), "xla"  # slots do not ascend, as the others' kernel wants
    old = jax.tree.map(lambda leaf: gather_rows(leaf, local), (rows, state))
    new, new_state = update(old[0].astype(jnp.float32), grads.astype(jnp.float32), old[1], hyper)
    items = ids if row_map is None else row_map.ids(ids)
    values = store_rows(new, rows.dtype, items, seed)
    return jax.tree.map(lambda leaf, value: scatter_rows(leaf, local, value, backend=backend),
                        (rows, state), (values, new_state))


def update_sparse(rows: Array, state: Any, grads: Array, unique: Unique, route: Route | None,
                  shards: Shards, update: RowUpdate, hyper: Any, *, seed: Array | None = None,
                  row_map: RowMap | None = None, places: Places | None = None
                  ) -> tuple[Array, Any]:
    """`update_rows` with each device's gradients `[M, d]` of its distinct ids, sent to the owners.

    rows, state: this device's share, `[V / shards.pieces, ...]`, or, with `places`, its cache.
    Every replica of a shard applies the same sums and so stays the same.
    """
    offset = shards.offset(rows)

    def apply(table: tuple[Array, Any], ids: Array, sums: Array) -> tuple[Array, Any]:
        return update_rows(*table, ids, sums, update, hyper, offset=offset, seed=seed,
                           row_map=row_map, places=places)

    return deliver_grads((rows, state), grads, unique, route, shards, apply)
