"""What the step and the three ways to train a table say to each other.

A mode opens the table for a step (what of it the loss sees and is differentiated by), gives the
loss of one micro-batch, and closes the table with the gradients. See `mode_dense`,
`mode_sparse` and `mode_streamed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rec_jax.model.encoder import Encoder, Params
from rec_jax.model.encoders import Inputs
from rec_jax.objectives import Task
from rec_jax.tables import Hyper, Table, TableConfig
from rec_jax.train.state import TrainState

Array = jax.Array
Batch = dict[str, Any]
"""items, targets (-1: none), segments (0: padding), positions: int32 `[A, B, L]` for A
micro-batches; times as well where the model uses them, features/NAME `[A, B, L, K]` where it
has side features, and f32 log_q, log of each target's share of all labels, where the objective
does."""


class Setting(NamedTuple):
    """What a step is made for; static. compute: dtype of encoder and scores."""

    encoder: Encoder
    objective: Any
    table: TableConfig
    mesh: Mesh
    compute: Any


class Closing(NamedTuple):
    """What a mode gets to finish a step.

    shared, own: gradients of the mean loss, in the structure of `Opened`.
    left: what the loss left, stacked over micro-batches.
    updates: optax's updates of the trained parameters in `shared`.
    seed: uint32 `[]`, for stochastic rounding.
    """

    shared: dict[str, Any]
    own: dict[str, Any]
    left: Any
    updates: dict[str, Any]
    hyper: Hyper
    seed: Array


class Tables(NamedTuple):
    """The tables after a step; inputs: the second one, None if tied."""

    table: Table
    inputs: Table | None = None


class Opened(NamedTuple):
    """A table in one step.

    shared: differentiated, the same for every micro-batch; `encoder`, and `rows` where optax
      trains them (and `inputs`, the second table's), are updated by optax.
    own: differentiated, one slice `[A, ...]` for each micro-batch.
    fixed: not differentiated, the same for every micro-batch.
    each: not differentiated, one slice `[A, ...]` for each; the loss finds it in `fixed`.
    close: the new tables.
    """

    shared: dict[str, Any]
    own: dict[str, Any]
    fixed: dict[str, Any]
    each: dict[str, Any]
    close: Callable[[Closing], Tables]


class Mode(Protocol):
    """A module that fills this trains a table."""

    def open(self, setting: Setting, state: TrainState, batch: Batch, tasks: Task,
             key: Array) -> Opened:
        """tasks: stacked over micro-batches `[A, ...]`."""
        ...

    def loss(self, setting: Setting, shared: dict[str, Any], own: dict[str, Any],
             fixed: dict[str, Any], micro: Batch, task: Task, key: Array) -> tuple[Array, Any]:
        """Weighted sum of the losses of one micro-batch, and what `Closing.left` stacks."""
        ...


def queries_of(setting: Setting, params: Params, vectors: Array, micro: Batch, task: Task,
               key: Array | None) -> Array:
    """Input vectors `[B * L, d]` -> queries `[N, d]` of the task's positions, compute dtype.

    key: of dropout; None: there is none.
    """
    batch, length = micro["items"].shape
    vectors = vectors.reshape(batch, length, -1)
    inputs = Inputs(micro["segments"], micro["positions"], micro.get("times"),
                    {feature.path: micro[feature.path] for feature in setting.encoder.features
                     if feature.path in micro})
    queries = setting.encoder(params, vectors, inputs, key, task.hidden)
    flat = queries.reshape(batch * length, -1)
    return (flat if task.where is None else flat[task.where]).astype(setting.compute)


def weighted(loss: Array, weights: Array) -> Array:
    """Sum of `loss * weights`, of either sign; a position without weight cannot spoil it with nan
    or inf."""
    return jnp.sum(jnp.where(weights != 0, loss * weights, 0.0))
