"""Dense: the rows are a parameter like the encoder's, with a gradient and optax's moments."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from rec_jax.objectives import Task
from rec_jax.objectives.catalogue import mean_of_rows
from rec_jax.tables import Table
from rec_jax.tables.on_mesh import full_softmax
from rec_jax.tables.update_dense import update_dense
from rec_jax.train import scene
from rec_jax.train.mode import Array, Batch, Closing, Opened, Setting, queries_of, weighted
from rec_jax.train.state import TrainState


def open(setting: Setting, state: TrainState, batch: Batch, tasks: Task, key: Array) -> Opened:
    """See `Mode.open`."""
    table = state.table
    fixed: dict[str, Any] = {"num_items": table.num_items}
    each: dict[str, Any] = {}
    if setting.objective.num_negatives is not None:
        count = batch["items"].shape[0]
        negatives = scene.draw(
            setting, state, batch, tasks, key,
            lambda: _take(table.rows, batch["items"]).reshape(count, -1, table.rows.shape[1]))
        alike, each = scene.keep(negatives)
        fixed |= alike

    def close(closing: Closing) -> Table:
        return table.replace(rows=update_dense(table.rows, closing.updates["rows"],
                                               seed=closing.seed))

    return Opened({"encoder": state.encoder, "rows": table.rows}, {}, fixed, each, close)


def loss(setting: Setting, shared: dict[str, Any], own: dict[str, Any], fixed: dict[str, Any],
         micro: Batch, task: Task, key: Array) -> tuple[Array, Any]:
    """See `Mode.loss`."""
    del own
    rows, objective = shared["rows"], setting.objective
    vectors = _take(rows, micro["items"])
    queries = queries_of(setting, shared["encoder"], vectors, micro, task, key)
    if objective.num_negatives is not None:
        negatives = scene.kept(fixed)
        found = scene.loss_of_rows(setting, queries, rows[task.targets], rows[negatives.ids],
                                   task, negatives)
        return weighted(found, task.weights), ()
    num_items = fixed["num_items"]
    plain, lse = full_softmax(setting.mesh, queries, rows.astype(setting.compute), task.targets,
                              num_items=num_items, logit_scale=objective.scale,
                              softcap=objective.softcap, backend=objective.backend)
    mean = mean_of_rows(rows, num_items) if objective.needs_mean_row else None
    return weighted(objective.combine(plain, lse, queries, mean), task.weights), ()


def _take(rows: Array, ids: Array) -> Array:
    """Rows of all `ids`, flat: `[ids.size, d]`."""
    ids = ids.reshape(-1)
    # A negative id would count from the end; past the end it gives NaN, as all bad ids do.
    return jnp.take(rows, jnp.where(ids < 0, rows.shape[0], ids), axis=0)
