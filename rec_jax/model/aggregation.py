"""The layers of GraphSAGE: a node's vector from its own and from its neighbours' (Hamilton et al.,
NeurIPS 2017), on a graph of users and items.

With x the features of node v (its row, and what its content adds) as h_0, and N(v) its neighbours,

    h_k(v) = s(W_k h_(k-1)(v) + R_k agg over u in N(v) of h_(k-1)(u) + b_k)

    mean   agg = mean of h(u)                  pool   agg = max of relu(P_k h(u) + c_k)

s is relu in all layers but the last, where it is nothing; vectors are h_K. Users and items have
matrices of their own, since a user is no item. The max of nothing is 0, and so is the mean.

A training draws neighbours (`rec_jax.model.neighbours`): of all nodes, where all vectors are made
(`all_layers`), or of those that a step names, layer by layer (`rec_jax.train.neighbourhood`). Who
serves takes all neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.model.neighbours import SIDES, Adjacent, SampledGraph, draw, other
from rec_jax.model.propagation import Neighbours, folded, sums

Array = jax.Array
Params = Mapping[str, Array]
Gather = Callable[[str, Array], Array]
"""(kind of node, values of all its neighbours' kind `[m, d]`) -> what they say of each `[n, d]`."""


def own_part(params: Params, layer: int, side: str, own: Array, gathered: Array, last: bool
             ) -> Array:
    """h_k from h_(k-1) `[..., d]` of nodes of one kind and from what `gathered` `[..., d]` says.

    layer: k - 1; last: it is the last one.
    """
    path = f"layers/{layer}/{side}"
    found = (_product(own, params[f"{path}/own/kernel"])
             + _product(gathered, params[f"{path}/near/kernel"]) + params[f"{path}/bias"])
    return found if last else jax.nn.relu(found)


def pooled_part(params: Params, layer: int, side: str, near: Array) -> Array:
    """What a max is taken of, from the vectors `[..., d]` of neighbours of nodes of kind `side`."""
    path = f"layers/{layer}/{side}/pool"
    return jax.nn.relu(_product(near, params[f"{path}/kernel"]) + params[f"{path}/bias"])


def _product(values: Array, kernel: Array) -> Array:
    return jnp.matmul(values, kernel, precision=jax.lax.Precision.HIGHEST)


def gathered_of(params: Params, layer: int, side: str, aggregator: str, near: Array,
                weights: Array) -> Array:
    """agg `[..., d]` from the vectors `[..., S, d]` of drawn neighbours and their weights."""
    if aggregator == "mean":
        return jnp.sum(weights[..., None] * near, axis=-2)
    found = pooled_part(params, layer, side, near)
    return jnp.max(jnp.where(weights[..., None] > 0, found, 0.0), axis=-2)


def all_layers(graph: SampledGraph, params: Params, features: Mapping[str, Array],
               seeds: Array | None) -> list[dict[str, Array]]:
    """h_0 to h_K f32 `[n, d]` of all nodes, by kind.

    seeds: uint32 `[K, 2]`, of `neighbours.draw_seeds`; None: all neighbours count.
    """
    found = [dict(features)]
    for layer, places in enumerate(graph.fan_out):
        now, made = found[-1], {}
        for number, side in enumerate(SIDES):
            if seeds is None:
                gather = all_of(getattr(graph.whole, side), graph.aggregator)
            else:
                gather = some_of(graph.near[side], places, seeds[layer, number], graph.aggregator)
            made[side] = next_layer(graph, params, layer, side, now[side], now[other(side)], gather)
        found.append(made)
    return found


def next_layer(graph: SampledGraph, params: Params, layer: int, side: str, own: Array,
               near: Array, gather: Callable[[Array], Array]) -> Array:
    """h_k `[n, d]` of nodes of one kind, from their h_(k-1), those `near` `[m, d]` of all nodes of
    the other, and how each node's neighbours are gathered among these."""
    if graph.aggregator == "pool":
        near = pooled_part(params, layer, side, near)
    return own_part(params, layer, side, own, gather(near), layer == len(graph.fan_out) - 1)


def all_of(neighbours: Neighbours, aggregator: str) -> Callable[[Array], Array]:
    """Gathers all neighbours of each node."""
    if aggregator == "mean":
        return lambda near: neighbours.scale[:, None] ** 2 * sums(neighbours, near)
    return lambda near: folded(neighbours, near, jnp.maximum)  # of values that are not negative


def some_of(adjacent: Adjacent, places: int, seed: Array, aggregator: str
            ) -> Callable[[Array], Array]:
    """Gathers drawn neighbours of each node, a place at a time."""
    def gather(near: Array) -> Array:
        nodes = jnp.arange(adjacent.first.shape[0] - 1, dtype=jnp.int32)
        drawn = draw(adjacent, nodes, places, seed)

        def add(total: Array, place: Any) -> tuple[Array, None]:
            ids, share = place
            rows = near[ids]
            if aggregator == "mean":
                return total + share[:, None] * rows, None
            return jnp.maximum(total, jnp.where(share[:, None] > 0, rows, 0.0)), None

        first = jnp.zeros((len(nodes), near.shape[1]), near.dtype)
        return jax.lax.scan(add, first, (drawn.ids.T, drawn.weights.T))[0]

    return gather
