"""A step on vectors that a graph makes of rows: the loss sees vectors, and the optimizer rows.

    rows -> vectors -> tables as the loss sees them -> gradient of the vectors -> of the rows

Rows become vectors once a step, however many micro-batches it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from rec_jax.model.propagation import Graph, propagate
from rec_jax.tables import ITEMS, USERS
from rec_jax.train import dense
from rec_jax.train.mode import Array, Batch, OpenTable, Request, Setting
from rec_jax.train.state import TrainState

Pull = Callable[[dict[str, Any]], dict[str, Any]]


class Propagated(NamedTuple):
    """state: with vectors where the tables' rows were; pull: gradients by table, of the vectors ->
    of the rows."""

    state: TrainState
    pull: Pull


def propagated(graph: Graph | None, state: TrainState, mesh: Mesh) -> Propagated:
    """The state as a loss sees it; itself where there is no graph."""
    if graph is None:
        return Propagated(state, lambda gradients: gradients)
    over = state.items.over

    def spread(rows: dict[str, Array]) -> dict[str, Array]:
        return propagate(graph, rows, mesh, over)

    vectors, pull = jax.vjp(spread, {name: state.tables[name].parameters
                                     for name in (ITEMS, USERS)})

    def back(gradients: dict[str, Any]) -> dict[str, Any]:
        (own,) = pull({name: gradients[name] for name in vectors})
        return {**gradients, **own}

    return Propagated(state._replace(tables={
        name: table.replace(rows=vectors[name]) if name in vectors else table
        for name, table in state.tables.items()}), back)


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
    graph: Graph

    def __call__(self, state: TrainState, batch: Batch, places: Any = None) -> Any:
        return self.step(state, batch, places, self.graph)

    def lower(self, state: TrainState, batch: Batch, places: Any = None) -> Any:
        """As `jax.jit` lowers."""
        return self.step.lower(state, batch, places, self.graph)
