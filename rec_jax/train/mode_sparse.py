"""Sparse: a step touches its inputs, targets and negatives; only those rows move.

They are fetched once, each distinct row once a device, differentiated as fetched, and updated in
place with their state.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.mesh import replicated
from rec_jax.objectives import Task
from rec_jax.tables import Table, row_optimizer
from rec_jax.tables.marks import marking
from rec_jax.tables.on_mesh import apply_sparse, fetch, spread
from rec_jax.train.mode import Array, Batch, Closing, Opened, Setting, queries_of, weighted
from rec_jax.train.state import TrainState


def open(setting: Setting, state: TrainState, batch: Batch, tasks: Task, key: Array) -> Opened:
    """See `Mode.open`."""
    table, mesh = state.table, setting.mesh
    count = batch["items"].shape[0]
    negatives = setting.objective.draw(key, table.num_items)
    size = negatives.ids.size
    spare = -size % mesh.size  # the devices share the negatives evenly
    ids = jnp.pad(negatives.ids, (0, spare))[None]
    wanted = {"inputs": batch["items"].reshape(count, -1), "labels": tasks.targets,
              "negatives": ids}
    masks = {"inputs": batch["segments"].reshape(count, -1) > 0, "labels": tasks.weights > 0,
             "negatives": (jnp.arange(size + spare) < size)[None]}
    fetched = fetch(mesh, table, wanted, masks, slack=setting.table.gather_slack)
    vectors, pull = jax.vjp(lambda rows: spread(mesh, rows, fetched.unique, wanted),
                            fetched.rows.astype(jnp.float32))
    # Every position reads every negative: bring them here once.
    shared = {"encoder": state.encoder, "negatives": jax.lax.with_sharding_constraint(
        vectors["negatives"][0, :size], replicated(mesh))}
    own = {"inputs": vectors["inputs"], "labels": vectors["labels"]}

    def close(closing: Closing) -> Table:
        to_negatives = jnp.pad(closing.shared["negatives"], ((0, spare), (0, 0)))[None]
        (to_rows,) = pull({**closing.own, "negatives": to_negatives})
        return apply_sparse(mesh, table, fetched, to_rows,
                            marking(row_optimizer(setting.table.optimizer).update, table.state),
                            closing.hyper,
                            seed=closing.seed)

    return Opened(shared, own, {"negatives": negatives}, close)


def loss(setting: Setting, shared: dict[str, Any], own: dict[str, Any], fixed: dict[str, Any],
         micro: Batch, task: Task, key: Array) -> tuple[Array, Any]:
    """See `Mode.loss`."""
    queries = queries_of(setting, shared["encoder"], own["inputs"], micro, task, key)
    found = setting.objective.loss_of_rows(queries, own["labels"], shared["negatives"],
                                           task.targets, fixed["negatives"])
    return weighted(found, task.weights), ()
