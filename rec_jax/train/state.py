"""The training state: one pytree of arrays, how it starts, and how a checkpoint names its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from rec_jax import streams
from rec_jax.mesh import MeshConfig, make_mesh, replicated, row_sharding
from rec_jax.model.encoder import INPUTS, Params
from rec_jax.tables import Table, rows_over

KeyPath = tuple[Any, ...]


class Weights(NamedTuple):
    """What a model is: encoder parameters, item rows f32 `[V_padded, d]`, and those of the second
    table, None if tied."""

    encoder: Params
    rows: jax.Array
    inputs: jax.Array | None = None


class TrainState(NamedTuple):
    """Everything that a step changes, and nothing else.

    step: int32 scalar, updates done.
    encoder: f32 parameters by path.
    table: item rows `[V_padded, d]` and their per-row optimizer state.
    optimizer: optax state of the dense parameters; f32, whatever the rows are stored in.
    average: moving average of the weights, or None; f32 as well.
    key: uint32 `[2]`, raw key of the run's steps; see `rec_jax.streams`.
    inputs: the table that feeds the encoder, None where `table` does (tied).
    rest: what rounding to f32 has taken from `average` and will be added to it, or None.
    """

    step: jax.Array
    encoder: Params
    table: Table
    optimizer: optax.OptState
    average: Weights | None
    key: jax.Array
    inputs: Table | None = None
    rest: Weights | None = None


def init_state(encoder: Params, table: Table, optimizer: optax.GradientTransformation, *,
               seed: int, average: bool = False, mode: str = "dense",
               mesh: Mesh | None = None, inputs: Table | None = None) -> TrainState:
    """The state before the first step, placed on the mesh: rows cut, all else replicated.

    table, inputs: with row-optimizer state unless `mode` is dense, see `init_table`.
    """
    mesh = mesh or make_mesh(MeshConfig())
    table = table.replace(over=rows_over(mode))
    inputs = None if inputs is None else inputs.replace(over=rows_over(mode))
    # Donated buffers must be distinct, so the average starts as a copy.
    copy = jax.tree.map(jnp.copy, weights(encoder, table, inputs)) if average else None
    moments = jax.jit(lambda *parts: optimizer.init(trained(*parts, mode=mode)))
    state = TrainState(jnp.zeros((), jnp.int32), encoder, table, moments(encoder, table, inputs),
                       copy, jax.random.key_data(streams.of_steps(seed)), inputs,
                       None if copy is None else jax.tree.map(jnp.zeros_like, copy))
    return jax.tree.map(_place, state, state_shardings(state, mesh))


def trained(encoder: Params, table: Table, inputs: Table | None, *, mode: str) -> dict[str, Any]:
    """The f32 parameters that optax trains: the encoder's, and where `mode` is dense the rows."""
    whole = weights(encoder, table, inputs)._asdict() if mode == "dense" else {"encoder": encoder}
    return {name: tree for name, tree in whole.items() if tree is not None}


def state_shardings(state: TrainState, mesh: Mesh) -> Any:
    """Where each leaf lives: what has a row for each of the table's over its axes, the others
    everywhere."""
    total = state.table.rows.shape[0]
    cut, whole = row_sharding(mesh, state.table.over), replicated(mesh)
    return jax.tree.map_with_path(
        lambda path, leaf: cut if has_rows(path, leaf, total) else whole, state)


def has_rows(path: KeyPath, leaf: Any, total: int) -> bool:
    """Whether a leaf of a state, or of an item of `to_items`, has a row for each of a table's.

    Its path says so: an encoder's array may have any shape, also that of the rows. An optimizer
    may keep something else for the rows (a count, a mean), which has not their number `total`.
    """
    for entry in path:
        name = getattr(entry, "name", getattr(entry, "key", None))
        if name == "encoder":
            return False
        if name in ("table", "rows", "inputs"):
            return tuple(leaf.shape[:1]) == (total,)
    return False


def _place(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """`leaf` with `sharding`; an array that every process computed alike becomes a global one."""
    if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
        return leaf
    if leaf.is_fully_addressable and not sharding.is_fully_addressable:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: host[index])
    return jax.device_put(leaf, sharding)


def weights(encoder: Params, table: Table, inputs: Table | None) -> Weights:
    """The weights that are in these parts of a state; rows of any type as f32."""
    return Weights(encoder, *(None if each is None else each.rows.astype(jnp.float32)
                              for each in (table, inputs)))  # type: ignore[arg-type]


def averaged(average: Weights, rest: Weights, new: Weights, decay: float
             ) -> tuple[Weights, Weights]:
    """The moving average after a step to `new`, and what rounding took from it.

    A step adds so little to an average that f32 would round a part of it away each time, and
    thousands of such errors add up: they are carried along instead (Kahan, 1965).
    """
    def moved(old: jax.Array, lost: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        change = (1.0 - decay) * ((now - old) - lost) + lost
        total = old + change
        return total, change - (total - old)

    found = jax.tree.map(moved, average, rest, new)
    return jax.tree.transpose(jax.tree.structure(average), jax.tree.structure((0, 0)), found)


def each_table(state: TrainState, change: Callable[[Table], Table]) -> TrainState:
    """The state with `change` made to its table, or to both."""
    return state._replace(table=change(state.table),
                          inputs=None if state.inputs is None else change(state.inputs))


def served(state: TrainState) -> tuple[Params, jax.Array]:
    """The (encoder, rows) that evaluation, export and recommendation use; what feeds an encoder
    from another table is among its parameters, see `rec_jax.model.encoder.INPUTS`."""
    encoder, rows, inputs = state.average or (
        state.encoder, state.table.rows, None if state.inputs is None else state.inputs.rows)
    return encoder if inputs is None else {**encoder, INPUTS: inputs}, rows


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint's named pytrees.

    model, average: encoder and rows (and inputs if untied), which a reader takes alone; rest: of
    `average`; training: all else.
    """
    items: dict[str, Any] = {
        "model": {"encoder": state.encoder, "rows": state.table.rows},
        "training": {"step": state.step, "rows": state.table.state,
                     "optimizer": state.optimizer, "key": state.key},
    }
    if state.inputs is not None:
        items["model"]["inputs"] = state.inputs.rows
        items["training"]["inputs"] = state.inputs.state
    if state.average is not None:
        items["average"] = _present(state.average)
    if state.rest is not None:
        items["rest"] = _present(state.rest)
    return items


def from_items(items: Mapping[str, Any], like: Table) -> TrainState:
    """The inverse of `to_items`, for tables of the size and over the axes of `like`; where there
    is an average, its `rest` may be missing."""
    model, training, average = items["model"], items["training"], items.get("average")
    rest = items.get("rest")
    if average is not None and rest is None:
        rest = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, device=leaf.sharding), average)
    return TrainState(
        step=training["step"], encoder=model["encoder"],
        table=like.replace(rows=model["rows"], state=training["rows"]),
        optimizer=training["optimizer"],
        average=None if average is None else Weights(**average),
        key=training["key"],
        inputs=(like.replace(rows=model["inputs"], state=training["inputs"])
                if "inputs" in model else None),
        rest=None if rest is None else Weights(**rest))


def _present(weights: Weights) -> dict[str, Any]:
    return {name: tree for name, tree in weights._asdict().items() if tree is not None}
