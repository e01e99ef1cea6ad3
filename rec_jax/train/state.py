"""The training state: one pytree of arrays, how it starts, and how a checkpoint names its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rec_jax.model import Params
from rec_jax.tables import Table


class TrainState(NamedTuple):
    """Everything that a step changes, and nothing else.

    step: int32 scalar, updates done.
    encoder: f32 parameters by path.
    table: item rows `[V_padded, d]` and their per-row optimizer state.
    optimizer: optax state of the dense parameters.
    average: moving average of (encoder, rows), or None.
    key: uint32 `[2]`, raw key of the run; step k draws from fold_in(key, k).
    """

    step: jax.Array
    encoder: Params
    table: Table
    optimizer: optax.OptState
    average: tuple[Params, jax.Array] | None
    key: jax.Array


def init_state(encoder: Params, table: Table, optimizer: optax.GradientTransformation, *,
               average: bool, seed: int) -> TrainState:
    """The state before the first step."""
    # Donated buffers must be distinct, so the average starts as a copy.
    copy: Any = jax.tree.map(jnp.copy, (encoder, table.rows)) if average else None
    return TrainState(
        step=jnp.zeros((), jnp.int32), encoder=encoder, table=table,
        optimizer=optimizer.init({"encoder": encoder, "rows": table.rows}), average=copy,
        key=jax.random.key_data(jax.random.key(seed, impl="threefry2x32")))


def served(state: TrainState) -> tuple[Params, jax.Array]:
    """The (encoder, rows) that evaluation, export and recommendation use."""
    return state.average if state.average is not None else (state.encoder, state.table.rows)


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint's named pytrees.

    model, average: encoder and rows, which a reader takes alone; training: the rest.
    """
    items: dict[str, Any] = {
        "model": {"encoder": state.encoder, "rows": state.table.rows},
        "training": {"step": state.step, "rows": state.table.state,
                     "optimizer": state.optimizer, "key": state.key},
    }
    if state.average is not None:
        items["average"] = {"encoder": state.average[0], "rows": state.average[1]}
    return items


def from_items(items: Mapping[str, Any], num_items: int) -> TrainState:
    """The inverse of `to_items`."""
    model, training, average = items["model"], items["training"], items.get("average")
    return TrainState(
        step=training["step"], encoder=model["encoder"],
        table=Table(model["rows"], training["rows"], num_items),
        optimizer=training["optimizer"],
        average=None if average is None else (average["encoder"], average["rows"]),
        key=training["key"])
