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
from rec_jax.model.encoder import Params, is_text, with_tables
from rec_jax.model.tuning import EVERYTHING, Tuning
from rec_jax.tables import ITEMS, Table, rows_over

KeyPath = tuple[Any, ...]


class Weights(NamedTuple):
    """What a model is: encoder parameters, and by table its rows f32 `[V_padded, d]` and, where it
    has one, its bias f32 `[V_padded]`."""

    encoder: Params
    tables: dict[str, jax.Array]
    bias: dict[str, jax.Array] = {}  # noqa: RUF012 (never changed)


class TrainState(NamedTuple):
    """Everything that a step changes, and nothing else.

    step: int32 scalar, updates done.
    encoder: f32 parameters by path.
    tables: by name rows `[V_padded, d]` and their per-row optimizer state. `items` is what the
      loss scores; `inputs`, where it is there, feeds the encoder in its place (untied).
    optimizer: optax state of the dense parameters; f32, whatever the rows are stored in.
    average: moving average of the weights, or None; f32 as well.
    key: uint32 `[2]`, raw key of the run's steps; see `rec_jax.streams`.
    rest: what rounding to f32 has taken from `average` and will be added to it, or None.
    """

    step: jax.Array
    encoder: Params
    tables: dict[str, Table]
    optimizer: optax.OptState
    average: Weights | None
    key: jax.Array
    rest: Weights | None = None

    @property
    def items(self) -> Table:
        """The table that the loss scores."""
        return self.tables[ITEMS]


def init_state(encoder: Params, tables: Mapping[str, Table],
               optimizer: optax.GradientTransformation, *, seed: int,
               modes: Mapping[str, str], average: bool = False,
               mesh: Mesh | None = None, tuning: Tuning = EVERYTHING) -> TrainState:
    """The state before the first step, placed on the mesh: rows cut, all else replicated.

    tables: with row-optimizer state unless their mode is dense or they are frozen, see
      `init_table`; modes: how each trains; tuning: which parameters train.
    """
    mesh = mesh or make_mesh(MeshConfig())
    tables = {name: table.replace(over=rows_over(modes[ITEMS])) for name, table in tables.items()}
    # Donated buffers must be distinct, so the average starts as a copy.
    copy = jax.tree.map(jnp.copy, weights(encoder, tables)) if average else None
    moments = jax.jit(lambda *parts: optimizer.init(
        trained(*parts, modes=modes, tuning=tuning)))
    state = TrainState(jnp.zeros((), jnp.int32), encoder, tables, moments(encoder, tables),
                       copy, jax.random.key_data(streams.of_steps(seed)),
                       None if copy is None else jax.tree.map(jnp.zeros_like, copy))
    return jax.tree.map(_place, state, state_shardings(state, mesh))


def trained(encoder: Params, tables: Mapping[str, Table], *,
            modes: Mapping[str, str], tuning: Tuning = EVERYTHING) -> dict[str, Any]:
    """The f32 parameters that optax trains: the encoder's, and the rows of dense tables."""
    return dense_part({"encoder": encoder, "tables": {
        name: table.parameters for name, table in tables.items() if modes[name] == "dense"}},
                      modes, tuning)


def dense_part(tree: Mapping[str, Any], modes: Mapping[str, str],
               tuning: Tuning = EVERYTHING) -> dict[str, Any]:
    """The part of a tree of encoder and tables, by name, that optax trains."""
    rows = {name: part for name, part in tree["tables"].items()
            if modes[name] == "dense" and not tuning.freezes_table(name)}
    return {"encoder": moving(tree["encoder"], tuning), **({"tables": rows} if rows else {})}


def moving(params: Params, tuning: Tuning) -> Params:
    """Parameters of the encoder that train."""
    return {path: leaf for path, leaf in params.items() if not tuning.frozen(path)}


def state_shardings(state: TrainState, mesh: Mesh) -> Any:
    """Where each leaf lives: arrays with an entry for each row of a table are cut over the table's
    axes, and all others are on every device."""
    whole = replicated(mesh)

    def sharding(path: KeyPath, leaf: Any) -> NamedSharding:
        name = table_of(path)
        if name is None or not has_rows(path, leaf, state.tables):
            return whole
        return row_sharding(mesh, state.tables[name].over)

    return jax.tree.map_with_path(sharding, state)


def table_of(path: KeyPath) -> str | None:
    """The table that a leaf of a state, or of a part of `to_items`, belongs to; None: none.

    Its path says so, never its shape: an encoder's array may have any, also that of the rows.
    """
    names = [getattr(entry, "name", getattr(entry, "key", None)) for entry in path]
    for part in ("tables", "bias"):
        if part in names and "encoder" not in names:
            return str(names[names.index(part) + 1])
    return None


def has_rows(path: KeyPath, leaf: Any, tables: Mapping[str, Table]) -> bool:
    """Whether a leaf of a table has an entry for each of its rows. An optimizer may keep arrays of
    another length for them (a count, a mean)."""
    name = table_of(path)
    return name is not None and tuple(leaf.shape[:1]) == (tables[name].rows.shape[0],)


def _place(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """`leaf` with `sharding`; an array that every process computed alike becomes a global one."""
    if leaf.sharding == sharding:
        return leaf
    if leaf.is_fully_addressable and not sharding.is_fully_addressable:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: host[index])
    return jax.device_put(leaf, sharding)


def weights(encoder: Params, tables: Mapping[str, Table]) -> Weights:
    """The weights that are in these parts of a state; rows of any type as f32."""
    return Weights(encoder, {name: table.rows.astype(jnp.float32)
                             for name, table in tables.items()}, _biases(tables))


def _biases(tables: Mapping[str, Table]) -> dict[str, jax.Array]:
    return {name: table.bias for name, table in tables.items() if table.bias is not None}


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
    """The state with `change` made to each of its tables."""
    return state._replace(tables={name: change(table) for name, table in state.tables.items()})


def served(state: TrainState) -> tuple[Params, jax.Array]:
    """The (encoder, rows) that evaluation, export and recommendation use; rows of tables that feed
    an encoder are among its parameters, see `rec_jax.model.encoder.TABLES`."""
    encoder, tables, _ = _served(state)
    return with_tables(encoder, tables), tables[ITEMS]


def bias_of(state: TrainState) -> jax.Array | None:
    """The bias of the loss that belongs to the rows of `served`, or None."""
    return _served(state).bias.get(ITEMS)


def _served(state: TrainState) -> Weights:
    return state.average or Weights(
        state.encoder, {name: table.rows for name, table in state.tables.items()},
        _biases(state.tables))


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint's named pytrees.

    model, average: encoder and the tables' rows, which a reader takes alone; rest: of `average`;
    training: all else; text: the parameters of a text encoder, which only a training reads.
    """
    encoder, texts = ({path: leaf for path, leaf in state.encoder.items() if is_text(path) == own}
                      for own in (False, True))
    items: dict[str, Any] = {
        "model": {"encoder": encoder,
                  "tables": {name: table.rows for name, table in state.tables.items()}},
        "training": {"step": state.step, "optimizer": state.optimizer, "key": state.key,
                     "tables": {name: table.state for name, table in state.tables.items()}},
    }
    if texts:
        items["text"] = texts
    if bias := _biases(state.tables):
        items["model"]["bias"] = bias
        items["training"]["bias"] = {name: state.tables[name].bias_state for name in bias}
    for name, weights in (("average", state.average), ("rest", state.rest)):
        if weights is not None:
            items[name] = {part: tree for part, tree in weights._asdict().items()
                           if part != "bias" or tree}
    return items


def from_items(items: Mapping[str, Any], like: Mapping[str, Table]) -> TrainState:
    """The inverse of `to_items`, for tables of the sizes and over the axes of `like`; where there
    is an average, its `rest` may be missing."""
    model, training, average = items["model"], items["training"], items.get("average")
    rest = items.get("rest")
    if average is not None and rest is None:
        rest = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, device=leaf.sharding), average)
    return TrainState(
        step=training["step"], encoder={**model["encoder"], **items.get("text", {})},
        tables={name: table.replace(
            rows=model["tables"][name], state=training["tables"][name],
            bias=model.get("bias", {}).get(name),
            bias_state=training.get("bias", {}).get(name, ())) for name, table in like.items()},
        optimizer=training["optimizer"],
        average=None if average is None else Weights(**average),
        key=training["key"],
        rest=None if rest is None else Weights(**rest))
