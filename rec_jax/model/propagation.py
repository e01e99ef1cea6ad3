"""Vectors of users and items that are made of their neighbours' rows (LightGCN, He et al. 2020).

With N(u) the items of user u, N(i) the users of item i, and rows e as layer 0:

    u_k = sum over i in N(u) of i_(k-1) / sqrt(|N(u)| |N(i)|)        layer k of a user
    i_k = sum over u in N(i) of u_(k-1) / sqrt(|N(u)| |N(i)|)        layer k of an item
    vector = (e + layer 1 + ... + layer K) / (K + 1)

That is P e with P = (1 + A + ... + A^K) / (K + 1), where A = D^-1/2 (graph) D^-1/2 is symmetric.
So P is its own transpose: the gradient of the rows is P times that of the vectors, nothing is kept
for the backward pass, and neither direction adds two numbers at one place at once, which on an
accelerator would give other bits each time. A sum over neighbours is a loop over the j-th neighbour
of all rows, for rows that have about as many of them.

With `unit` a vector is then divided by its norm; so it may be without any layer, where rows are
vectors but for their norms.

P acts on each column alone. On a mesh each device takes some columns of all rows, for which the
rows travel once in each direction, however many layers there are; every device has the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rec_jax.data.dataset import Dataset
from rec_jax.data.interaction_graph import Edges, interaction_edges
from rec_jax.mesh import BOTH, Axes, replicated, row_sharding
from rec_jax.tables import ITEMS, USERS
from rec_jax.tables.table import padded_size

Array = jax.Array
Rows = Mapping[str, Array]
"""Those of `ITEMS` and `USERS`, `[V_padded, d]` and `[U_padded, d]`."""


class Neighbours(NamedTuple):
    """Who stands beside each of n rows.

    groups: int32 `[w, m]`, the w neighbours of m rows, for each power of two w that is needed; a
      number past the last row is nobody.
    order: int32 `[n]`, where each row is in the groups, one behind the other; past their end:
      it has no neighbour.
    scale: f32 `[n]`, 1 / sqrt(number of neighbours), 0 where there is none.
    """

    groups: tuple[Any, ...]
    order: Any
    scale: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Graph:
    """The neighbours of all users and of all items; a pytree. layers: K, static, 0: nobody has
    any; unit: vectors have norm 1, static."""

    users: Neighbours
    items: Neighbours
    layers: int = field(metadata={"static": True})
    unit: bool = field(default=False, metadata={"static": True})


def open_graph(dataset: Dataset, layers: int, *, unit: bool = False) -> Graph:
    """The graph of a dataset's training part, in numpy; without layers nobody has neighbours."""
    nobody = np.zeros(0, np.int32)
    edges = interaction_edges(dataset) if layers else Edges(nobody, nobody)
    return make_graph(edges, padded_size(dataset.num_users), padded_size(dataset.num_items),
                      layers, unit=unit)


def make_graph(edges: Edges, num_users: int, num_items: int, layers: int, *,
               unit: bool = False) -> Graph:
    """The graph of distinct edges for so many rows of each table, in numpy."""
    by_item = np.argsort(edges.items, kind="stable")
    return Graph(grouped(edges.users, edges.items, num_users, num_items),
                 grouped(edges.items[by_item], edges.users[by_item], num_items, num_users),
                 layers, unit)


def grouped(owners: npt.NDArray[Any], others: npt.NDArray[np.int32], count: int, nobody: int
            ) -> Neighbours:
    """Of `count` rows; owners: rising; nobody: a number that no other has."""
    degrees = np.bincount(owners, minlength=count)
    first = np.cumsum(degrees) - degrees
    order, groups, done = np.zeros(count, np.int32), [], 0
    powers = np.ceil(np.log2(np.maximum(degrees, 1))).astype(np.int64)
    for power in np.unique(powers[degrees > 0]):
        rows = np.flatnonzero((powers == power) & (degrees > 0))
        place = np.arange(1 << power)[:, None]
        there = place < degrees[rows]
        groups.append(np.where(there, others[np.where(there, first[rows] + place, 0)],
                               nobody).astype(np.int32))
        order[rows] = done + np.arange(len(rows))
        done += len(rows)
    order[degrees == 0] = done
    scale = np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1)), 0).astype(np.float32)
    return Neighbours(tuple(groups), order, scale)


def sums(neighbours: Neighbours, rows: Array) -> Array:
    """The sum of each row's neighbours, `[n, d]`, from their rows `[m, d]`."""
    return folded(neighbours, rows, jnp.add)


def folded(neighbours: Neighbours, rows: Array, join: Callable[[Array, Array], Array]) -> Array:
    """`join` of each row's neighbours, `[n, d]`, from their rows `[m, d]`; it begins with 0."""
    def add(total: Array, ids: Array) -> Array:
        return join(total, jnp.take(rows, ids, axis=0, mode="fill", fill_value=0))

    return of_groups(neighbours.groups, neighbours.order, rows, add)


def of_groups(groups: Sequence[Any], order: Any, rows: Array, add: Callable[[Array, Any], Array]
              ) -> Array:
    """What each row of `order` gathers, `[n, d]`; `rows` `[m, d]` say d and dtype.

    groups: of each group what is read of it, with leaves `[w, m]`: place j of all its rows after
      place j - 1. add: what is gathered `[m, d]`, and a place -> the same with that; from 0 on.
    """
    def step(total: Array, place: Any) -> tuple[Array, None]:
        return add(total, place), None

    dim = rows.shape[1]
    found = [jax.lax.scan(step, jnp.zeros((jax.tree.leaves(group)[0].shape[1], dim), rows.dtype),
                          group)[0] for group in groups]
    return jnp.take(jnp.concatenate([*found, jnp.zeros((1, dim), rows.dtype)]), order, axis=0)


def propagate(graph: Graph, rows: Rows, mesh: Mesh, over: Axes) -> dict[str, Array]:
    """The vectors f32 of all users and items, of the shapes of `rows`; over: axes that cut them."""
    vectors = {name: rows[name].astype(jnp.float32) for name in (ITEMS, USERS)}
    if graph.layers:
        vectors = _propagate(graph, vectors, mesh, over)
    return {name: unit(one) for name, one in vectors.items()} if graph.unit else vectors


def unit(vectors: Array) -> Array:
    """Vectors f32 `[n, d]` divided by their norms; one of 0 stays."""
    squares = jnp.sum(vectors * vectors, axis=1, keepdims=True)
    return vectors * jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)


def columns_over(mesh: Mesh, dim: int) -> NamedSharding:
    """Of rows of width `dim`, some columns of all of them a device, where that goes evenly."""
    return (NamedSharding(mesh, PartitionSpec(None, BOTH)) if dim % mesh.size == 0
            else replicated(mesh))


propagate_now = jax.jit(propagate, static_argnums=(2, 3))
"""`propagate` outside of a step."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _propagate(graph: Graph, rows: dict[str, Array], mesh: Mesh, over: Axes) -> dict[str, Array]:
    columns = columns_over(mesh, rows[ITEMS].shape[1])
    cut = jax.lax.with_sharding_constraint
    first = tuple(cut(rows[name], columns) for name in (USERS, ITEMS))
    to_users, to_items = graph.users.scale[:, None], graph.items.scale[:, None]

    def layer(_: Any, carry: Any) -> Any:
        (users, items), (all_users, all_items) = carry
        users, items = (to_users * sums(graph.users, to_items * items),
                        to_items * sums(graph.items, to_users * users))
        users, items = cut(users, columns), cut(items, columns)
        return (users, items), (all_users + users, all_items + items)

    _, totals = jax.lax.fori_loop(0, graph.layers, layer, (first, first))
    return {name: cut(total / (graph.layers + 1), row_sharding(mesh, over))
            for name, total in zip((USERS, ITEMS), totals, strict=True)}


def _forward(graph: Graph, rows: dict[str, Array], mesh: Mesh, over: Axes) -> Any:
    return _propagate(graph, rows, mesh, over), graph


def _backward(mesh: Mesh, over: Axes, graph: Graph, gradients: dict[str, Array]) -> Any:
    return None, _propagate(graph, gradients, mesh, over)


_propagate.defvjp(_forward, _backward)
