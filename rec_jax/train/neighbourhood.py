"""The neighbourhood of a step: which rows the vectors of the nodes that it names are made of.

    ids that a loss names -> their neighbours, theirs .. -> rows of all of these -> vectors

Ids come before rows here, too. With K layers a node's vector needs h_(K-1) of itself and of its
drawn neighbours, and so on down to rows; a name is spelt by how it got there:

    labels -> labels:o (itself), labels:n (neighbours) -> labels:oo, labels:on, labels:no, labels:nn

A step then reads rows of both tables by such names, as it reads any. It costs what they cost,
however large the graph is. The user of a history is the same at all of its places, so a user's
neighbourhood is read once a history.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec_jax import streams
from rec_jax.model.aggregation import gathered_of, own_part
from rec_jax.model.graphs import AnyGraph
from rec_jax.model.item_graph import ItemGraph
from rec_jax.model.neighbours import SIDES, SampledGraph, draw, draw_seeds, other, weights
from rec_jax.objectives.base import Ids, history_of_places
from rec_jax.tables import ITEMS, USERS
from rec_jax.train.item_neighbourhood import ItemNeighbourhood
from rec_jax.train.mode import READ, Array, Batch, Setting, TableCatalogue
from rec_jax.train.node_catalogue import Named, NodeCatalogue
from rec_jax.train.state import TrainState

OWN, NEAR = "o", "n"

class Neighbourhood(NamedTuple):
    """seeds: uint32 `[K, 2]`, of the step's draws."""

    graph: SampledGraph
    seeds: Array

    def of_batch(self, ids: Named, batch: Batch) -> Named:
        """`ids` that feed the encoder, with the user of a history once."""
        return {**ids, USERS: {**ids[USERS], READ: users_of_histories(batch)}}

    def rows_of(self, named: Mapping[str, Mapping[str, Ids]]) -> Named:
        """What is read of each table for the vectors of the nodes in `named`."""
        found: Named = {side: {} for side in SIDES}
        for side in SIDES:
            for name, ids in named[side].items():
                if is_made(side, name):
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

    def answers(self, setting: Setting, state: TrainState, params: Mapping[str, Array],
                answers: Mapping[str, TableCatalogue], ids: Mapping[str, Mapping[str, Ids]],
                micro: Batch) -> dict[str, TableCatalogue]:
        """The answers with vectors of nodes in the place of their rows.

        ids: what `rows_of` gave, of one micro-batch and of all of them.
        """
        def vectors(side: str, name: str) -> Array:
            if not is_made(side, name):
                return answers[side].stored(name)
            found = self.vector(params, answers, ids, side, name)
            return at_each_place(found, micro) if (side, name) == (USERS, READ) else found

        return {**answers, **{side: NodeCatalogue(
            setting, state.tables[side], answers[side], functools.partial(vectors, side))
            for side in SIDES}}

    def reader(self, setting: Setting) -> Setting:
        """How a query is made: the vectors of users are all that is read."""
        return setting


def is_made(side: str, name: str) -> bool:
    """Whether a loss reads vectors by that name. Rows of a history are read by nothing: a query is
    the vector of a user."""
    return side != ITEMS or name != READ


def users_of_histories(batch: Batch) -> Ids:
    """The user of each history of a batch, int32 `[A, B * S]`; places of no history have none."""
    ends = batch["histories"]
    count = len(ends)
    users = jnp.take_along_axis(batch[USERS], jnp.maximum(ends, 0), axis=-1)
    return Ids(users.reshape(count, -1), ends.reshape(count, -1) >= 0)


def at_each_place(vectors: Array, micro: Batch) -> Array:
    """Vectors `[B * S, d]` of the histories of a micro-batch as `[B * L, d]`, those of its places.
    """
    return vectors[history_of_places(micro["segments"], micro["histories"].shape[1])]


def neighbourhood(graph: AnyGraph | None, setting: Setting, state: TrainState
                  ) -> Neighbourhood | ItemNeighbourhood | None:
    """That of a step; None where a step makes the vectors of all nodes, or no others than rows."""
    if setting.modes[ITEMS] == "dense":
        return None
    if isinstance(graph, ItemGraph):
        return ItemNeighbourhood(graph)
    if not isinstance(graph, SampledGraph):
        return None
    run = jax.random.wrap_key_data(state.key)
    return Neighbourhood(graph, draw_seeds(
        streams.of_step(run, state.step, streams.NEIGHBOURS), len(graph.fan_out)))
