"""The objective is its formula, in f64 and dense."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import gradients, losses, one_micro_batch

from rec_jax.errors import InputError
from rec_jax.objectives import Task
from rec_jax.objectives.base import Keys
from rec_jax.objectives.next_item import Config

N, V, PADDED, DIM = 12, 21, 32, 8
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """queries `[N, d]`, rows `[PADDED, d]` whose padding is far from 0, targets `[N]`."""
    random = np.random.default_rng(0)
    queries = random.standard_normal((N, DIM)).astype(np.float32)
    rows = random.standard_normal((PADDED, DIM)).astype(np.float32)
    rows[V:] *= 100.0
    return queries, rows, random.integers(0, V, N).astype(np.int32)


def dense(config: Config, queries: np.ndarray, rows: np.ndarray,
          targets: np.ndarray) -> np.ndarray:
    """Loss of each position in f64, by the definition: cross-entropy with a target
    distribution, and the square of the log-normaliser."""
    scores = config.scale * queries.astype(np.float64) @ rows[:V].astype(np.float64).T
    if config.softcap is not None:
        scores = config.softcap * np.tanh(scores / config.softcap)
    top = scores.max(axis=1, keepdims=True)
    lse = np.log(np.exp(scores - top).sum(axis=1)) + top[:, 0]
    wanted = np.full((N, V), config.label_smoothing / V)
    wanted[np.arange(N), targets] += 1 - config.label_smoothing
    return -(wanted * (scores - lse[:, None])).sum(axis=1) + config.z_loss * lse**2


def task_of(targets: np.ndarray | jax.Array) -> Task:
    """Every position predicts its target."""
    return Task(None, jnp.asarray(targets), jnp.ones(targets.shape))


CONFIGS = [
    Config(), Config(label_smoothing=0.2), Config(z_loss=0.05), Config(scale=2.5),
    Config(softcap=3.0), Config(label_smoothing=0.1, z_loss=0.01, scale=0.5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_the_loss_is_its_definition(arrays: Arrays, config: Config) -> None:
    queries, rows, targets = arrays
    np.testing.assert_allclose(losses(config, queries, rows, task_of(targets), num_items=V),
                               dense(config, *arrays), rtol=2e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_the_gradient_is_that_of_the_definition(arrays: Arrays, config: Config) -> None:
    queries, rows, targets = arrays
    weights = np.random.default_rng(1).uniform(0, 1, N)
    found_queries, found_rows = gradients(config, queries, rows, task_of(targets),
                                          weights.astype(np.float32), num_items=V)
    random, step = np.random.default_rng(2), 1e-4
    for name, array, found in (("queries", queries, found_queries), ("rows", rows, found_rows)):
        direction = random.standard_normal(array.shape)
        direction[V if name == "rows" else N:] = 0

        def along(by: float, name: str = name, direction: np.ndarray = direction) -> float:
            moved = {"queries": queries.astype(np.float64), "rows": rows.astype(np.float64)}
            moved[name] = moved[name] + by * direction
            return float(weights @ dense(config, moved["queries"], moved["rows"], targets))

        expected = (along(step) - along(-step)) / (2 * step)
        assert np.sum(np.asarray(found, np.float64) * direction) == pytest.approx(
            expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("config", [Config(), Config(label_smoothing=0.2, z_loss=0.05)], ids=repr)
def test_rows_that_pad_the_table_take_no_part(arrays: Arrays, config: Config) -> None:
    queries, rows, targets = arrays
    zeroed = rows.copy()
    zeroed[V:] = 0
    task = task_of(targets)
    np.testing.assert_array_equal(losses(config, queries, rows, task, num_items=V),
                                  losses(config, queries, zeroed, task, num_items=V))
    _, found = gradients(config, queries, rows, task, np.ones(N, np.float32), num_items=V)
    assert not np.any(found[V:]) and np.all(np.any(found[:V], axis=1))


def test_every_position_with_a_next_item_predicts_it() -> None:
    targets = jnp.array([[3, 0, -1], [-1, 7, 2]])
    key = jax.random.key(0)
    batch = {"items": jnp.zeros((1, 2, 3), jnp.int32), "targets": targets[None],
             "segments": jnp.ones((1, 2, 3), jnp.int32)}
    task = one_micro_batch(Config().plan(batch, Keys(key[None], key), 8))
    assert task.where is None and task.hidden is None and Config().causal
    np.testing.assert_array_equal(task.weights, [1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(task.targets[task.weights > 0], [3, 0, 7, 2])
    assert np.all((task.targets >= 0) & (task.targets <= 7))


def test_a_confident_right_answer_costs_nothing_and_has_an_exact_gradient() -> None:
    queries = jnp.full((1, DIM), 10.0)
    rows = jnp.zeros((PADDED, DIM)).at[4].set(1.0)
    task = task_of(jnp.array([4]))
    loss = losses(Config(), queries, rows, task, num_items=V)
    expected = np.log1p((V - 1) * np.exp(-80.0))
    np.testing.assert_allclose(loss, [expected], rtol=1e-4)
    found, _ = gradients(Config(), queries, rows, task, jnp.ones(1), num_items=V)
    np.testing.assert_allclose(found, -np.full((1, DIM), -np.expm1(-expected)), rtol=1e-4)


@pytest.mark.parametrize("settings", [
    {"label_smoothing": 1.0}, {"label_smoothing": -0.1},
    {"label_smoothing": 0.1, "softcap": 5.0},
])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="label_smoothing"):
        Config(**settings)
