"""Sparse: a step touches its inputs, targets and negatives; only those rows move.

They are fetched once, each distinct row once a device, differentiated as fetched, and updated in
place with their state; see `rec_jax.train.touched`. Of untied tables one has the inputs, the other
targets and negatives.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.mesh import replicated
from rec_jax.objectives import Task
from rec_jax.tables import other_stream
from rec_jax.tables.on_mesh import fetch, spread
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
from rec_jax.train.state import TrainState
from rec_jax.train.touched import touch, update


def open(setting: Setting, state: TrainState, batch: Batch, tasks: Task, key: Array) -> Opened:
    """See `Mode.open`."""
    table, mesh = state.table, setting.mesh
    count = batch["items"].shape[0]
    inputs = {"inputs": batch["items"].reshape(count, -1)}
    filled = {"inputs": batch["segments"].reshape(count, -1) > 0}
    apart = None if state.inputs is None else touch(setting, state.inputs, inputs, filled)

    def input_rows() -> Array:
        if apart is not None:
            return apart.vectors["inputs"]
        fetched = fetch(mesh, table, inputs, filled, slack=setting.table.gather_slack)
        return spread(mesh, fetched.rows, fetched.unique, inputs)["inputs"]

    negatives = scene.draw(setting, state, batch, tasks, key, input_rows)
    alike = negatives.ids.ndim == 1  # for all positions
    size = negatives.ids.size
    spare = -size % mesh.size if alike else 0  # the devices share the negatives evenly
    ids, present = (jnp.pad(x.reshape(1 if alike else count, -1), ((0, 0), (0, spare)))
                    for x in (negatives.ids, negatives.log_expected < jnp.inf))
    assert tasks.present is not None
    wanted = {"labels": tasks.targets, "negatives": ids}
    masks = {"labels": tasks.present, "negatives": present}
    if apart is None:
        wanted, masks = {**inputs, **wanted}, {**filled, **masks}
    touched = touch(setting, table, wanted, masks)
    vectors = {**touched.vectors, **({} if apart is None else apart.vectors)}
    shared: dict[str, Any] = {"encoder": state.encoder}
    if alike:  # every position reads every negative: bring them here once
        shared["negatives"] = jax.lax.with_sharding_constraint(
            vectors["negatives"][0, :size], replicated(mesh))
        del vectors["negatives"]

    def close(closing: Closing) -> Tables:
        to_vectors = dict(closing.own)
        if alike:
            to_vectors["negatives"] = jnp.pad(closing.shared["negatives"],
                                              ((0, spare), (0, 0)))[None]
        new_inputs = None
        if apart is not None:
            new_inputs = update(setting, apart, {"inputs": to_vectors.pop("inputs")},
                                closing.hyper, other_stream(closing.seed))
        return Tables(update(setting, touched, to_vectors, closing.hyper, closing.seed),
                      new_inputs)

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
