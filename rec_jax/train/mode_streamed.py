"""Streamed: full softmax over a table whose gradient is never an array.

The inputs' rows are fetched as in `mode_sparse`. The loss reads the table as a constant; the
cotangents of loss and lse come out as gradients of zeros that are added to them, and the
kernel's second pass turns them into each tile's gradient and takes the optimizer step there.
The inputs' gradients join in the tiles, or, of untied tables, move the touched rows of the other.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.kernels.compat import materialise
from rec_jax.objectives import Task
from rec_jax.tables import other_stream, row_optimizer
from rec_jax.tables.on_mesh import apply_streamed, full_softmax
from rec_jax.tables.update_streamed import Scored
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
from rec_jax.train.state import TrainState
from rec_jax.train.touched import touch, update


def open(setting: Setting, state: TrainState, batch: Batch, tasks: Task, key: Array) -> Opened:
    """See `Mode.open`."""
    del key
    table, inputs = state.table, state.inputs
    count = batch["items"].shape[0]
    wanted = {"inputs": batch["items"].reshape(count, -1)}
    masks = {"inputs": batch["segments"].reshape(count, -1) > 0}
    touched = touch(setting, table if inputs is None else inputs, wanted, masks)
    zeros = jnp.zeros(tasks.targets.shape, jnp.float32)
    own = {"inputs": touched.vectors["inputs"], "loss_zero": zeros, "lse_zero": zeros}
    fixed = {"num_items": table.num_items, "rows": table.rows, "over": table.over,
             "row_map": table.row_map}

    def close(closing: Closing) -> Tables:
        to_vectors, joined, new_inputs = {"inputs": closing.own["inputs"]}, None, None
        if inputs is None:
            joined = (touched.fetched.unique.ids, *touched.pull(to_vectors))
        queries, plain, lse = closing.left
        scored = Scored(*(x.reshape(-1, *x.shape[2:]) for x in (
            queries, table.row_map.rows(tasks.targets), plain, lse, closing.own["loss_zero"],
            closing.own["lse_zero"])))
        if inputs is not None:
            # The backward pass reads the rows of the labels. Nothing else says that this comes
            # before the update, and where it may come after it XLA copies the whole table.
            scored, to_vectors = materialise((scored, to_vectors), state.step)
            new_inputs = update(setting, touched, to_vectors, closing.hyper,
                                other_stream(closing.seed))
        return Tables(apply_streamed(
            setting.mesh, table, scored, joined, row_optimizer(setting.table.optimizer).update,
            closing.hyper, seed=closing.seed, **_scoring(setting)), new_inputs)

    return Opened({"encoder": state.encoder}, own, fixed, {}, close)


def loss(setting: Setting, shared: dict[str, Any], own: dict[str, Any], fixed: dict[str, Any],
         micro: Batch, task: Task, key: Array) -> tuple[Array, Any]:
    """See `Mode.loss`."""
    queries = queries_of(setting, shared["encoder"], own["inputs"], micro, task, key)
    plain, lse = full_softmax(setting.mesh, queries, jax.lax.stop_gradient(fixed["rows"]),
                              fixed["row_map"].rows(task.targets),
                              num_items=fixed["num_items"], over=fixed["over"],
                              **_scoring(setting))
    plain, lse = plain + own["loss_zero"], lse + own["lse_zero"]
    found = setting.objective.combine(plain, lse, queries, None)
    return weighted(found, task.weights), (queries, plain, lse)


def _scoring(setting: Setting) -> dict[str, Any]:
    objective = setting.objective
    return {"logit_scale": objective.scale, "softcap": objective.softcap,
            "backend": objective.backend}
