"""The training step: fetch rows, encode, loss, backward, update. Traced once, state donated.

One function for one CPU and for a pod. The encoder and its optimizer are ordinary code on global
arrays, cut over both mesh axes by XLA; random numbers are functions of global positions, so
dropout and masks are those of one device. Only where rows meet the mesh are there islands of
`shard_map` (`rec_jax.tables.on_mesh`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rec_jax import streams
from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig, batch_sharding, make_mesh
from rec_jax.model.encoder import Encoder
from rec_jax.objectives import Objective, Task
from rec_jax.tables import Hyper, TableConfig
from rec_jax.tables.choose import Mode as ModeName
from rec_jax.train import mode_dense, mode_sparse, mode_streamed
from rec_jax.train.mode import Array, Batch, Closing, Mode, Setting
from rec_jax.train.state import TrainState, averaged, state_shardings, weights

MODES: dict[str, Mode] = {
    "dense": cast(Mode, mode_dense),
    "sparse": cast(Mode, mode_sparse),
    "streamed": cast(Mode, mode_streamed),
}


class StepMetrics(NamedTuple):
    """Scalars of one step.

    loss: weighted mean over the positions that have a target; NaN if an id is bad.
    positions: how many those are.
    gradient_norm: global norm before clipping, of the rows too where optax trains them.
    bad_ids: int32, inputs and targets that are no item; see `check_ids`.
    divisor: what the sum of the losses was divided by; `positions` where no position is weighted.
    """

    loss: jax.Array
    positions: jax.Array
    gradient_norm: jax.Array
    bad_ids: jax.Array
    divisor: jax.Array


Step = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def make_train_step(encoder: Encoder, objective: Objective,
                    optimizer: optax.GradientTransformation, *, precision: str = "f32",
                    ema: float | None = None, table: TableConfig | None = None,
                    mode: ModeName = "dense", mesh: Mesh | None = None,
                    rate: optax.Schedule | None = None) -> Step:
    """One update on `mesh` (default: one device), jitted, with the state donated.

    The gradient of the mean over all micro-batches is exact: sums of weighted losses and of
    divisors are accumulated, and divided once.

    optimizer: of the encoder, and of the rows (of both tables) where `mode` is dense.
    table: its `optimizer` is that of the rows in the other modes, where `rate` gives its learning
      rate by step unless it has its own.

    Raises:
      InputError: objective or average do not fit `mode`, or (when traced) the batch not the
        mesh.
    """
    table = table or TableConfig()
    mesh = mesh or make_mesh(MeshConfig())
    _check(objective, mode, ema)
    own_rate = table.optimizer.rate
    if mode != "dense" and rate is None and own_rate is None:
        raise InputError(f"a {mode} table trains with its own optimizer, and nothing says its "
                         "learning rate; expected `rate` or table.optimizer.rate")
    rates = rate if own_rate is None else optax.constant_schedule(own_rate)
    setting = Setting(encoder, objective, table, mesh, DTYPES[precision])
    table_mode = MODES[mode]

    def loss_of(shared: Any, own: Any, fixed: Any, micro: Batch, task: Task, key: Array) -> Any:
        return table_mode.loss(setting, shared, own, fixed, micro, task, key)

    gradient = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        count = _micro_batches(batch, mesh)
        run, now = jax.random.wrap_key_data(state.key), state.step
        tasks = jax.vmap(lambda items, targets, segments, key: _cut_evenly(
            objective.task(items, targets, segments, key).settled(), mesh.size))(
            batch["items"], batch["targets"], batch["segments"],
            streams.of_micro_batches(run, now, count, streams.TASK))
        assert tasks.present is not None
        dropout = streams.of_micro_batches(run, now, count, streams.DROPOUT)
        opened = table_mode.open(setting, state, batch, tasks,
                                 streams.of_step(run, now, streams.NEGATIVES))

        def one(carry: Any, each: Any) -> Any:
            own, given, micro, task, key = each
            (loss, left), (to_shared, to_own) = gradient(
                opened.shared, own, {**opened.fixed, **given}, micro, task, key)
            sums = (loss, task.divisor, to_shared)
            return jax.tree.map(jnp.add, carry, sums), (to_own, left)

        zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, opened.shared))
        (loss, divisor, to_shared), (to_own, left) = jax.lax.scan(
            one, zero, (opened.own, opened.each, batch, tasks, dropout))
        share = jnp.where(divisor != 0, 1.0 / jnp.where(divisor != 0, divisor, 1.0), 0.0)
        to_shared, to_own = jax.tree.map(lambda leaf: leaf * share, (to_shared, to_own))

        names = [name for name in ("encoder", "rows", "inputs") if name in opened.shared]
        grads = {name: to_shared[name] for name in names}
        updates, opt_state = optimizer.update(grads, state.optimizer,
                                              {name: opened.shared[name] for name in names})
        hyper = Hyper(jnp.asarray(0.0 if rates is None else rates(now), jnp.float32))
        seed = jax.random.bits(streams.of_step(run, now, streams.ROUNDING), (), jnp.uint32)
        new_table, new_inputs = opened.close(Closing(to_shared, to_own, left, updates, hyper, seed))
        new_encoder = optax.apply_updates(state.encoder, updates["encoder"])
        average, rest = state.average, state.rest
        if average is not None and rest is not None and ema is not None:
            average, rest = averaged(average, rest, weights(new_encoder, new_table, new_inputs),
                                     ema)
        new = TrainState(state.step + 1, new_encoder, new_table, opt_state, average, state.key,
                         new_inputs, rest)
        metrics = StepMetrics(loss * share, jnp.sum(tasks.present, dtype=jnp.float32),
                              optax.tree.norm(grads), _count_bad(batch, state.table.num_items),
                              divisor)
        return jax.lax.with_sharding_constraint(new, state_shardings(new, mesh)), metrics

    return jax.jit(step, donate_argnums=0)


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """A process's rows `[A, B / processes, L, ..]` as arrays `[A, B, L, ..]` cut over B."""
    sharding = batch_sharding(mesh, axis=1)
    return {name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()}


def check_ids(bad: int) -> None:
    """Refuse a step whose batch named items that do not exist, from `StepMetrics.bad_ids`.

    Raises:
      InputError: with their number. The state is no longer usable: go back to a checkpoint.
    """
    if bad:
        raise InputError(f"{bad} item ids of a batch are no rows of the table; expected ids from "
                         f"0 to num_items - 1 (dataset and table do not belong together?)")


def _check(objective: Any, mode: ModeName, ema: float | None) -> None:
    if mode != "dense" and (mode == "sparse") != (objective.num_negatives is not None):
        raise InputError(f"table.update = {mode!r} does not fit objective {objective.kind!r}")
    if mode == "streamed" and objective.needs_mean_row:
        raise InputError("objective.label_smoothing needs the mean row and its gradient, which a "
                         "streamed table does not make; expected 0, or table.update = 'dense'")
    if mode != "dense" and ema is not None:
        raise InputError(f"train.ema would touch every row in every step, which table.update = "
                         f"{mode!r} avoids; expected no ema, or table.update = 'dense'")


def _micro_batches(batch: Batch, mesh: Mesh) -> int:
    count, rows, _ = batch["items"].shape
    if rows % mesh.size:
        raise InputError(f"{rows} rows of a micro-batch cannot be cut over {mesh.size} devices; "
                         f"expected a multiple (train.rows, train.accumulate)")
    return int(count)


def _cut_evenly(task: Task, devices: int) -> Task:
    """The task with positions of weight 0 behind it until the devices divide their number."""
    spare = -task.targets.shape[0] % devices
    if not spare:
        return task
    if task.where is None:
        raise InputError(f"{task.targets.shape[0]} positions cannot be cut over {devices} devices")
    assert task.present is not None
    where, targets, weights, present = (jnp.pad(x, (0, spare)) for x in (
        task.where, task.targets, task.weights, task.present))
    return task._replace(where=where, targets=targets, weights=weights, present=present)


def _count_bad(batch: Batch, num_items: int) -> Array:
    items, targets = batch["items"], batch["targets"]
    inputs = ((items < 0) | (items >= num_items)) & (batch["segments"] > 0)
    return (jnp.sum(inputs) + jnp.sum((targets < -1) | (targets >= num_items))).astype(jnp.int32)
