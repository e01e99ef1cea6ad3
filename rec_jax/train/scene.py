"""What an objective may see of a step when it draws negatives, made only if it looks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.mesh import replicated
from rec_jax.objectives import Task
from rec_jax.objectives.base import Negatives, Scene
from rec_jax.tables.on_mesh import catalogue_top_k, shared_softmax
from rec_jax.train.mode import Array, Batch, Setting, queries_of
from rec_jax.train.state import TrainState


def draw(setting: Setting, state: TrainState, batch: Batch, tasks: Task, key: Array,
         vectors: Callable[[], Array]) -> Negatives:
    """The negatives of a step; tasks are stacked over micro-batches `[A, ...]`.

    vectors: () -> rows of the inputs `[A, B * L, d]`, asked for only if the objective wants the
      queries.
    """
    table, mesh = state.table, setting.mesh

    def queries() -> Array:
        def one(_: None, each: tuple[Array, Batch, Task]) -> tuple[None, Array]:
            # Without dropout: what is near to a query should not depend on chance.
            return None, queries_of(setting, state.encoder, *each, None)

        return jax.lax.stop_gradient(jax.lax.scan(one, None, (vectors(), batch, tasks))[1])

    def best(queries: Array, k: int, exclude: Any) -> tuple[Array, Array]:
        queries = jax.lax.with_sharding_constraint(queries, replicated(mesh))
        exclude = None if exclude is None else table.row_map.rows(exclude)
        scores, rows = catalogue_top_k(mesh, queries, jax.lax.stop_gradient(table.rows), k, exclude,
                                       num_items=table.num_items, over=table.over)
        if table.row_map.identity:
            return scores, rows
        # Of equal scores the lower id comes first again; which of them are among the k, where not
        # all are, follows from their rows.
        score, ids = jax.lax.sort((-scores, table.row_map.ids(rows)), num_keys=2)
        return -score, ids

    log_q = batch.get("log_q")
    drawn: Negatives = setting.objective.draw(key, Scene(
        table.num_items, tasks.targets, jnp.asarray(tasks.present, jnp.float32),
        None if log_q is None else log_q.reshape(tasks.targets.shape), queries, best))
    return drawn


def loss_of_rows(setting: Setting, queries: Array, label_rows: Array, negative_rows: Array,
                 task: Task, negatives: Negatives) -> Array:
    """f32 `[N]`: the objective's loss, with a softmax that knows the mesh."""
    found: Array = setting.objective.loss_of_rows(
        queries, label_rows, negative_rows, task, negatives,
        functools.partial(shared_softmax, setting.mesh))
    return found


def keep(negatives: Negatives) -> tuple[dict[str, Any], dict[str, Any]]:
    """`negatives` as parts of `Opened.fixed` and `Opened.each`; the inverse is `kept`."""
    drawn = {"negatives": (negatives.ids, negatives.log_expected)}
    aux = {"aux": negatives.aux}
    return ({**drawn, **aux}, {}) if negatives.ids.ndim == 1 else (aux, drawn)


def kept(fixed: dict[str, Any]) -> Negatives:
    """The negatives of one micro-batch, from what the loss gets."""
    ids, log_expected = fixed["negatives"]
    return Negatives(ids, log_expected, fixed["aux"])
