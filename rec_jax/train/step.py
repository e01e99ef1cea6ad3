"""The training step: gather rows, encode, loss, backward, update. Traced once, state donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rec_jax.encoders import Inputs
from rec_jax.model import DTYPES, Encoder, encode
from rec_jax.objectives import Objective
from rec_jax.train.state import TrainState

Batch = dict[str, Any]
"""items, targets (-1: none), segments (0: padding), positions: int32 `[A, B, L]` for A
micro-batches; times as well where the encoder uses them."""

_DROPOUT, _TASK, _LOSS = 0, 1, 2  # independent streams of a micro-batch's key


class StepMetrics(NamedTuple):
    """Scalars of one step.

    loss: weighted mean over the positions that have a target.
    positions: how many those are.
    gradient_norm: global norm before clipping.
    """

    loss: jax.Array
    positions: jax.Array
    gradient_norm: jax.Array


Step = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def make_train_step(encoder: Encoder, objective: Objective,
                    optimizer: optax.GradientTransformation, *, precision: str,
                    ema: float | None) -> Step:
    """One update of a densely trained model, jitted, with the state donated.

    The gradient of the mean over all micro-batches is exact: sums of weighted losses and of
    weights are accumulated, and divided once.
    """
    compute = DTYPES[precision]

    def weighted_sum(trained: dict[str, Any], micro: Batch, num_items: int,
                     key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = [jax.random.fold_in(key, stream) for stream in (_DROPOUT, _TASK, _LOSS)]
        task = objective.task(micro["items"], micro["targets"], micro["segments"], keys[_TASK])
        inputs = Inputs(micro["segments"], micro["positions"], micro.get("times"))
        queries = encode(encoder, trained["encoder"], trained["rows"], micro["items"], inputs,
                         keys[_DROPOUT])
        flat = queries.reshape(-1, queries.shape[-1])  # [B * L, d]
        chosen = flat if task.where is None else flat[task.where]
        loss = objective.loss(chosen.astype(compute), trained["rows"].astype(compute), task,
                              num_items=num_items, key=keys[_LOSS])
        return jnp.sum(loss * task.weights), jnp.sum(task.weights)

    gradient = jax.value_and_grad(weighted_sum, has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        trained = {"encoder": state.encoder, "rows": state.table.rows}
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        count = batch["items"].shape[0]

        def one(index: jax.Array, micro: Batch) -> Any:
            return gradient(trained, micro, state.table.num_items,
                            jax.random.fold_in(key, index))

        if count == 1:
            total = one(jnp.int32(0), {name: value[0] for name, value in batch.items()})
        else:
            def add(carry: Any, indexed: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, one(*indexed)), None

            shapes = jax.eval_shape(one, jnp.int32(0),
                                    {name: value[0] for name, value in batch.items()})
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            total, _ = jax.lax.scan(add, zeros, (jnp.arange(count), batch))

        (loss_sum, weight_sum), grads = total
        weight = jnp.maximum(weight_sum, 1.0)
        grads = jax.tree.map(lambda leaf: leaf / weight, grads)
        updates, opt_state = optimizer.update(grads, state.optimizer, trained)
        trained = optax.apply_updates(trained, updates)
        table = state.table.replace(rows=trained["rows"])
        average = state.average
        if average is not None and ema is not None:
            average = optax.incremental_update((trained["encoder"], trained["rows"]), average,
                                               1.0 - ema)
        new = TrainState(state.step + 1, trained["encoder"], table, opt_state, average, state.key)
        return new, StepMetrics(loss_sum / weight, weight_sum, optax.tree.norm(grads))

    return jax.jit(step, donate_argnums=0)
