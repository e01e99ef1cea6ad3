"""Vectors that a graph makes of rows: the one place that knows which kinds of graphs there are.

    Graph          propagation without parameters over all edges (LightGCN), or norms alone
    SampledGraph   learned layers over drawn neighbours (GraphSAGE)
    ItemGraph      a mixture with the items that stand near an item in histories

A training makes vectors where its step needs them (`rec_jax.train.propagated`,
`rec_jax.train.neighbourhood`). Who serves a model makes those of all nodes once, here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rec_jax.data.covisits import ItemGraphConfig
from rec_jax.data.dataset import Dataset
from rec_jax.data.interaction_graph import interaction_edges
from rec_jax.mesh import Axes, row_sharding
from rec_jax.model.aggregation import all_layers
from rec_jax.model.encoder import Encoder, Params
from rec_jax.model.encoders import (
    EncoderConfig,
    derives_vectors,
    graph_layers,
    sampling_of,
    unit_vectors,
)
from rec_jax.model.item_graph import ItemGraph, all_vectors, open_item_graph
from rec_jax.model.neighbours import SampledGraph, make_sampled_graph, on_every_device
from rec_jax.model.propagation import Graph, open_graph, propagate_now
from rec_jax.model.rows import RowSource
from rec_jax.tables import ITEMS, USERS, RowMap
from rec_jax.tables.table import padded_size

Array = jax.Array
AnyGraph = Graph | SampledGraph | ItemGraph


def graph_of(config: EncoderConfig, items: ItemGraphConfig | None, dataset: Dataset, mesh: Mesh
             ) -> AnyGraph | None:
    """The graph of a dataset's training part as an encoder reads it, or that of `items`, whole on
    every device; None: there is none."""
    sampling = sampling_of(config)
    graph: AnyGraph | None = None
    if items is not None:
        graph = open_item_graph(items, dataset)
    elif sampling is not None:
        graph = make_sampled_graph(
            interaction_edges(dataset), padded_size(dataset.num_users),
            padded_size(dataset.num_items), *sampling)
    elif derives_vectors(config):
        graph = open_graph(dataset, graph_layers(config), unit=unit_vectors(config))
    return None if graph is None else on_every_device(graph, mesh)


def of_vectors(encoder: Encoder) -> Encoder:
    """The encoder for rows that are vectors already, without content of their own."""
    return encoder._replace(source=RowSource(encoder.source.dim))


def served_vectors(graph: AnyGraph, source: RowSource, params: Params, rows: Mapping[str, Array],
                   mesh: Mesh, over: Axes, row_map: RowMap | None = None) -> dict[str, Array]:
    """The vectors f32 `[n, d]` of all users and items, or of the items alone, from stored rows
    `[n, w]`.

    row_map: of the items, of both rows and vectors; None: row i is item i.
    """
    if isinstance(graph, Graph):
        return propagate_now(graph, dict(rows), mesh, over)
    order = RowMap() if row_map is None else row_map
    if isinstance(graph, ItemGraph):
        return {ITEMS: _mixed_now(graph, source, params, rows[ITEMS], mesh, over, order)}
    return _sampled_now(graph, source, params, {name: rows[name] for name in (USERS, ITEMS)}, mesh,
                        over, order)


@functools.partial(jax.jit, static_argnums=(1, 4, 5, 6))
def _sampled_now(graph: SampledGraph, source: RowSource, params: Params,
                 rows: Mapping[str, Array], mesh: Mesh, over: Axes, row_map: RowMap
                 ) -> dict[str, Array]:
    by_id = {**rows, ITEMS: _by_id(rows[ITEMS], row_map)}
    found = all_layers(graph, params, known_features(graph, source, params, by_id), None)[-1]
    found[ITEMS] = _by_row(found[ITEMS], row_map)
    return {name: jax.lax.with_sharding_constraint(value, row_sharding(mesh, over))
            for name, value in found.items()}


@functools.partial(jax.jit, static_argnums=(1, 4, 5, 6))
def _mixed_now(graph: ItemGraph, source: RowSource, params: Params, items: Array, mesh: Mesh,
               over: Axes, row_map: RowMap) -> Array:
    own = known_items(source, params, _by_id(items, row_map))
    return jax.lax.with_sharding_constraint(
        _by_row(all_vectors(graph, params, own, mesh, over), row_map), row_sharding(mesh, over))


def _by_id(values: Array, row_map: RowMap) -> Array:
    numbers = jnp.arange(len(values), dtype=jnp.int32)
    return values if row_map.identity else values[row_map.rows(numbers)]


def _by_row(values: Array, row_map: RowMap) -> Array:
    numbers = jnp.arange(len(values), dtype=jnp.int32)
    return values if row_map.identity else values[row_map.ids(numbers)]


def known_items(source: RowSource, params: Params, stored: Array) -> Array:
    """What items have without their neighbours f32 `[n, d]`, for who serves, from rows by id."""
    # With nothing but content, nothing reads or trains other values.
    return source.compose(params, source.with_own(stored.astype(jnp.float32), source.drop < 1))


def known_features(graph: SampledGraph, source: RowSource, params: Params,
                   rows: Mapping[str, Array]) -> dict[str, Array]:
    """h_0 of all nodes for who serves, from rows by id: that of a node without a neighbour, whose
    row no training moved, is what its content says alone."""
    found = {}
    for name, stored in rows.items():
        values = stored.astype(jnp.float32)
        met = graph.near[name].degrees(jnp.arange(len(values)))[:, None] > 0
        if name == ITEMS:
            met &= source.drop < 1
        values = source.with_own(values, met)
        found[name] = source.compose(params, values) if name == ITEMS else values
    return found
