"""The training step: fetch rows, encode, loss, backward, update. Traced once, state donated.

One function for one CPU and for a pod. The encoder and its optimizer are ordinary code on global
arrays, cut over both mesh axes by XLA; random numbers are functions of global positions, so
dropout and masks are those of one device. Only where rows meet the mesh are there islands of
`shard_map` (`rec_jax.tables.on_mesh`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rec_jax import streams
from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError, TrainingError
from rec_jax.kernels.compat import materialise
from rec_jax.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from rec_jax.model.encoder import Encoder
from rec_jax.model.graphs import AnyGraph
from rec_jax.model.heads import apply_head
from rec_jax.model.rows import drop_of
from rec_jax.model.tuning import EVERYTHING, Tuning
from rec_jax.objectives import Objective, Task
from rec_jax.objectives.base import keys_of_step
from rec_jax.tables import ITEMS, USERS, Table, TableConfig, table_stream
from rec_jax.tables.choose import Mode as ModeName
from rec_jax.tables.places import Places
from rec_jax.text.item_encoder import ItemEncoder
from rec_jax.train.mode import (
    READ,
    STORED,
    Array,
    Batch,
    Gradients,
    Setting,
    composed,
    queries_of,
    weighted,
)
from rec_jax.train.neighbourhood import neighbourhood
from rec_jax.train.propagated import WithGraph, closed_as_rows, propagated
from rec_jax.train.state import TrainState, averaged, dense_part, moving, state_shardings, weights
from rec_jax.train.tables import check_drop, check_modes, hyper_of, open_tables
from rec_jax.train.text_rows import WithTexts, split_texts, touched, with_texts
from rec_jax.train.walks import with_walks


class StepMetrics(NamedTuple):
    """Scalars of one step.

    loss: weighted mean over the positions that have a target; NaN if an id is bad.
    positions: how many those are.
    gradient_norm: global norm before clipping, of the rows too where optax trains them.
    bad_ids: int32, inputs and targets that are no item; see `check_ids`.
    divisor: what the sum of the losses was divided by; `positions` where no position is weighted.
    losses: f32 `[A, N]`, of each position, without its weight; None where nobody asked.
    """

    loss: jax.Array
    positions: jax.Array
    gradient_norm: jax.Array
    bad_ids: jax.Array
    divisor: jax.Array
    losses: jax.Array | None = None


class Step(Protocol):
    """One update; the state is donated."""

    def __call__(self, state: TrainState, batch: Batch, places: Mapping[str, Places] = ...
                 ) -> tuple[TrainState, StepMetrics]:
        """places: by name, where the rows of this step are, of tables that are caches."""
        ...


def make_train_step(encoder: Encoder, objective: Objective,
                    optimizer: optax.GradientTransformation, *,
                    tables: Mapping[str, TableConfig] | None = None,
                    modes: Mapping[str, ModeName] | None = None, precision: str = "f32",
                    ema: float | None = None, mesh: Mesh | None = None,
                    rate: optax.Schedule | None = None, losses: bool = False,
                    tuning: Tuning = EVERYTHING, graph: AnyGraph | None = None,
                    texts: ItemEncoder | None = None) -> Step:
    """One update on `mesh` (default: one device), jitted, with the state donated.

    The gradient of the mean over all micro-batches is exact: sums of weighted losses and of
    divisors are accumulated, and divided once.

    optimizer: of the encoder, and of the rows of dense tables; it has the factors of `tuning` on
      these.
    tables: settings by name; in the other modes their `optimizer` is that of the rows, where
      `rate` gives its learning rate by step unless it has its own. By default one, of items.
    modes: how each table trains; by default dense.
    losses: give those of all positions, too.
    tuning: what is frozen, and factors on the learning rate; as `init_state` had it.
    graph: what makes vectors of the rows of users and items.
    texts: what makes content of the texts of the items that a step reads.

    Raises:
      InputError: objective or average do not fit a mode, or (when traced) the batch not the
        mesh.
    """
    tables = tables or {ITEMS: TableConfig()}
    modes = modes or dict.fromkeys(tables, "dense")
    mesh = mesh or make_mesh(MeshConfig())
    check_modes(objective, tables, modes, ema, rate)
    check_drop(drop_of(encoder.source), modes[ITEMS])
    setting = Setting(encoder, objective, tables, modes, mesh, DTYPES[precision], tuning)
    jitted = jax.jit(step_program(setting, optimizer, ema=ema, rate=rate, losses=losses,
                                  texts=texts), donate_argnums=0)
    if texts is not None:
        return WithTexts(jitted, jax.device_put(texts.tokens, replicated(mesh)))
    return jitted if graph is None else WithGraph(jitted, graph)


def step_program(setting: Setting, optimizer: optax.GradientTransformation, *,
                 ema: float | None = None, rate: optax.Schedule | None = None,
                 losses: bool = False, asks: bool = False,
                 texts: ItemEncoder | None = None) -> Callable[..., Any]:
    """What `make_train_step` compiles; its arguments.

    asks: give only what the loss asks of each table, by name, stacked over micro-batches.
    """
    encoder, objective, tables, modes, mesh, _, tuning = setting

    def step(state: TrainState, batch: Batch, places: Mapping[str, Places] | None = None,
             graph: AnyGraph | None = None, tokens: Any = None) -> Any:
        state = state._replace(tables={
            name: table.replace(places=(places or {}).get(name))
            for name, table in state.tables.items()})
        count = _micro_batches(batch, mesh)
        run, now = jax.random.wrap_key_data(state.key), state.step
        keys = keys_of_step(run, now, count)
        batch = with_walks(graph, objective, batch, streams.of_step(run, now, streams.WALKS))
        tasks = objective.plan(batch, keys, state.items.num_items)
        if "importance" in batch:
            tasks = tasks._replace(weights=tasks.weights * batch["importance"].reshape(
                tasks.weights.shape))
        tasks = _cut_evenly(tasks.settled(), mesh.size)
        present = tasks.present
        assert present is not None
        rows_key = streams.of_step(run, now, streams.ROWS)
        dropout = streams.of_micro_batches(run, now, count, streams.DROPOUT)
        seen, near = propagated(graph, setting, state), neighbourhood(graph, setting, state)
        opened, ids, tasks, every = open_tables(seen.setting, seen.state, batch, tasks, keys.step,
                                                near)
        trained, of_texts = split_texts(moving(state.encoder, tuning))
        made = None if texts is None else touched(
            texts, tokens, setting, state.encoder, of_texts, state.items.num_items, ids[ITEMS],
            tasks.shared)
        constant = {"shared": tasks.shared, "constants": tasks.constants}
        tasks = tasks._replace(shared={}, constants=None)

        def loss_of(shared: Any, slices: Any, micro: Batch, task: Task, ids: Any, key: Array
                    ) -> tuple[Array, Any]:
            params = {**state.encoder, **shared["encoder"]}
            source = composed(seen.setting.encoder.source, params, rows_key)
            if made is not None and texts is not None:
                source = with_texts(source, encoder.source, texts, made.ids, shared["texts"])
            answers = {name: table.catalogue(
                shared["tables"][name], slices[name], ids[name],
                source if name == ITEMS else STORED) for name, table in opened.items()}
            reader = seen.setting
            if near is not None:
                answers = near.answers(setting, state, params, answers, {
                    name: {**ids[name], **every.get(name, {})} for name in ids}, micro)
                reader = near.reader(setting)
            users = answers[USERS].stored(READ) if USERS in answers else None
            queries = queries_of(reader, params, answers[setting.reads].stored(READ), micro,
                                 task, key, users)
            values = {**task.values, **{f"queries/{name}": apply_head(params, name, queries)
                                        for name in objective.needs.heads}}
            loss = objective.loss(queries, task._replace(values=values, **constant),
                                  answers[ITEMS])
            asked = {name: one.asked for name, one in answers.items()}
            return weighted(loss, task.weights), (asked, loss if losses else None)

        shared: dict[str, Any] = {"encoder": trained,
                  "tables": {name: table.parameters for name, table in opened.items()},
                  **({} if made is None else {"texts": made.vectors})}
        slices = {name: table.slices for name, table in opened.items()}
        if asks:
            return jax.lax.scan(lambda _, each: (None, loss_of(shared, *each)[1][0]), None,
                                (slices, batch, tasks, ids, dropout))[1]
        gradient = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)

        def one(carry: Any, micro: Any) -> Any:
            part, batch, task, named, key = micro
            (loss, (asked, each)), (to_shared, to_part) = gradient(
                shared, part, batch, task, named, key)
            sums = (loss, task.divisor, to_shared)
            return jax.tree.map(jnp.add, carry, sums), (to_part, asked, each)

        zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, shared))
        (loss, divisor, to_shared), (to_slices, asked, each) = jax.lax.scan(
            one, zero, (slices, batch, tasks, ids, dropout))
        share = jnp.where(divisor != 0, 1.0 / jnp.where(divisor != 0, divisor, 1.0), 0.0)
        to_shared, to_slices = jax.tree.map(lambda leaf: leaf * share, (to_shared, to_slices))
        if made is not None:
            pulled = made.pull(to_shared.pop("texts"))
            to_shared, shared = ({**tree, "encoder": {**tree["encoder"], **more}}
                                 for tree, more in ((to_shared, pulled), (shared, of_texts)))
        if seen.whole:
            # From here on rows are what is stored again.
            to_shared = seen.pull(to_shared)
            opened = closed_as_rows(setting, state, opened)
            shared = {**shared, "tables": {name: table.parameters
                                           for name, table in state.tables.items()}}
        if modes[ITEMS] == "streamed" and not ids[ITEMS]:
            # The backward pass reads the rows of the labels. Nothing else says that this comes
            # before the update, and where it may come after it XLA copies the whole table.
            to_slices, asked = materialise((to_slices, asked), now)

        parameters, grads = (dense_part(tree, modes, tuning)
                             for tree in (shared, to_shared))
        updates, opt_state = optimizer.update(grads, state.optimizer, parameters)
        seed = jax.random.bits(streams.of_step(run, now, streams.ROUNDING), (), jnp.uint32)
        new_tables = {name: opened[name].close(Gradients(
            to_shared["tables"][name], to_slices[name], asked[name],
            updates.get("tables", {}).get(name), hyper_of(
                tables[name], rate, now, tuning.table_rate(name)),
            table_stream(seed, name))).replace(places=None) for name in tables}
        new_encoder = {**state.encoder, **optax.apply_updates(
            shared["encoder"], updates["encoder"])}
        average, rest = state.average, state.rest
        if average is not None and rest is not None and ema is not None:
            average, rest = averaged(average, rest, weights(new_encoder, new_tables), ema)
        new = TrainState(state.step + 1, new_encoder, new_tables, opt_state, average, state.key,
                         rest)
        metrics = StepMetrics(loss * share, jnp.sum(present, dtype=jnp.float32),
                              optax.tree.norm(grads), _count_bad(batch, state.tables),
                              divisor, each)
        return jax.lax.with_sharding_constraint(new, state_shardings(new, mesh)), metrics

    return step


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


def check_finite(figures: Mapping[str, float], step: int) -> None:
    """Raises TrainingError where loss or gradient norm of the steps up to `step` is no number."""
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(figures[name]):
            raise TrainingError(f"the {name.replace('_', ' ')} is {figures[name]} at step {step}; "
                                "the last checkpoint stands (try a smaller optimizer.rate or a "
                                "clip)")


def _micro_batches(batch: Batch, mesh: Mesh) -> int:
    count, rows, _ = batch["items"].shape
    if rows % mesh.size:
        raise InputError(f"{rows} rows of a micro-batch cannot be cut over {mesh.size} devices; "
                         f"expected a multiple (train.rows, train.accumulate)")
    return int(count)


def _cut_evenly(task: Task, devices: int) -> Task:
    """The task with positions of weight 0 behind it until the devices divide their number."""
    count = task.targets.shape[-1]
    spare = -count % devices
    if not spare:
        return task
    if task.where is None:
        raise InputError(f"{count} positions cannot be cut over {devices} devices")

    def longer(values: Array) -> Array:
        return jnp.pad(values, ((0, 0), (0, spare), *((0, 0),) * (values.ndim - 2)))

    assert task.present is not None
    return task._replace(
        where=longer(task.where), targets=longer(task.targets), weights=longer(task.weights),
        present=longer(task.present), values=jax.tree.map(longer, dict(task.values)))


def _count_bad(batch: Batch, tables: Mapping[str, Table]) -> Array:
    num_items, targets = tables[ITEMS].num_items, batch["targets"]

    def inputs(ids: Array, count: int) -> Array:
        return jnp.sum(((ids < 0) | (ids >= count)) & (batch["segments"] > 0))

    bad = inputs(batch["items"], num_items) + jnp.sum((targets < -1) | (targets >= num_items))
    if USERS in tables:
        bad += inputs(batch[USERS], tables[USERS].num_items)
    return bad.astype(jnp.int32)
