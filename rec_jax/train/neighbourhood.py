"""The neighbourhood of a step: which rows the vectors of the nodes that it names are made of.

    ids that a loss names -> their neighbours, theirs .. -> rows of all of these -> vectors

Ids come before rows here, too. With K layers a node's vector needs h_(K-1) of itself and of its
drawn neighbours, and so on down to rows; a name is spelt by how it got there:

    labels -> labels:o (itself), labels:n (neighbours) -> labels:oo, labels:on, labels:no, labels:nn

A step then reads rows of both tables by such names, as it reads any. It costs what they cost,
however large the graph is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax import streams
from rec_jax.model.aggregation import gathered_of, own_part
from rec_jax.model.graphs import AnyGraph
from rec_jax.model.neighbours import SIDES, SampledGraph, draw, draw_seeds, other, weights
from rec_jax.objectives.base import Ids
from rec_jax.tables import ITEMS, USERS, Table
from rec_jax.train.mode import (
    READ,
    STORED,
    Answers,
    Array,
    Composed,
    Setting,
    TableCatalogue,
)
from rec_jax.train.state import TrainState

OWN, NEAR = "o", "n"
Named = dict[str, dict[str, Ids]]
"""By table and name."""


class Neighbourhood(NamedTuple):
    """seeds: uint32 `[K, 2]`, of the step's draws."""

    graph: SampledGraph
    seeds: Array

    def rows_of(self, named: Mapping[str, Mapping[str, Ids]]) -> Named:
        """What is read of each table for the vectors of the nodes in `named`."""
        found: Named = {side: {} for side in SIDES}
        for side in SIDES:
            for name, ids in named[side].items():
                if makes_vectors(side, name):
                    self._follow(found, side, ids, len(self.graph.fan_out), f"{name}:")
                else:
                    found[side][name] = ids
        return found

    def _follow(self, found: Named, side: str, ids: Ids, left: int, name: str) -> None:
        if not left:
            found[side][name] = ids
            return
        drawn = draw(self.graph.near[side], ids.ids, self.graph.fan_out[left - 1],
                     self.seeds[left - 1, SIDES.index(side)])
        near = Ids(drawn.ids, ids.present[..., None] & (drawn.weights > 0))
        self._follow(found, side, ids, left - 1, name + OWN)
        self._follow(found, other(side), near, left - 1, name + NEAR)

    def vector(self, params: Mapping[str, Array], answers: Mapping[str, TableCatalogue],
               ids: Mapping[str, Mapping[str, Ids]], side: str, name: str) -> Array:
        """The vectors f32 `[..., d]` of the nodes that a loss names so.

        answers: of the rows, by table; ids: what `rows_of` gave, of one micro-batch.
        """
        def layer(side: str, left: int, name: str) -> Array:
            if not left:
                return answers[side].rows(name).astype(jnp.float32)
            graph, number = self.graph, left - 1
            share = weights(graph.near[side], ids[side][name + OWN * left].ids,
                            graph.fan_out[number])
            near = gathered_of(params, number, side, graph.aggregator,
                               layer(other(side), left - 1, name + NEAR), share)
            return own_part(params, number, side, layer(side, left - 1, name + OWN), near,
                            left == len(graph.fan_out))

        return layer(side, len(self.graph.fan_out), f"{name}:")


class NodeCatalogue(Answers):
    """Answers from vectors that are made of rows which were fetched."""

    def __init__(self, setting: Setting, table: Table, rows: TableCatalogue, side: str,
                 vector: Any, composed: Composed = STORED) -> None:
        super().__init__(setting, table, composed)
        self._rows, self._side, self._vector = rows, side, vector

    @property
    def asked(self) -> Any:
        """See `TableCatalogue`."""
        return self._rows.asked

    def stored(self, name: str) -> Array:
        """See `TableCatalogue`."""
        found: Array = (self._vector(self._side, name) if makes_vectors(self._side, name)
                        else self._rows.stored(name))
        return found


def makes_vectors(side: str, name: str) -> bool:
    """Whether a loss reads vectors by that name. Rows of a history are read by nothing: a query is
    the vector of a user."""
    return side != ITEMS or name != READ


def neighbourhood(graph: AnyGraph | None, setting: Setting, state: TrainState
                  ) -> Neighbourhood | None:
    """That of a step; None where no neighbours are drawn for it alone."""
    if not isinstance(graph, SampledGraph) or setting.modes[ITEMS] == "dense":
        return None
    run = jax.random.wrap_key_data(state.key)
    return Neighbourhood(graph, draw_seeds(
        streams.of_step(run, state.step, streams.NEIGHBOURS), len(graph.fan_out)))


def node_answers(near: Neighbourhood | None, setting: Setting, state: TrainState,
                 params: Mapping[str, Array], answers: dict[str, TableCatalogue],
                 ids: Mapping[str, Mapping[str, Ids]], shared: Mapping[str, Mapping[str, Ids]]
                 ) -> dict[str, TableCatalogue]:
    """The answers with vectors of nodes in the place of their rows.

    ids, shared: by table what is read of one micro-batch, and of all of them.
    """
    if near is None:
        return answers
    every = {side: {**ids[side], **shared[side]} for side in SIDES}

    def vector(side: str, name: str) -> Array:
        return near.vector(params, answers, every, side, name)

    return {**answers, **{side: NodeCatalogue(setting, state.tables[side], answers[side], side,
                                              vector) for side in (USERS, ITEMS)}}
