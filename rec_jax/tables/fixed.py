"""Columns of a table that never change: they travel with their rows, no optimizer moves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from rec_jax.kernels.primitives import RowUpdate
from rec_jax.mesh import row_sharding
from rec_jax.tables.table import Table

Array = jax.Array


def with_fixed(table: Table, mesh: Mesh, columns: int,
               read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]) -> Table:
    """The table with `columns` fixed ones behind those that train, in the place of any it had.

    read: items int64 `[n]`, from V on for padding -> f32 `[n, columns]`. A process reads those of
      its own devices alone.
    """
    total, where = table.rows.shape[0], row_sharding(mesh, table.over)

    def part(index: Any) -> npt.NDArray[np.float32]:
        rows = np.arange(total)[index[0]]
        return np.asarray(read(np.asarray(table.row_map.ids(rows), np.int64)), np.float32)

    fixed = jax.make_array_from_callback((total, columns), where, part)
    joined = jax.jit(lambda rows, fixed: jnp.concatenate(
        [rows, fixed.astype(rows.dtype)], axis=1), out_shardings=where)
    return table.replace(rows=joined(table.trained, fixed), fixed=columns)


def leave_rows(rows: Array, grads: Array, state: Any, hyper: Any) -> tuple[Array, Any]:
    """The `update` of a row optimizer that leaves everything as it is."""
    del grads, hyper
    return rows, state


def trained_only(update: RowUpdate, fixed: int) -> RowUpdate:
    """A row optimizer's `update` that leaves the last `fixed` columns as they are."""
    if not fixed:
        return update

    def part(rows: Array, grads: Array, state: Any, hyper: Any) -> tuple[Array, Any]:
        width = rows.shape[1] - fixed
        new, state = update(rows[:, :width], grads[:, :width], state, hyper)
        return jnp.concatenate([new, rows[:, width:]], axis=1), state

    return part
