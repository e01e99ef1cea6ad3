"""Some neighbours of each node, drawn by a hash of the node (GraphSAGE, Hamilton et al. 2017).

A node with D neighbours and S places for them has these cut into S pieces, as even as can be, and
takes one of each piece:

    place s   one of the neighbours [s D // S, (s + 1) D // S), each as likely
    weight    size of the piece / D

So no neighbour is drawn twice, those of a node with at most S are all there, and the weighted sum
of the drawn ones has the mean of all of them as its expectation. A draw is a function of seed and
node alone: whoever asks for a node's neighbours in a step, on whatever device, gets the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from rec_jax.data.interaction_graph import Edges
from rec_jax.kernels.rounding import mix
from rec_jax.mesh import replicated
from rec_jax.model.propagation import Graph, make_graph
from rec_jax.tables import ITEMS, USERS

Array = jax.Array
SIDES = (USERS, ITEMS)
"""Kinds of nodes; an edge joins one of each."""


def other(side: str) -> str:
    """The kind of a node's neighbours."""
    return ITEMS if side == USERS else USERS


class Adjacent(NamedTuple):
    """The neighbours of n nodes, one behind the other.

    first: int32 `[n + 1]`, where those of each node begin; others: int32 `[max(E, 1)]`.
    """

    first: Any
    others: Any

    def degrees(self, nodes: Array) -> Array:
        """How many neighbours each of `nodes` has."""
        return self.first[nodes + 1] - self.first[nodes]


class Drawn(NamedTuple):
    """Neighbours of nodes `[...]`. ids: int32 `[..., S]`; weights: f32 `[..., S]`, 0 where a place
    is empty."""

    ids: Array
    weights: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampledGraph:
    """A graph of which a step reads a part; a pytree.

    near: by kind of node, its neighbours; whole: the same, for sums over all of them.
    fan_out: S of each layer; aggregator: mean or pool; both static.
    """

    near: dict[str, Adjacent]
    whole: Graph
    fan_out: tuple[int, ...] = field(metadata={"static": True})
    aggregator: str = field(metadata={"static": True})


def make_sampled_graph(edges: Edges, num_users: int, num_items: int, fan_out: tuple[int, ...],
                       aggregator: str) -> SampledGraph:
    """The graph of distinct edges for so many rows of each table, in NumPy."""
    by_item = np.argsort(edges.items, kind="stable")
    near = {USERS: _adjacent(edges.users, edges.items, num_users),
            ITEMS: _adjacent(edges.items[by_item], edges.users[by_item], num_items)}
    return SampledGraph(near, make_graph(edges, num_users, num_items, len(fan_out)), fan_out,
                        aggregator)


def _adjacent(owners: npt.NDArray[np.int32], others: npt.NDArray[np.int32], count: int) -> Adjacent:
    """Of `count` nodes; owners: rising."""
    first = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))])
    return Adjacent(first.astype(np.int32), others if len(others) else np.zeros(1, np.int32))


def on_every_device(graph: Any, mesh: Mesh) -> Any:
    """A graph in host memory, whole on every device."""
    whole = replicated(mesh)
    return jax.tree.map(lambda host: jax.make_array_from_callback(
        host.shape, whole, lambda index: host[index]), graph)


def _pieces(degrees: Array, places: int) -> tuple[Array, Array]:
    """First neighbour and size int32 `[..., S]` of the pieces of `degrees` int32 `[...]`."""
    slot = jnp.arange(places + 1, dtype=jnp.int32)
    even, rest = degrees[..., None] // places, degrees[..., None] % places
    first = slot * even + slot * rest // places  # as slot * degree // places, and never too large
    return first[..., :-1], first[..., 1:] - first[..., :-1]


def draw(adjacent: Adjacent, nodes: Array, places: int, seed: Array) -> Drawn:
    """Up to `places` neighbours of each of `nodes` int32 `[...]`; seed: uint32 `[]`."""
    nodes = jnp.clip(nodes, 0, adjacent.first.shape[0] - 2)
    first, size = _pieces(adjacent.degrees(nodes), places)
    node = mix(nodes.astype(jnp.uint32) ^ mix(seed + jnp.uint32(0x9E3779B9)))
    slot = jnp.arange(places, dtype=jnp.uint32) * jnp.uint32(0x9E3779B1)
    within = mix(node[..., None] + slot) % jnp.maximum(size, 1).astype(jnp.uint32)
    place = adjacent.first[nodes][..., None] + first + within.astype(jnp.int32)
    return Drawn(adjacent.others[jnp.where(size > 0, place, 0)], weights(adjacent, nodes, places))


def weights(adjacent: Adjacent, nodes: Array, places: int) -> Array:
    """`Drawn.weights` of `nodes`, which no draw changes."""
    degrees = adjacent.degrees(jnp.clip(nodes, 0, adjacent.first.shape[0] - 2))
    size = _pieces(degrees, places)[1]
    return size.astype(jnp.float32) / jnp.maximum(degrees, 1)[..., None].astype(jnp.float32)


def draw_seeds(key: Array, layers: int) -> Array:
    """uint32 `[K, 2]`: of each layer, and in it of each of `SIDES`. key: of a step."""
    return jax.random.bits(key, (layers, len(SIDES)), jnp.uint32)


def walk(graph: SampledGraph, side: str, nodes: Array, steps: int, key: Array) -> Array:
    """Where random walks from `nodes` int32 `[n]` of one kind are after so many steps, each to a
    neighbour, all as likely. Who has none stays, or after one step is anywhere.

    steps: 1 or 2.
    """
    bits = jax.random.bits(key, (2, *nodes.shape), jnp.uint32)
    there = _any_neighbour(graph.near[side], nodes, bits[0])
    if steps == 1:
        return there
    back = _any_neighbour(graph.near[other(side)], there, bits[1])
    return jnp.where(graph.near[side].degrees(nodes) > 0, back, nodes)


def _any_neighbour(adjacent: Adjacent, nodes: Array, bits: Array) -> Array:
    size = jnp.maximum(adjacent.degrees(nodes), 1).astype(jnp.uint32)
    last = adjacent.others.shape[0] - 1
    return adjacent.others[jnp.minimum(adjacent.first[nodes] + (bits % size).astype(jnp.int32),
                                       last)]
