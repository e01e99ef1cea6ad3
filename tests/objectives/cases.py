"""Small random steps for objectives against drawn rows, and what they are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.kernels import top_k
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.objectives import Task
from rec_jax.objectives.base import Ids, Keys, Search
from rec_jax.objectives.sampled import NEGATIVES
from rec_jax.tables import Table
from rec_jax.train.dense import DenseCatalogue
from rec_jax.train.mode import Setting

Oracle = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Case(NamedTuple):
    """queries `[N, d]`, table `[V, d]`, targets and weights `[N]`: one micro-batch."""

    queries: np.ndarray
    table: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def task(self, config: Any, key: jax.Array, log_q: Any = None) -> Task:
        """What the objective makes of the step, as the loss of its only micro-batch gets it."""
        targets = jnp.where(jnp.asarray(self.weights) > 0, jnp.asarray(self.targets), -1)
        batch = {"targets": targets[None, None]}
        if log_q is not None:
            batch["log_q"] = jnp.asarray(log_q, jnp.float32)[None, None]
        task = config.plan(batch, Keys(key[None], key), len(self.table)).settled()
        if config.needs.search:
            task = config.mine(task, key, self.search())
        return one_micro_batch(task)

    def search(self) -> Search:
        def best(queries: Any, k: int, exclude: Any) -> Any:
            return top_k(queries, jnp.asarray(self.table), k, exclude=exclude)

        return Search(len(self.table), lambda: jnp.asarray(self.queries)[None], best,
                      lambda queries, ids: jnp.sum(queries * jnp.asarray(self.table)[ids], -1),
                      lambda name, queries: queries)


def make_case(seed: int, *, positions: int = 13, items: int = 31, dim: int = 6,
              unlabelled: int = 2) -> Case:
    """Targets repeat; the last `unlabelled` positions have none."""
    random = np.random.default_rng(seed)
    weights = np.where(np.arange(positions) < positions - unlabelled, 1.0, 0.0)
    targets = np.where(weights > 0, random.integers(0, items, positions) // 2, 0)
    return Case(random.standard_normal((positions, dim)).astype(np.float32),
                random.standard_normal((items, dim)).astype(np.float32),
                targets.astype(np.int32), weights.astype(np.float32))


def one_micro_batch(task: Task) -> Task:
    """What the loss of the only micro-batch of a step gets."""
    own = task._replace(shared={}, constants=None)
    return jax.tree.map(lambda leaf: leaf[0], own)._replace(
        shared=task.shared, constants=task.constants)


def drawn_ids(task: Task) -> np.ndarray:
    """The negatives, `[K]` shared by all positions or `[N, k]` of each."""
    return np.asarray({**task.shared, **task.reads}[NEGATIVES].ids)


def catalogue(table: Any, task: Task, num_items: int | None = None) -> DenseCatalogue:
    """A table `[V_padded, d]` in one piece, with what a loss may ask by name."""
    present = task.weights != 0 if task.present is None else task.present
    ids = {"labels": Ids(task.targets, present), **task.reads, **task.shared}
    setting: Any = Setting(None, None, {}, {}, make_mesh(MeshConfig()), jnp.float32)
    table = jnp.asarray(table)
    return DenseCatalogue(setting, Table(table, (), num_items or len(table)), table, ids)


@functools.partial(jax.jit, static_argnames=("config", "num_items"))
def losses(config: Any, queries: Any, table: Any, task: Task, *,
           num_items: int | None = None) -> Any:
    """f32 `[N]`, with rows taken from a table `[V_padded, d]`."""
    return config.loss(queries, task, catalogue(table, task, num_items))


@functools.partial(jax.jit, static_argnames=("config", "num_items"))
def gradients(config: Any, queries: Any, table: Any, task: Task, factors: Any, *,
              num_items: int | None = None) -> Any:
    """Of the sum of `factors * losses`, to queries and table."""
    return jax.grad(lambda q, w: jnp.sum(
        losses(config, q, w, task, num_items=num_items) * factors), argnums=(0, 1))(queries, table)


def check(config: Any, case: Case, task: Task, oracle: Oracle, *, rtol: float = 2e-5) -> None:
    """The losses of labelled positions are those of `oracle(queries, table)` in f64, and the
    gradients have its slopes along random directions."""
    live = case.weights > 0
    found = np.asarray(losses(config, case.queries, case.table, task))
    exact = (case.queries.astype(np.float64), case.table.astype(np.float64))
    np.testing.assert_allclose(found[live], oracle(*exact)[live], rtol=rtol, atol=1e-6)
    random = np.random.default_rng(len(case.table))
    factors = random.uniform(0.5, 1, len(live)) * live
    grads = gradients(config, case.queries, case.table, task, factors.astype(np.float32))
    for place, grad in enumerate(grads):
        assert np.all(np.isfinite(grad))
        way, step = random.standard_normal(grad.shape), 1e-5

        def along(by: float, place: int = place, way: np.ndarray = way) -> float:
            moved = list(exact)
            moved[place] = moved[place] + by * way
            return float(factors[live] @ oracle(*moved)[live])

        slope = (along(step) - along(-step)) / (2 * step)
        np.testing.assert_allclose(np.sum(np.asarray(grad, np.float64) * way), slope,
                                   rtol=2e-4, atol=2e-4)


def softmax_oracle(case: Case, scale: float = 1.0) -> Oracle:
    """The exact loss against all items."""
    def loss(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
        scores = scale * queries @ table.T
        return (np.log(np.exp(scores).sum(axis=1))
                - scores[np.arange(len(queries)), case.targets])

    return loss


def sampled_oracle(case: Case, task: Task, scale: float = 1.0) -> Oracle:
    """log(exp(s_y) + sum over draws j != y of exp(s_j) / n_j) - s_y, draw by draw."""
    drawn = task.constants
    ids, expected = np.asarray(drawn.ids), np.exp(np.asarray(drawn.log_expected, np.float64))

    def loss(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
        scores = scale * queries @ table.T
        label = scores[np.arange(len(queries)), case.targets]
        terms = np.exp(scores[:, ids]) / expected
        others = np.where(ids == case.targets[:, None], 0.0, terms).sum(axis=1)
        return np.log(np.exp(label) + others) - label

    return loss
