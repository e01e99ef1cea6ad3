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
from rec_jax.tables.on_mesh import Fetched, apply_sparse, fetch, spread
from rec_jax.train import scene
from rec_jax.train.mode import Array, Batch, Closing, Opened, Setting, queries_of, weighted
from rec_jax.train.state import TrainState


def open(setting: Setting, state: TrainState, batch: Batch, tasks: Task, key: Array) -> Opened:
    """See `Mode.open`."""
    table, mesh = state.table, setting.mesh
    count = batch["items"].shape[0]
    inputs = {"inputs": batch["items"].reshape(count, -1)}
    filled = {"inputs": batch["segments"].reshape(count, -1) > 0}

    def fetch_these(wanted: dict[str, Array], masks: dict[str, Array]) -> Fetched:
        return fetch(mesh, table, wanted, masks, slack=setting.table.gather_slack)

    def input_rows() -> Array:
        fetched = fetch_these(inputs, filled)
        return spread(mesh, fetched.rows, fetched.unique, inputs)["inputs"]

    negatives = scene.draw(setting, state, batch, tasks, key, input_rows)
    alike = negatives.ids.ndim == 1  # for all positions
    size = negatives.ids.size
    spare = -size % mesh.size if alike else 0  # the devices share the negatives evenly
    ids, present = (jnp.pad(x.reshape(1 if alike else count, -1), ((0, 0), (0, spare)))
                    for x in (negatives.ids, negatives.log_expected < jnp.inf))
    wanted = {**inputs, "labels": tasks.targets, "negatives": ids}
    fetched = fetch_these(wanted, {**filled, "labels": tasks.weights > 0, "negatives": present})
    vectors, pull = jax.vjp(lambda rows: spread(mesh, rows, fetched.unique, wanted),
                            fetched.rows.astype(jnp.float32))
    shared: dict[str, Any] = {"encoder": state.encoder}
    if alike:  # every position reads every negative: bring them here once
        shared["negatives"] = jax.lax.with_sharding_constraint(
            vectors["negatives"][0, :size], replicated(mesh))
        del vectors["negatives"]

    def close(closing: Closing) -> Table:
        to_vectors = dict(closing.own)
        if alike:
            to_vectors["negatives"] = jnp.pad(closing.shared["negatives"],
                                              ((0, spare), (0, 0)))[None]
        (to_rows,) = pull(to_vectors)
        return apply_sparse(mesh, table, fetched, to_rows,
                            marking(row_optimizer(setting.table.optimizer).update, table.state),
                            closing.hyper,
                            seed=closing.seed)

    return Opened(shared, vectors, *scene.keep(negatives), close)


def loss(setting: Setting, shared: dict[str, Any], own: dict[str, Any], fixed: dict[str, Any],
         micro: Batch, task: Task, key: Array) -> tuple[Array, Any]:
    """See `Mode.loss`."""
    queries = queries_of(setting, shared["encoder"], own["inputs"], micro, task, key)
    negatives = scene.kept(fixed)
    rows = shared["negatives"] if "negatives" in shared else own["negatives"]
    found = scene.loss_of_rows(setting, queries, own["labels"],
                               rows.reshape(*negatives.ids.shape, -1), task, negatives)
    return weighted(found, task.weights), ()
