"""Rows of one table that a step names: fetched, differentiated as fetched, updated in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.tables import Hyper, Table, row_optimizer
from rec_jax.tables.marks import marking
from rec_jax.tables.on_mesh import Fetched, apply_sparse, fetch, spread
from rec_jax.train.mode import Array, Setting


class Touched(NamedTuple):
    """fetched: the distinct rows; vectors: f32 `[A, n, d]` of each wanted name; pull: gradients
    of `vectors` -> f32 `[M, d]`, that of `fetched.rows`."""

    table: Table
    fetched: Fetched
    vectors: dict[str, Array]
    pull: Callable[[dict[str, Array]], tuple[Array]]


def touch(setting: Setting, table: Table, wanted: dict[str, Array],
          masks: dict[str, Array]) -> Touched:
    """Rows of the ids `wanted` int32 `[A, n]` by name; masks: bool, False where there is none."""
    fetched = fetch(setting.mesh, table, wanted, masks, slack=setting.table.gather_slack)
    vectors, pull = jax.vjp(
        lambda rows: spread(setting.mesh, rows, fetched.unique, wanted),
        fetched.rows.astype(jnp.float32))
    return Touched(table, fetched, vectors, pull)


def update(setting: Setting, touched: Touched, to_vectors: dict[str, Array], hyper: Hyper,
           seed: Array) -> Table:
    """The table after its row optimizer's step of those rows, from gradients of their vectors."""
    (to_rows,) = touched.pull(to_vectors)
    table = touched.table
    return apply_sparse(setting.mesh, table, touched.fetched, to_rows,
                        marking(row_optimizer(setting.table.optimizer).update, table.state),
                        hyper, seed=seed)
