"""A step on vectors that a graph makes of rows: the loss sees vectors, and the optimizer rows.

    rows -> vectors -> tables as the loss sees them -> gradient of the vectors -> of the rows

Rows become vectors once a step, however many micro-batches it has. So it is where a step makes the
vectors of all nodes; a sparse table's step makes those that it names (`neighbourhood`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax import streams
from rec_jax.model.aggregation import all_layers
from rec_jax.model.graphs import AnyGraph, of_vectors
from rec_jax.model.item_graph import ItemGraph, all_vectors
from rec_jax.model.neighbours import draw_seeds
from rec_jax.model.propagation import Graph, propagate
from rec_jax.tables import ITEMS, USERS
from rec_jax.train import dense
from rec_jax.train.mode import Array, Batch, OpenTable, Request, Setting
from rec_jax.train.state import TrainState, moving

Pull = Callable[[dict[str, Any]], dict[str, Any]]


class Propagated(NamedTuple):
    """setting, state: as a loss sees them, with vectors where the tables' rows were; pull:
    gradients of the vectors and of the encoder's parameters -> of the rows and of these; whole:
    whether it is so, and rows are not what they were."""

    setting: Setting
    state: TrainState
    pull: Pull
    whole: bool = True


def propagated(graph: AnyGraph | None, setting: Setting, state: TrainState) -> Propagated:
    """The state as a loss sees it; itself where no graph makes all vectors."""
    if graph is None or setting.modes[ITEMS] != "dense":
        return Propagated(setting, state, lambda gradients: gradients, whole=False)
    over = state.items.over

    def spread(params: dict[str, Array], rows: dict[str, Array]) -> dict[str, Array]:
        if isinstance(graph, Graph):
            return propagate(graph, rows, setting.mesh, over)
        run, now = jax.random.wrap_key_data(state.key), state.step
        source, items = setting.encoder.source, state.items
        stored = rows[ITEMS]
        if items.fixed:
            fixed = items.rows[:, stored.shape[1]:].astype(jnp.float32)
            stored = jnp.concatenate([stored, fixed], axis=1)
        stored = source.without_own(streams.of_step(run, now, streams.ROWS), stored,
                                    jnp.arange(len(stored)))
        whole = {**state.encoder, **params}
        own = source.compose(whole, stored)
        if isinstance(graph, ItemGraph):
            return {ITEMS: all_vectors(graph, whole, own, setting.mesh, over)}
        return all_layers(graph, whole, {**rows, ITEMS: own},
                          draw_seeds(streams.of_step(run, now, streams.NEIGHBOURS),
                                     len(graph.fan_out)))[-1]

    joined = (ITEMS,) if isinstance(graph, ItemGraph) else (ITEMS, USERS)
    vectors, pull = jax.vjp(spread, moving(state.encoder, setting.tuning), {
        name: state.tables[name].parameters for name in joined})

    def back(gradients: dict[str, Any]) -> dict[str, Any]:
        params, rows = pull({name: gradients["tables"][name] for name in vectors})
        return {"encoder": jax.tree.map(jnp.add, gradients["encoder"], params),
                "tables": {**gradients["tables"], **rows}}

    seen = state._replace(tables={
        name: table.replace(rows=vectors[name], fixed=0) if name in vectors else table
        for name, table in state.tables.items()})
    return Propagated(setting._replace(encoder=of_vectors(setting.encoder)), seen, back)


def closed_as_rows(setting: Setting, state: TrainState, opened: Mapping[str, OpenTable]
                   ) -> dict[str, OpenTable]:
    """Tables that were opened with vectors, and get their updates as the rows of `state`."""
    return {name: one._replace(close=dense.open_table(
        setting, name, state.tables[name], Request({})).close) for name, one in opened.items()}


@dataclass(frozen=True)
class WithGraph:
    """A jitted step and its graph, which is an argument: a constant of its size would be a part of
    the program."""

    step: Any
    graph: AnyGraph

    def __call__(self, state: TrainState, batch: Batch, places: Any = None) -> Any:
        return self.step(state, batch, places, self.graph)

    def lower(self, state: TrainState, batch: Batch, places: Any = None) -> Any:
        """As `jax.jit` lowers."""
        return self.step.lower(state, batch, places, self.graph)
