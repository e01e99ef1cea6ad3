"""Which rows of a sparse table have moved: a mark a row, beside its optimizer state.

A checkpoint between two full ones needs only the rows that were touched since the last one
(Check-N-Run, NSDI 2022). The mark is set where the row is written, by the device that owns it,
and costs one byte a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rec_jax.kernels.primitives import RowUpdate
from rec_jax.tables.table import Table

Array = jax.Array


class Marked(NamedTuple):
    """Row state with marks. state: the row optimizer's; touched: bool `[V_padded]`."""

    state: Any
    touched: Array


def mark(table: Table) -> Table:
    """The table with no row marked."""
    state = table.state.state if isinstance(table.state, Marked) else table.state
    return table.replace(state=Marked(state, _nothing(table.rows)))


def unmark(table: Table) -> Table:
    """The table without marks."""
    return table.replace(state=table.state.state) if isinstance(table.state, Marked) else table


def marking(update: RowUpdate, state: Any) -> RowUpdate:
    """A row optimizer's `update` that also marks the rows it is given, where `state` is marked."""
    if not isinstance(state, Marked):
        return update

    def both(rows: Array, grads: Array, state: Marked, hyper: Any) -> tuple[Array, Marked]:
        rows, own = update(rows, grads, state.state, hyper)
        return rows, Marked(own, jnp.ones_like(state.touched))

    return both


def marked_rows(table: Table) -> np.ndarray:
    """Numbers of the marked rows: int64 `[T]`, ascending."""
    return np.flatnonzero(np.asarray(table.state.touched)).astype(np.int64)


def _nothing(rows: Array) -> Array:
    zeros = jnp.zeros(rows.shape[0], bool)
    where = rows.sharding
    if isinstance(where, NamedSharding):
        where = NamedSharding(where.mesh, PartitionSpec(*where.spec[:1]))
    return jax.device_put(zeros, where)
