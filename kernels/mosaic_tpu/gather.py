"""Rows picked from a table on TPU without a copy of it.

XLA's gather takes rows as they are in `[V, d]`. Where a table is stored with the features first
(d not a multiple of 128), XLA copies all of it into the other order before it picks a few rows.
This kernel fetches the 128 rows around each wanted one, as they lie, and keeps one of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..primitives import Array
from .tiles import LANES, round_up, stored_features_first, stream

AT_ONCE = 8
"""Rows that one grid step fetches."""
IDS_PER_CALL = 32768
"""Ids that scalar memory holds at once (4 bytes each)."""


def gather_rows(items: Array, ids: Array, *, interpret: Any = False) -> Array:
    """`items[ids]`, `[N, d]`, for int32 `ids` `[N]` in `[0, V)`; bytes read grow with N alone."""
    rows, dim = items.shape
    if not stored_features_first(rows, dim):
        return items[ids]
    count = ids.shape[0]
    size = min(IDS_PER_CALL, round_up(count, LANES))
    parts = jnp.pad(ids.astype(jnp.int32), (0, round_up(count, size) - count)).reshape(-1, size)
    table = items.T
    picked = [_pick(table, part, interpret) for part in parts]
    return jnp.concatenate(picked, axis=1).T[:count]


def _pick(table: Array, ids: Array, interpret: Any) -> Array:
    """`[d, N]` from the table `[d, V]`; N is a multiple of 128."""
    dim, count = table.shape[0], ids.shape[0]

    def around(number: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (dim, LANES), lambda i, wanted: (0, jax.lax.div(wanted[i * AT_ONCE + number], LANES)))

    (out,) = stream(
        _kernel, (ids, [table] * AT_ONCE), ([around(number) for number in range(AT_ONCE)],),
        (jax.ShapeDtypeStruct((dim, count), table.dtype),),
        (pl.BlockSpec((dim, LANES), lambda i, wanted: (0, jax.lax.div(i, LANES // AT_ONCE))),),
        grid=(count // AT_ONCE,), scratch={}, name="catalogue_gather", interpret=interpret,
        prefetch=1)
    return out


def _kernel(ids: Any, blocks: list[Any], out: Any) -> None:
    first = pl.program_id(0) * AT_ONCE
    lane = jax.lax.broadcasted_iota(jnp.int32, out.shape, 1)
    picked = out[...].astype(jnp.float32)
    for number, block in enumerate(blocks):
        wanted = jax.lax.rem(ids[first + number], LANES)
        column = jnp.where(lane == wanted, block[...].astype(jnp.float32), 0.0)
        column = jnp.sum(column, axis=1, keepdims=True)
        picked = jnp.where(lane == jax.lax.rem(first + number, LANES), column, picked)
    out[...] = picked.astype(out.dtype)
