"""The vector of an item that no training saw, from who took it: no gradient, no new training.

A model over drawn neighbours (`rec_jax.model.aggregation`) knows a node by its features and by its
neighbours. So the vector of a new item follows from the vectors of its users, layer by layer; its
own row is 0, beside which is what its content adds. All of its users count. Vectors of what the
model knows do not change, since an edge to a new item is one of the item alone: nothing has to be
made again when an item arrives.

Of a dataset that withholds items, half of the users give what they did with these as edges, and the
others are asked (`gives_edges`), so that no edge is a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rec_jax.data.covisits import pairs_of_new
from rec_jax.data.dataset import Dataset
from rec_jax.data.interaction_graph import Edges, distinct_edges
from rec_jax.errors import InputError
from rec_jax.inference.blocks import set_rows
from rec_jax.inference.item_edges import vectors_of_new
from rec_jax.inference.served import Nodes, Served
from rec_jax.model.aggregation import all_layers, all_of, next_layer
from rec_jax.model.graphs import known_features
from rec_jax.model.item_graph import ItemGraph
from rec_jax.model.neighbours import SampledGraph
from rec_jax.model.propagation import make_graph
from rec_jax.tables import ITEMS, USERS

Floats = npt.NDArray[np.float32]


def gives_edges(dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Users bool `[U]` whose withheld items are known as edges: two, then two not."""
    return np.arange(dataset.num_users) // 2 % 2 == 1


def given_edges(dataset: Dataset) -> Edges:
    """What those users did with withheld items, once each; items by their number.

    Raises:
      InputError: the dataset withholds no items.
    """
    if dataset.withheld is None or dataset.withheld_offsets is None:
        raise InputError(f"{dataset.folder} withholds no items, so it has no edges of new ones; "
                         "expected a dataset of prepare --withhold")
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.withheld_offsets))
    given = gives_edges(dataset)[users]
    return distinct_edges(users[given], np.asarray(dataset.withheld)[given], dataset.num_items)


def new_vectors(served: Served, users: Sequence[npt.NDArray[np.integer]],
                content: Floats | None = None) -> Floats:
    """Vectors f32 `[n, d]` of n new items.

    users: of each item the indices of who took it, in any order. content: f32 `[n, c]`, the columns
    of the run's `[[content]]`; None: 0.

    Raises:
      InputError: the model does not make vectors of neighbours, or there is no such user.
    """
    nodes = _nodes(served, SampledGraph)
    count = np.array([len(each) for each in users], np.int64)
    taken = np.concatenate([np.zeros(0, np.int64), *users]).astype(np.int64)
    if len(taken) and not 0 <= taken.min() <= taken.max() < served.dataset.num_users:
        raise InputError(f"user {int(taken[(taken < 0) | (taken >= served.dataset.num_users)][0])} "
                         f"is not one of the {served.dataset.num_users} of the model")
    items = np.repeat(np.arange(len(users)), count)
    fixed = nodes.source.columns
    values = np.zeros((len(users), fixed), np.float32) if content is None else content
    if values.shape != (len(users), fixed):
        raise InputError(f"content of {values.shape}; expected {(len(users), fixed)}")
    return _made(served, nodes, distinct_edges(taken, items, max(len(users), 1)), values)


def fill_by_edges(served: Served, bias: float = 0.0) -> Served:
    """The model with vectors for the withheld items of its dataset, by the edges that are given.

    Raises:
      InputError: see `new_vectors` and `given_edges`; a bias.
    """
    if bias:
        raise InputError("cold.bias is of items that content fills; expected 0")
    nodes, dataset = _nodes(served), served.dataset
    edges, first = given_edges(dataset), dataset.num_trained
    numbers = np.arange(first, dataset.num_items)
    content = np.asarray(nodes.rows[ITEMS][numbers, nodes.source.dim:], np.float32)
    local = Edges(edges.users, edges.items - np.int32(first))
    if isinstance(nodes.graph, ItemGraph):
        vectors = vectors_of_new(served, pairs_of_new(dataset, local), len(numbers), content)
    else:
        vectors = _made(served, nodes, local, content)
    filled = np.zeros(dataset.num_items, bool)
    known = np.zeros(dataset.num_items, bool)
    known[edges.items] = True
    filled[first:] = known[first:] | np.any(content != 0, axis=1)
    return replace(served, rows=set_rows(served.rows, numbers, vectors), filled=filled,
                   cold={"fill": "edges", "edges": len(edges.items),
                         "edges_of": "two users of four, who are not asked", "bias": 0.0})


def _nodes(served: Served, kinds: Any = (SampledGraph, ItemGraph)) -> Nodes:
    if served.nodes is None or not isinstance(served.nodes.graph, kinds):
        raise InputError(f"encoder {served.config.encoder.kind!r} makes no vector of the users who "
                         "took an item; expected encoder.kind = 'graphsage'"
                         + ("" if kinds is SampledGraph else ", or a run with [item_graph]"))
    return served.nodes


def _made(served: Served, nodes: Nodes, edges: Edges, content: Floats) -> Floats:
    """Vectors of items 0 to n - 1 of `edges`, with content f32 `[n, c]`."""
    graph, source, params = nodes.graph, nodes.source, served.params
    assert isinstance(graph, SampledGraph)
    if not len(content):
        return np.zeros((0, source.dim), np.float32)
    rows = {name: nodes.rows[name] for name in (USERS, ITEMS)}
    by_item = make_graph(edges, rows[USERS].shape[0], len(content), 1).items
    gather = all_of(jax.tree.map(jnp.asarray, by_item), graph.aggregator)

    @jax.jit
    def make(params: Any, rows: Any, content: jax.Array) -> jax.Array:
        known = all_layers(graph, params, known_features(graph, source, params, rows), None)
        stored = jnp.pad(content, ((0, 0), (source.dim, 0)))
        found = source.compose(params, stored)
        for layer, before in enumerate(known[:-1]):
            found = next_layer(graph, params, layer, ITEMS, found, before[USERS], gather)
        return found

    return np.asarray(make(params, rows, jnp.asarray(content)), np.float32)
