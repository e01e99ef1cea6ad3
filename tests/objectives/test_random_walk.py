"""The loss of random walks by its formula, and where the walks of a batch end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.data.interaction_graph import distinct_edges
from rec_jax.model.neighbours import make_sampled_graph
from rec_jax.objectives import random_walk
from rec_jax.objectives.base import Keys
from rec_jax.objectives.sampled import NEGATIVES
from rec_jax.train.walks import with_walks

V, U = 9, 6


def softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


def test_pairs_of_users_and_of_items_count_alike_where_walks_end() -> None:
    random = np.random.default_rng(0)
    edges = distinct_edges(random.integers(0, U, 25), random.integers(0, V, 25), V)
    graph = jax.tree.map(jnp.asarray, make_sampled_graph(edges, U, V, (2,), "mean"))
    objective = random_walk.Config(count=4, scale=0.7, turns=3)
    users = random.integers(0, U, (1, 20, 6))
    items = np.array([edges.items[edges.users == user][0] for user in users.ravel()]).reshape(
        users.shape)
    batch = {"users": users, "items": items, "segments": (random.random(users.shape) < 0.8) * 1}
    batch = {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}
    rows = random.standard_normal((V, 3)).astype(np.float32)
    queries = random.standard_normal((users.size, 3)).astype(np.float32)

    @jax.jit
    def step(key: Any) -> Any:
        walked = with_walks(graph, objective, batch, key)
        task = objective.plan(walked, Keys(key[None], key), V).settled()
        each = jax.tree.map(lambda leaf: leaf[0], {name: ids.ids for name, ids in {
            **task.reads}.items()} | {"labels": task.targets})
        named = {**each, **{name: ids.ids for name, ids in task.shared.items()}}
        catalogue: Any = SimpleNamespace(rows=lambda name: jnp.asarray(rows)[named[name]])
        one = task._replace(targets=task.targets[0], reads=jax.tree.map(
            lambda leaf: leaf[0], dict(task.reads)))
        return walked, task, objective.loss(jnp.asarray(queries), one, catalogue)

    walked, task, loss = jax.tree.map(np.asarray, step(jax.random.key(3)))
    by_user, by_item = walked["walks/users"].ravel(), walked["walks/items"].ravel()
    drawn = task.shared[NEGATIVES].ids

    def pair(starts: np.ndarray, ends: np.ndarray) -> Any:
        scores = 0.7 * starts @ rows[drawn].T
        wrong = np.where(drawn == ends[:, None], 0, softplus(scores)).sum(axis=1)
        return (softplus(-0.7 * (starts * rows[ends]).sum(axis=1)) + wrong) / 5

    wanted = (pair(queries, by_user) + pair(rows[items.ravel()], by_item)) / 2
    there = np.asarray(batch["segments"]).ravel() > 0
    np.testing.assert_array_equal(task.present[0], there)
    np.testing.assert_allclose(loss[there], wanted[there], rtol=1e-5)
    # Up to three turns reach who is up to three turns away, and more than one turn does.
    near = np.zeros((U, V))
    near[edges.users, edges.items] = 1
    turn = near.T @ near
    for ends, first, starts in ((by_user, near, users.ravel()),
                                (by_item, turn, items.ravel())):
        reach = first + first @ turn + first @ turn @ turn
        assert (reach[starts, ends] > 0).all()
    assert (near[users.ravel(), by_user] == 0).any()
