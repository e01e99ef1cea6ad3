"""Apply a whole gradient's update: for tables small enough that the gradient may exist."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec_jax.kernels.rounding import store_rows
from rec_jax.tables.row_map import RowMap

Array = jax.Array


def update_dense(rows: Array, updates: Array, *, seed: Array | None = None,
                 row_map: RowMap | None = None) -> Array:
    """`rows + updates`, both `[V_padded, d]`, in the type of the rows.

    What `optax.apply_updates` does, but bf16 rows are rounded stochastically from `seed`
    (uint32 `[]`): to nearest, an update smaller than half a step of bf16 would be lost for ever.
    Elementwise, so a sharded table stays where it is. row_map: which item has a row; by default its
    number.
    """
    ids = jax.lax.iota(jnp.int32, rows.shape[0])
    ids = ids if row_map is None else row_map.ids(ids)
    return store_rows(rows.astype(jnp.float32) + updates.astype(jnp.float32), rows.dtype, ids,
                      seed)
