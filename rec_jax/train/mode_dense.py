"""Dense: the rows are a parameter like the encoder's, with a gradient and optax's moments.

Rows that are stored in bf16 are a parameter in f32 as long as the step lasts: their gradient, and
what optax keeps of it, is f32, and only what is written back is rounded.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from rec_jax.objectives import Task
from rec_jax.objectives.catalogue import mean_of_rows
from rec_jax.tables import other_stream
from rec_jax.tables.on_mesh import full_softmax
from rec_jax.tables.update_dense import update_dense
from rec_jax.train import scene
from rec_jax.train.mode import (
    Array,
    Batch,
    Closing,
    Opened,
    Setting,
    Tables,
    queries_of,
    weighted,
)
from rec_jax.train.state import TrainState, trained


def open(setting: Setting, state: TrainState, batch: Batch, tasks: Task, key: Array) -> Opened:
    """See `Mode.open`."""
    table, inputs = state.table, state.inputs
    read = (table if inputs is None else inputs).rows
    fixed: dict[str, Any] = {"num_items": table.num_items, "row_map": table.row_map}
    each: dict[str, Any] = {}
    if setting.objective.num_negatives is not None:
        count = batch["items"].shape[0]
        negatives = scene.draw(
            setting, state, batch, tasks, key,
            lambda: _take(read, table.row_map.rows(batch["items"])).reshape(
                count, -1, read.shape[1]))
        alike, each = scene.keep(negatives)
        fixed |= alike

    def close(closing: Closing) -> Tables:
        new = table.replace(rows=update_dense(table.rows, closing.updates["rows"],
                                              seed=closing.seed, row_map=table.row_map))
        if inputs is None:
            return Tables(new)
        return Tables(new, inputs.replace(rows=update_dense(
            inputs.rows, closing.updates["inputs"], seed=other_stream(closing.seed),
            row_map=inputs.row_map)))

    return Opened(trained(state.encoder, table, inputs, mode="dense"), {}, fixed, each, close)


def loss(setting: Setting, shared: dict[str, Any], own: dict[str, Any], fixed: dict[str, Any],
         micro: Batch, task: Task, key: Array) -> tuple[Array, Any]:
    """See `Mode.loss`."""
    del own
    rows, objective, row_map = shared["rows"], setting.objective, fixed["row_map"]
    vectors = _take(shared.get("inputs", rows), row_map.rows(micro["items"]))
    targets = row_map.rows(task.targets)
    queries = queries_of(setting, shared["encoder"], vectors, micro, task, key)
    if objective.num_negatives is not None:
        negatives = scene.kept(fixed)
        found = scene.loss_of_rows(setting, queries, rows[targets],
                                   rows[row_map.rows(negatives.ids)], task, negatives)
        return weighted(found, task.weights), ()
    num_items = fixed["num_items"]
    plain, lse = full_softmax(setting.mesh, queries, rows.astype(setting.compute), targets,
                              num_items=num_items, logit_scale=objective.scale,
                              softcap=objective.softcap, backend=objective.backend)
    mean = mean_of_rows(rows, num_items) if objective.needs_mean_row else None
    return weighted(objective.combine(plain, lse, queries, mean), task.weights), ()


def _take(rows: Array, numbers: Array) -> Array:
    """Rows of all `numbers`, flat: `[numbers.size, d]`."""
    numbers = numbers.reshape(-1)
    # A negative one would count from the end; past the end it gives NaN, as all bad ids do.
    return jnp.take(rows, jnp.where(numbers < 0, rows.shape[0], numbers), axis=0)
