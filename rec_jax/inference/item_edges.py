"""The vector of an item that no training saw, from the items that it was met with.

A model whose items have neighbours (`rec_jax.model.item_graph`) makes an item's vector of its own
row, of its content and of what its neighbours have. Of a new item the first is 0. No other vector
changes, so nothing is made again when an item arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rec_jax.data.covisits import Nearest, Pairs, nearest
from rec_jax.errors import InputError
from rec_jax.inference.served import Nodes, Served
from rec_jax.model.graphs import known_items
from rec_jax.model.item_graph import ItemGraph, some_vectors
from rec_jax.tables import ITEMS

Floats = npt.NDArray[np.float32]


def new_item_vectors(served: Served, items: Sequence[npt.NDArray[np.integer]],
                     content: Floats | None = None) -> Floats:
    """Vectors f32 `[n, d]` of n new items.

    items: of each of them the numbers of the items that it was met with, as often as it was; those
    that it was met with most often are its neighbours, as many as an item of the model has.
    content: f32 `[n, c]`, the columns of the run's `[[content]]`; None: 0.

    Raises:
      InputError: the model's items have no neighbours, or there is no such item.
    """
    size, empty = served.dataset.num_items, np.zeros(0, np.int64)
    others = np.concatenate([empty, *items]).astype(np.int64)
    if len(others) and not 0 <= others.min() <= others.max() < size:
        raise InputError(f"item {int(others[(others < 0) | (others >= size)][0])} is not one of "
                         f"the {size} of the model")
    owners = np.repeat(np.arange(len(items)), [len(each) for each in items])
    keys, counts = np.unique(owners * size + others, return_counts=True)
    return vectors_of_new(served, Pairs(keys // size, keys % size, counts), len(items), content)


def vectors_of_new(served: Served, pairs: Pairs, count: int, content: Floats | None = None
                   ) -> Floats:
    """As `new_item_vectors`, of `count` new items that own `pairs`."""
    nodes = served.nodes
    if nodes is None or not isinstance(nodes.graph, ItemGraph) or served.config.item_graph is None:
        raise InputError("the model makes no vector of the items that a new one was met with; "
                         "expected a run with [item_graph]")
    fixed = nodes.source.columns
    values = np.zeros((count, fixed), np.float32) if content is None else content
    if values.shape != (count, fixed):
        raise InputError(f"content of {values.shape}; expected {(count, fixed)}")
    if not count:
        return np.zeros((0, nodes.source.dim), np.float32)
    near = nearest(pairs, count, served.config.item_graph.neighbours)
    return np.asarray(_made(nodes, served.params, near, values), np.float32)


def _made(nodes: Nodes, params: Any, near: Nearest, content: Floats) -> jax.Array:
    graph, source = nodes.graph, nodes.source
    assert isinstance(graph, ItemGraph)

    @jax.jit
    def make(params: Any, rows: Any, near: Nearest, content: jax.Array) -> jax.Array:
        own = source.compose(params, jnp.pad(content, ((0, 0), (source.dim, 0))))
        known = known_items(source, params, rows)
        return some_vectors(graph, params, own, known[near.ids], near.weights)

    return make(params, nodes.rows[ITEMS], near, jnp.asarray(content))
