"""An item's vector with those of the items that stand near it in histories: a row source.

    v_i = x_i + s sum_j w_ij x_j          or          x_i + (sum_j w_ij x_j) M

x is what an item has without the graph (its row, and what its content says), j its neighbours and w
their weights (`rec_jax.data.covisits`); M begins as s times the identity. That is one layer of
LightGCN's propagation (He et al., SIGIR 2020), or of GraphSAGE's without its relu (Hamilton et al.,
NeurIPS 2017), over items alone: the vectors are the items' wherever a model reads or scores one, so
an encoder of histories needs to know nothing of it. An item without a neighbour has x, and an item
that no training saw has what its neighbours say.

The gradient of the mean goes the edges backwards. A sum over neighbours and its transpose are loops
over the j-th neighbour of all rows with about as many (`rec_jax.model.propagation`), so neither
adds two numbers at one place at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rec_jax.data.covisits import ItemGraphConfig, Nearest, covisits
from rec_jax.data.dataset import Dataset
from rec_jax.mesh import Axes, row_sharding
from rec_jax.model.encoder import Encoder, Params
from rec_jax.model.propagation import columns_over, grouped, of_groups
from rec_jax.tables.table import padded_size

Array = jax.Array

KERNEL = "item_graph/kernel"
"""Path of M `[d, d]`, where there is one."""


class Weighted(NamedTuple):
    """A sparse matrix of n rows in groups, as `propagation.Neighbours`.

    ids: int32 `[w, m]` for each group; weights: f32 `[w, m]`, 0 where a place is empty.
    order: int32 `[n]`, where each row is in the groups, one behind the other; past their end: it
      is 0.
    """

    ids: tuple[Any, ...]
    weights: tuple[Any, ...]
    order: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ItemGraph:
    """The neighbours of all items; a pytree.

    near: of each item `[V_padded, K]`; there, back: the matrix w and its transpose.
    share: s; learned: whether there is an M; both static.
    """

    near: Nearest
    there: Weighted
    back: Weighted
    share: float = field(metadata={"static": True})
    learned: bool = field(metadata={"static": True})


def open_item_graph(config: ItemGraphConfig, dataset: Dataset) -> ItemGraph:
    """The graph of a dataset's training part, in NumPy."""
    return make_item_graph(config, covisits(dataset, config), padded_size(dataset.num_items))


def make_item_graph(config: ItemGraphConfig, near: Nearest, count: int) -> ItemGraph:
    """The graph of these neighbours for a table of `count` rows, in NumPy."""
    near = Nearest(*(np.pad(each, ((0, count - len(each)), (0, 0))) for each in near))
    owners, places = np.nonzero(near.weights)
    others, weights = near.ids[owners, places], near.weights[owners, places]
    by_other = np.argsort(others, kind="stable")
    return ItemGraph(near, _weighted(owners, others, weights, count),
                     _weighted(others[by_other], owners[by_other], weights[by_other], count),
                     config.share, config.mixing == "matrix")


def _weighted(owners: Any, others: Any, weights: Any, count: int) -> Weighted:
    """owners: rising."""
    edges = np.arange(len(owners), dtype=np.int32)
    groups, order, _ = grouped(owners, edges, count, len(edges))
    others, weights = np.append(others, 0), np.append(weights, 0)
    return Weighted(tuple(others[group].astype(np.int32) for group in groups),
                    tuple(weights[group].astype(np.float32) for group in groups), order)


def product(matrix: Weighted, rows: Array) -> Array:
    """The matrix times `rows` `[m, d]`, `[n, d]`."""
    def add(total: Array, place: tuple[Array, Array]) -> Array:
        ids, weights = place
        return total + weights[:, None] * rows[ids]

    return of_groups(list(zip(matrix.ids, matrix.weights, strict=True)), matrix.order, rows, add)


@jax.custom_vjp
def means(graph: ItemGraph, rows: Array) -> Array:
    """The weighted mean of each item's neighbours, `[V_padded, d]`, from their rows."""
    return product(graph.there, rows)


means.defvjp(lambda graph, rows: (product(graph.there, rows), graph),
             lambda graph, gradient: (None, product(graph.back, gradient)))


def added(graph: ItemGraph, params: Mapping[str, Array], mean: Array) -> Array:
    """What the mean `[..., d]` of neighbours adds to a vector."""
    if not graph.learned:
        return graph.share * mean
    return jnp.matmul(mean, params[KERNEL], precision=jax.lax.Precision.HIGHEST)


def all_vectors(graph: ItemGraph, params: Mapping[str, Array], own: Array, mesh: Mesh, over: Axes
                ) -> Array:
    """The vectors f32 `[V_padded, d]` of all items, from what they have without the graph.

    On a mesh each device takes some columns of all rows; over: axes that cut the rows.
    """
    cut = jax.lax.with_sharding_constraint
    own = own.astype(jnp.float32)
    mean = cut(means(graph, cut(own, columns_over(mesh, own.shape[1]))), row_sharding(mesh, over))
    return own + added(graph, params, mean)


def some_vectors(graph: ItemGraph, params: Mapping[str, Array], own: Array, near: Array,
                 weights: Array) -> Array:
    """The vectors f32 `[..., d]` of some items, from their own, their neighbours' `[..., K, d]` and
    the weights `[..., K]` of these."""
    return own + added(graph, params, jnp.sum(weights[..., None] * near, axis=-2))


def with_item_graph(config: ItemGraphConfig | None, encoder: Encoder, params: Params
                    ) -> tuple[Encoder, Params]:
    """Encoder and parameters of a run whose items have neighbours, with M and with `drop`; None:
    they have none."""
    if config is None:
        return encoder, params
    kernel = ({KERNEL: config.share * jnp.eye(encoder.source.dim)}
              if config.mixing == "matrix" else {})
    source = encoder.source._replace(left_out=max(config.drop, encoder.source.left_out))
    return encoder._replace(source=source), {**params, **kernel}
