"""Queries and the best items, for an objective that mines negatives; computed only when called."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rec_jax.model.encoder import Params
from rec_jax.model.heads import apply_head
from rec_jax.objectives.base import Search, Task
from rec_jax.tables import Table
from rec_jax.train.dense import take_rows
from rec_jax.train.mode import Array, Batch, Setting, queries_of, top_k


def search_in(setting: Setting, table: Table, params: Params, batch: Batch, tasks: Task,
              vectors: Callable[[], Array]) -> Search:
    """The queries of a step and a search of `table`; tasks are stacked over micro-batches.

    vectors: () -> rows of the inputs `[A, B * L, d]`, asked for only if the objective wants the
      queries.
    """
    # What is the same for all of them is not stacked, and nothing that an encoder reads.
    tasks = tasks._replace(shared={}, constants=None)

    def queries() -> Array:
        def one(_: None, each: tuple[Array, Batch, Task]) -> tuple[None, Array]:
            # Without dropout: what is near to a query should not depend on chance.
            return None, queries_of(setting, params, *each, None)

        return jax.lax.stop_gradient(jax.lax.scan(one, None, (vectors(), batch, tasks))[1])

    def best(queries: Array, k: int, exclude: Array | None) -> tuple[Array, Array]:
        expanded = setting.encoder.source.expand(params, queries)
        return top_k(setting.mesh, table, expanded, k, exclude)

    def scores(queries: Array, ids: Array) -> Array:
        rows = take_rows(table.rows, table.row_map.rows(ids))
        expanded = setting.encoder.source.expand(params, queries)
        return jax.lax.stop_gradient(jnp.sum(
            expanded.astype(jnp.float32) * rows.astype(jnp.float32), axis=-1))

    def head(name: str, queries: Array) -> Array:
        return jax.lax.stop_gradient(apply_head(params, name, queries))

    return Search(table.num_items, queries, best, scores, head)
