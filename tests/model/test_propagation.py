"""Propagation against its definition: a dense matrix in f64."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.data.dataset import Dataset
from rec_jax.data.interaction_graph import Edges, distinct_edges, interaction_edges
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.propagation import Graph, make_graph, propagate, propagate_now
from rec_jax.tables import ITEMS, USERS

OVER = ("items",)


def draw(seed: int, users: int = 13, items: int = 24, pairs: int = 90) -> Edges:
    """A graph with a popular item, a user and an item that nobody is beside, and repeats."""
    random = np.random.default_rng(seed)
    owners = random.integers(0, users - 1, pairs)
    taken = np.where(random.random(pairs) < 0.3, 2, random.integers(0, items - 1, pairs))
    return distinct_edges(np.concatenate([owners, owners]), np.concatenate([taken, taken]), items)


def matrix(edges: Edges, users: int, items: int, layers: int) -> np.ndarray:
    """P of the docstring, f64 `[users + items] * 2`, from a dense adjacency matrix."""
    between = np.zeros((users, items))
    between[edges.users, edges.items] = 1
    whole = np.block([[np.zeros((users, users)), between],
                      [between.T, np.zeros((items, items))]])
    degrees = whole.sum(axis=0)
    root = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    normal = root[:, None] * whole * root
    return sum(np.linalg.matrix_power(normal, k) for k in range(layers + 1)) / (layers + 1)


def rows_of(users: int, items: int, dim: int, seed: int = 0) -> dict[str, jax.Array]:
    first, second = jax.random.split(jax.random.key(seed))
    return {USERS: jax.random.normal(first, (users, dim)),
            ITEMS: jax.random.normal(second, (items, dim))}


def stacked(rows: Any) -> np.ndarray:
    return np.concatenate([np.asarray(rows[USERS], np.float64), np.asarray(rows[ITEMS])])


@functools.cache
def one_device() -> Any:
    return make_mesh(MeshConfig())


def graph_of(edges: Edges, users: int, items: int, layers: int) -> Graph:
    return jax.tree.map(jnp.asarray, make_graph(edges, users, items, layers))


@pytest.mark.parametrize(("layers", "seed"), [
    (3, 2), *(pytest.param(layers, seed, marks=pytest.mark.slow)
              for layers, seed in ((1, 0), (2, 1)))])
def test_vectors_are_the_mean_of_the_layers(layers: int, seed: int) -> None:
    edges, rows = draw(seed), rows_of(13, 24, 8, seed)
    found = propagate_now(graph_of(edges, 13, 24, layers), rows, one_device(), OVER)
    wanted = matrix(edges, 13, 24, layers) @ stacked(rows)
    np.testing.assert_allclose(stacked(found), wanted, rtol=0, atol=1e-6)
    # Those whom nobody stands beside have their own row alone.
    for name, last in ((USERS, 12), (ITEMS, 23)):
        assert last not in (edges.users if name == USERS else edges.items)
        np.testing.assert_allclose(found[name][last], rows[name][last] / (layers + 1), rtol=1e-6)


def test_gradients_of_both_tables_are_those_of_the_dense_definition() -> None:
    edges, rows = draw(5), rows_of(13, 24, 8, 5)
    graph, dense = graph_of(edges, 13, 24, 2), matrix(edges, 13, 24, 2)

    def loss(users: Any, items: Any) -> Any:
        return jnp.sum(jax.nn.softplus(users @ items.T)) + jnp.sum(jnp.sin(items))

    @jax.jit
    @jax.grad
    def found(rows: Any) -> Any:
        vectors = propagate(graph, rows, one_device(), OVER)
        return loss(vectors[USERS], vectors[ITEMS])

    with jax.enable_x64(True):
        def whole(both: Any) -> Any:
            vectors = jnp.asarray(dense) @ both
            return loss(vectors[:13], vectors[13:])

        wanted = np.asarray(jax.grad(whole)(jnp.asarray(stacked(rows))))
    np.testing.assert_allclose(stacked(found(rows)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [  # eight devices take 2 columns each, or all of them all
    16, pytest.param(6, marks=pytest.mark.slow)])
def test_a_mesh_changes_no_bit(dim: int) -> None:
    edges, rows = draw(7), rows_of(13, 24, dim, 7)
    graph = graph_of(edges, 13, 24, 3)
    alone = propagate_now(graph, rows, one_device(), OVER)
    # Users of 13 rows are no table: tables are padded so that devices cut them evenly.
    padded = {USERS: jnp.pad(rows[USERS], ((0, 3), (0, 0))), ITEMS: rows[ITEMS]}
    cut = propagate_now(graph_of(edges, 16, 24, 3), padded, make_mesh(MeshConfig(2, 4)), OVER)
    np.testing.assert_array_equal(alone[ITEMS], cut[ITEMS])
    np.testing.assert_array_equal(alone[USERS], cut[USERS][:13])
    assert not np.any(cut[USERS][13:])


def test_a_graph_without_edges_leaves_rows_alone() -> None:
    nothing = np.zeros(0, np.int32)
    rows = rows_of(3, 4, 2)
    found = propagate_now(graph_of(Edges(nothing, nothing), 3, 4, 1), rows, one_device(), OVER)
    np.testing.assert_allclose(stacked(found), stacked(rows) / 2, rtol=1e-6)


def test_edges_are_those_of_the_training_part_each_once(tiny_dataset: Any) -> None:
    dataset = Dataset.open(tiny_dataset)
    wanted = {(user, int(item)) for user in range(dataset.num_users)
              for item in dataset.items[dataset.offsets[user]:dataset.train_end[user]]}
    edges = interaction_edges(dataset)
    found = list(zip(edges.users.tolist(), edges.items.tolist(), strict=True))
    assert set(found) == wanted and found == sorted(wanted)
    assert len(wanted) < dataset.num_interactions
