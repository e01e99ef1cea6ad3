"""Vectors that a graph makes of rows: the one place that knows which kinds of graphs there are.

    Graph          propagation without parameters over all edges (LightGCN), or norms alone
    SampledGraph   learned layers over drawn neighbours (GraphSAGE)

A training makes vectors where its step needs them (`rec_jax.train.propagated`,
`rec_jax.train.neighbourhood`). Who serves a model makes those of all nodes once, here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rec_jax.data.dataset import Dataset
from rec_jax.data.interaction_graph import interaction_edges
from rec_jax.mesh import Axes, row_sharding
from rec_jax.model.aggregation import all_layers
from rec_jax.model.encoder import Encoder, Params
from rec_jax.model.encoders import EncoderConfig, graph_layers, sampling_of, unit_vectors
from rec_jax.model.neighbours import SampledGraph, make_sampled_graph, on_every_device
from rec_jax.model.propagation import Graph, open_graph, propagate_now
from rec_jax.model.rows import RowSource
from rec_jax.tables import ITEMS, USERS, RowMap
from rec_jax.tables.table import padded_size

Array = jax.Array
AnyGraph = Graph | SampledGraph


def graph_of(config: EncoderConfig, dataset: Dataset, mesh: Mesh) -> AnyGraph | None:
    """The graph of a dataset's training part as an encoder reads it, whole on every device; None:
    it reads none."""
    sampling = sampling_of(config)
    if sampling is None:
        return open_graph(dataset, graph_layers(config), mesh, unit=unit_vectors(config))
    return on_every_device(make_sampled_graph(
        interaction_edges(dataset), padded_size(dataset.num_users),
        padded_size(dataset.num_items), *sampling), mesh)  # type: ignore[no-any-return]


def of_vectors(encoder: Encoder) -> Encoder:
    """The encoder for rows that are vectors already, without content of their own."""
    return encoder._replace(source=RowSource(encoder.source.dim))


def served_vectors(graph: AnyGraph, source: RowSource, params: Params, rows: Mapping[str, Array],
                   mesh: Mesh, over: Axes, row_map: RowMap | None = None) -> dict[str, Array]:
    """The vectors f32 `[n, d]` of all users and items, from stored rows `[n, w]`.

    row_map: of the items, of both rows and vectors; None: row i is item i.
    """
    if isinstance(graph, Graph):
        return propagate_now(graph, dict(rows), mesh, over)
    order = RowMap() if row_map is None else row_map
    return _sampled_now(graph, source, params, {name: rows[name] for name in (USERS, ITEMS)}, mesh,
                        over, order)


@functools.partial(jax.jit, static_argnums=(1, 4, 5, 6))
def _sampled_now(graph: SampledGraph, source: RowSource, params: Params,
                 rows: Mapping[str, Array], mesh: Mesh, over: Axes, row_map: RowMap
                 ) -> dict[str, Array]:
    items = rows[ITEMS]
    numbers = jnp.arange(len(items), dtype=jnp.int32)
    by_id = {**rows, ITEMS: items if row_map.identity else items[row_map.rows(numbers)]}
    found = all_layers(graph, params, known_features(graph, source, params, by_id), None)[-1]
    if not row_map.identity:
        found[ITEMS] = found[ITEMS][row_map.ids(numbers)]
    return {name: jax.lax.with_sharding_constraint(value, row_sharding(mesh, over))
            for name, value in found.items()}


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
        own = jnp.where(met, values[:, :source.dim], 0)
        values = jnp.concatenate([own, values[:, source.dim:]], axis=1)
        found[name] = source.compose(params, values) if name == ITEMS else values
    return found
