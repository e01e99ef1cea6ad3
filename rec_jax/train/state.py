"""The training state: one pytree of arrays, and how it starts."""

from __future__ import annotations

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
