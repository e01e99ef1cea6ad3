"""Small random steps for objectives against drawn rows, and what they are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.kernels import softmax_loss, top_k
from rec_jax.objectives import Task
from rec_jax.objectives.base import Negatives, Scene

Oracle = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Case(NamedTuple):
    """queries `[N, d]`, table `[V, d]`, targets and weights `[N]`: one micro-batch."""

    queries: np.ndarray
    table: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    @property
    def task(self) -> Task:
        return Task(None, jnp.asarray(self.targets), jnp.asarray(self.weights))

    def scene(self, log_q: np.ndarray | None = None) -> Scene:
        def best(queries: Any, k: int, exclude: Any) -> Any:
            return top_k(queries, jnp.asarray(self.table), k, exclude=exclude)

        return Scene(len(self.table), jnp.asarray(self.targets)[None],
                     jnp.asarray(self.weights)[None],
                     None if log_q is None else jnp.asarray(log_q, jnp.float32)[None],
                     lambda: jnp.asarray(self.queries)[None], best)


def make_case(seed: int, *, positions: int = 13, items: int = 31, dim: int = 6,
              unlabelled: int = 2) -> Case:
    """Targets repeat; the last `unlabelled` positions have none."""
    random = np.random.default_rng(seed)
    weights = np.where(np.arange(positions) < positions - unlabelled, 1.0, 0.0)
    targets = np.where(weights > 0, random.integers(0, items, positions) // 2, 0)
    return Case(random.standard_normal((positions, dim)).astype(np.float32),
                random.standard_normal((items, dim)).astype(np.float32),
                targets.astype(np.int32), weights.astype(np.float32))


def one_micro_batch(drawn: Negatives) -> Negatives:
    """What the loss of the only micro-batch gets."""
    if drawn.ids.ndim == 1:
        return drawn
    return drawn._replace(ids=drawn.ids[0], log_expected=drawn.log_expected[0])


@functools.partial(jax.jit, static_argnums=0)
def losses(config: Any, queries: Any, table: Any, task: Task, drawn: Negatives) -> Any:
    """f32 `[N]`, with rows taken from a table `[V, d]`."""
    return config.loss_of_rows(queries, table[task.targets], table[drawn.ids], task, drawn,
                               softmax_loss)


@functools.partial(jax.jit, static_argnums=0)
def gradients(config: Any, queries: Any, table: Any, task: Task, drawn: Negatives,
              factors: Any) -> Any:
    """Of the sum of `factors * losses`, to queries and table."""
    return jax.grad(lambda q, w: jnp.sum(losses(config, q, w, task, drawn) * factors),
                    argnums=(0, 1))(queries, table)


def check(config: Any, case: Case, drawn: Negatives, oracle: Oracle, *,
          rtol: float = 2e-5) -> None:
    """The losses of labelled positions are those of `oracle(queries, table)` in f64, and the
    gradients have its slopes along random directions."""
    drawn = one_micro_batch(drawn)
    live = case.weights > 0
    found = np.asarray(losses(config, case.queries, case.table, case.task, drawn))
    exact = (case.queries.astype(np.float64), case.table.astype(np.float64))
    np.testing.assert_allclose(found[live], oracle(*exact)[live], rtol=rtol, atol=1e-6)
    random = np.random.default_rng(len(case.table))
    factors = random.uniform(0.5, 1, len(live)) * live
    grads = gradients(config, case.queries, case.table, case.task, drawn,
                      factors.astype(np.float32))
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


def sampled_oracle(case: Case, drawn: Negatives, scale: float = 1.0) -> Oracle:
    """log(exp(s_y) + sum over draws j != y of exp(s_j) / n_j) - s_y, draw by draw."""
    ids, expected = np.asarray(drawn.ids), np.exp(np.asarray(drawn.log_expected, np.float64))

    def loss(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
        scores = scale * queries @ table.T
        label = scores[np.arange(len(queries)), case.targets]
        terms = np.exp(scores[:, ids]) / expected
        others = np.where(ids == case.targets[:, None], 0.0, terms).sum(axis=1)
        return np.log(np.exp(label) + others) - label

    return loss
