"""The training step on a mesh, for every way to update the item table.

    fetch rows -> encode -> loss -> encoder backward -> table update + optax update

One jitted function with donated state, traced once. The encoder and its optimizer are ordinary
code on global arrays, cut over both mesh axes by XLA; random numbers are functions of global
positions, so dropout and masks are those of one device. Only where rows meet the mesh are there
islands of `shard_map` (`rec_jax.tables.on_mesh`).

    dense      rows are a parameter like the encoder's, with one optax optimizer for both
    sparse     rows are fetched once, differentiated as fetched, and updated in place
    streamed   as sparse for the inputs; the softmax goes through the kernel's second pass,
               which takes the optimizer step tile by tile
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from rec_jax.encoders import Inputs
from rec_jax.errors import InputError
from rec_jax.mesh import DATA, ITEMS, batch_sharding, replicated, row_sharding
from rec_jax.model import DTYPES, Encoder, Params
from rec_jax.objectives import Objective, Task
from rec_jax.tables import Hyper, Table, TableConfig, row_optimizer
from rec_jax.tables.choose import Mode
from rec_jax.tables.on_mesh import (
    Fetched,
    apply_sparse,
    apply_streamed,
    fetch,
    full_softmax,
    spread,
)
from rec_jax.tables.update_dense import update_dense
from rec_jax.tables.update_streamed import Scored
from rec_jax.train.state import TrainState

Array = jax.Array
Batch = dict[str, Array]

_DROPOUT, _TASK, _NEGATIVES, _ROUNDING = 0, 1, 2, 3  # independent streams of a step's key


class ShardedMetrics(NamedTuple):
    """Scalars of one step.

    loss: weighted mean over the positions that have a target; NaN if an id is bad.
    positions: how many those are.
    gradient_norm: global norm before clipping, of the rows too where they train densely.
    bad_ids: int32, inputs and targets that are no item; see `check_ids`.
    """

    loss: Array
    positions: Array
    gradient_norm: Array
    bad_ids: Array


class FullSoftmax(Protocol):
    """What the step reads of an objective over the whole catalogue, such as `next_item`."""

    scale: float
    softcap: float | None
    z_loss: float
    backend: str


ShardedStep = Callable[[TrainState, Batch], tuple[TrainState, ShardedMetrics]]


def check_ids(metrics: ShardedMetrics) -> None:
    """Refuse a step whose batch named items that do not exist; waits for the step.

    Raises:
      InputError: with their number. The state is no longer usable: go back to a checkpoint.
    """
    bad = int(metrics.bad_ids)
    if bad:
        raise InputError(f"{bad} item ids of a batch are no rows of the table; expected ids from "
                         f"0 to num_items - 1 (dataset and table do not belong together?)")


def init_sharded(encoder: Params, table: Table, optimizer: optax.GradientTransformation, mode: Mode,
                 mesh: Mesh, *, seed: int) -> TrainState:
    """The state before the first step, placed on the mesh: rows cut, all else replicated.

    table: with row-optimizer state unless `mode` is dense; see `init_table`.
    """
    trained = {"encoder": encoder, "rows": table.rows} if mode == "dense" else {"encoder": encoder}
    state = TrainState(jnp.zeros((), jnp.int32), encoder, table, jax.jit(optimizer.init)(trained),
                       None, jax.random.key_data(jax.random.key(seed, impl="threefry2x32")))
    return jax.device_put(state, state_shardings(state, mesh))


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Where each leaf lives: arrays `[V_padded, ...]` over `items`, the others everywhere."""
    rows = state.table.rows.shape[0]
    cut, whole = row_sharding(mesh), replicated(mesh)
    by_row = {leaf.shape for leaf in jax.tree.leaves(state.table)}

    def place(leaf: Array) -> NamedSharding:
        return cut if leaf.shape in by_row and leaf.shape[0] == rows else whole

    return jax.tree.map(place, state)


def make_sharded_step(encoder: Encoder, objective: Objective,
                      optimizer: optax.GradientTransformation, table: TableConfig, mode: Mode,
                      mesh: Mesh, *, precision: str, rate: optax.Schedule) -> ShardedStep:
    """One update on `mesh`; batches are `[A, B, L]` with B a multiple of the device count.

    optimizer: of the encoder, and of the rows where `mode` is dense.
    table: its `optimizer` is that of the rows in the other modes; `rate` gives its learning rate
      by step unless it has its own.

    Raises:
      InputError: the objective does not fit `mode`, or (when traced) the batch not the mesh.
    """
    if mode == "streamed" and getattr(objective, "label_smoothing", 0.0):
        raise InputError("objective.label_smoothing needs the mean row and its gradient, which a "
                         "streamed table does not make; expected 0, or table.update = 'dense'")
    if (mode == "sparse") != hasattr(objective, "loss_of_rows") and mode != "dense":
        raise InputError(f"table.update = {mode!r} does not fit objective {objective.kind!r}")
    rows_step = row_optimizer(table.optimizer)
    compute = DTYPES[precision]
    devices = mesh.shape[DATA] * mesh.shape[ITEMS]
    sampled: Any = objective if hasattr(objective, "loss_of_rows") else None
    softmax: FullSoftmax = objective  # type: ignore[assignment]
    scoring: dict[str, Any] = {} if sampled else {"logit_scale": softmax.scale, "softcap": softmax.softcap,
                                  "backend": softmax.backend}

    def queries_of(params: Params, vectors: Array, micro: Batch, task: Task, key: Array) -> Array:
        """Rows of the inputs `[B * L, d]` -> queries `[N, d]`."""
        shape = micro["items"].shape
        vectors = vectors.reshape(*shape, -1)
        if task.hidden is not None:
            vectors = jnp.where(task.hidden[..., None], 0.0, vectors)
        inputs = Inputs(micro["segments"], micro["positions"], micro.get("times"))
        flat = encoder(params, vectors, inputs, key).reshape(shape[0] * shape[1], -1)
        return (flat if task.where is None else flat[task.where]).astype(compute)

    def catalogue_loss(loss: Array, lse: Array) -> Array:
        return loss + softmax.z_loss * jnp.square(lse) if softmax.z_loss else loss

    def dense_loss(shared: Any, own: Any, micro: Batch, task: Task, key: Array, fixed: Any) -> Any:
        rows = shared["rows"]
        vectors = jnp.take(rows, micro["items"].reshape(-1), axis=0)  # NaN for a bad id
        queries = queries_of(shared["encoder"], vectors, micro, task, key)
        if sampled:
            negatives = fixed["negatives"]
            loss = sampled.loss_of_rows(queries, rows[task.targets], rows[negatives.ids],
                                        task.targets, negatives)
        else:
            loss = catalogue_loss(*full_softmax(
                mesh, queries, rows.astype(compute), task.targets,
                num_items=fixed["num_items"], **scoring))
        return jnp.sum(loss * task.weights), ()

    def sparse_loss(shared: Any, own: Any, micro: Batch, task: Task, key: Array,
                    fixed: Any) -> Any:
        queries = queries_of(shared["encoder"], own["inputs"], micro, task, key)
        loss = sampled.loss_of_rows(queries, own["labels"], shared["negatives"], task.targets,
                                    fixed["negatives"])
        return jnp.sum(jnp.where(task.weights > 0, loss * task.weights, 0.0)), ()

    def streamed_loss(shared: Any, own: Any, micro: Batch, task: Task, key: Array,
                      fixed: Any) -> Any:
        queries = queries_of(shared["encoder"], own["inputs"], micro, task, key)
        loss, lse = full_softmax(mesh, queries, jax.lax.stop_gradient(fixed["rows"]), task.targets,
                                 num_items=fixed["num_items"], **scoring)
        # The cotangents of loss and lse are the gradients of zeros added to them.
        loss, lse = loss + own["loss_zero"], lse + own["lse_zero"]
        total = jnp.sum(catalogue_loss(loss, lse) * task.weights)
        return total, (queries, loss, lse)

    loss_of = {"dense": dense_loss, "sparse": sparse_loss, "streamed": streamed_loss}[mode]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, ShardedMetrics]:
        count, width = batch["items"].shape[0], batch["items"][0].size
        if batch["items"].shape[1] % devices:
            raise InputError(f"{batch['items'].shape[1]} rows of a micro-batch cannot be cut over "
                             f"{devices} devices; expected a multiple (train.rows, accumulate)")
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(count))
        tasks = jax.vmap(lambda items, targets, segments, key: _cut_evenly(
            objective.task(items, targets, segments, jax.random.fold_in(key, _TASK)), devices))(
            batch["items"], batch["targets"], batch["segments"], keys)
        seed = jax.random.bits(jax.random.fold_in(key, count + _ROUNDING), (), jnp.uint32)
        num_items = state.table.num_items
        fixed: dict[str, Any] = {"num_items": num_items}
        shared: dict[str, Any] = {"encoder": state.encoder}
        own: dict[str, Any] = {}
        if sampled:
            fixed["negatives"] = sampled.draw(jax.random.fold_in(key, count + _NEGATIVES),
                                              num_items)

        fetched, pull = None, None
        if mode == "dense":
            shared["rows"] = state.table.rows
        else:
            wanted = {"inputs": batch["items"].reshape(count, width)}
            masks = {"inputs": batch["segments"].reshape(count, width) > 0}
            if sampled:
                ids = fixed["negatives"].ids
                spare = -ids.size % devices
                wanted |= {"labels": tasks.targets, "negatives": jnp.pad(ids, (0, spare))[None]}
                masks |= {"labels": tasks.weights > 0,
                          "negatives": (jnp.arange(ids.size + spare) < ids.size)[None]}
            else:
                fixed["rows"] = state.table.rows
                zeros = jnp.zeros(tasks.targets.shape, jnp.float32)
                own |= {"loss_zero": zeros, "lse_zero": zeros}
            fetched = fetch(mesh, state.table, wanted, masks, slack=table.gather_slack)
            like = {name: jax.lax.stop_gradient(ids) for name, ids in wanted.items()}
            vectors, pull = jax.vjp(
                lambda rows: spread(mesh, rows, fetched.unique, like),  # type: ignore[union-attr]
                fetched.rows.astype(jnp.float32))
            if sampled:
                # All positions read all negatives: bring them here once.
                shared["negatives"] = jax.lax.with_sharding_constraint(
                    vectors["negatives"][0, :fixed["negatives"].ids.size], replicated(mesh))
                own["labels"] = vectors["labels"]
            own["inputs"] = vectors["inputs"]

        gradient = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)

        def one(carry: Any, each: Any) -> Any:
            own, micro, task, key = each
            (loss, left), (to_shared, to_own) = gradient(
                shared, own, micro, task, jax.random.fold_in(key, _DROPOUT), fixed)
            sums = (loss, jnp.sum(task.weights), to_shared)
            return jax.tree.map(jnp.add, carry, sums), (to_own, left)

        zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, shared))
        (loss, weight, to_shared), (to_own, left) = jax.lax.scan(
            one, zero, (own, batch, tasks, keys))
        share = 1.0 / jnp.maximum(weight, 1.0)
        to_shared, to_own = jax.tree.map(lambda leaf: leaf * share, (to_shared, to_own))

        names = ("encoder", "rows") if mode == "dense" else ("encoder",)
        grads = {name: to_shared[name] for name in names}
        trained = {name: shared[name] for name in names}
        updates, opt_state = optimizer.update(grads, state.optimizer, trained)
        hyper = Hyper(jnp.asarray(
            rate(state.step) if table.optimizer.rate is None else table.optimizer.rate,
            jnp.float32))
        if fetched is None or pull is None:
            new_table = state.table.replace(
                rows=update_dense(state.table.rows, updates["rows"], seed=seed))
        else:
            to_vectors = {"inputs": to_own["inputs"]}
            if sampled:
                spare = like["negatives"].shape[1] - to_shared["negatives"].shape[0]
                to_vectors |= {"labels": to_own["labels"], "negatives": jnp.pad(
                    to_shared["negatives"], ((0, spare), (0, 0)))[None]}
            (to_rows,) = pull(to_vectors)
            new_table = _update_table(state.table, fetched, to_rows, left, to_own, tasks, hyper,
                                      seed)
        new = TrainState(state.step + 1, optax.apply_updates(state.encoder, updates["encoder"]),
                         new_table, opt_state, None, state.key)
        metrics = ShardedMetrics(loss * share, weight, optax.tree.norm(grads),
                                 _count_bad(batch, num_items))
        return jax.lax.with_sharding_constraint(new, state_shardings(new, mesh)), metrics

    def _update_table(old: Table, fetched: Fetched, to_rows: Array, left: Any, to_own: Any,
                      tasks: Task, hyper: Hyper, seed: Array) -> Table:
        if mode == "sparse":
            return apply_sparse(mesh, old, fetched, to_rows, rows_step.update, hyper, seed=seed)
        queries, loss, lse = left
        scored = Scored(*(x.reshape(-1, *x.shape[2:]) for x in (
            queries, tasks.targets, loss, lse, to_own["loss_zero"], to_own["lse_zero"])))
        return apply_streamed(mesh, old, scored, (fetched.unique.ids, to_rows), rows_step.update,
                              hyper, seed=seed, **scoring)

    return jax.jit(step, donate_argnums=0)


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """A host's batch `[A, B, L]` on the mesh, cut over B."""
    return jax.device_put(batch, batch_sharding(mesh, axis=1))


def _cut_evenly(task: Task, devices: int) -> Task:
    """The task with positions of weight 0 behind it until the devices divide their number."""
    spare = -task.targets.shape[0] % devices
    if not spare:
        return task
    if task.where is None:
        raise InputError(f"{task.targets.shape[0]} positions cannot be cut over {devices} devices")
    where, targets, weights = (jnp.pad(x, (0, spare))
                               for x in (task.where, task.targets, task.weights))
    return task._replace(where=where, targets=targets, weights=weights)


def _count_bad(batch: Batch, num_items: int) -> Array:
    items, targets = batch["items"], batch["targets"]
    inputs = ((items < 0) | (items >= num_items)) & (batch["segments"] > 0)
    return (jnp.sum(inputs) + jnp.sum((targets < -1) | (targets >= num_items))).astype(jnp.int32)


