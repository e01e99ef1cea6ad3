from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rec_jax.errors import InputError
from rec_jax.tables import Hyper, RowOptimizerConfig, row_optimizer

ROWS, DIM, STEPS = 12, 4, 20
KINDS = ["sgd", "adagrad", "adam", "row_adam"]


def row_wise(by_element: optax.GradientTransformation, moment: str | None):
    """What optax would do if a row had one second moment: run it on the row's rms as well."""
    def init(params):
        return by_element.init(params), by_element.init(params[:, :1])

    def update(grads, state, params=None):
        del params
        rms = jnp.sqrt(jnp.mean(jnp.square(grads), axis=1, keepdims=True))
        _, full = by_element.update(grads, state[0])
        scaled, rows = by_element.update(rms, state[1])
        if moment is None:  # Adagrad: the scale of the rms is the scale of the row
            return jnp.where(rms > 0, grads * scaled / jnp.where(rms > 0, rms, 1), 0), (full, rows)
        mean = full.mu / (1 - 0.9**full.count)
        return mean / (jnp.sqrt(rows.nu / (1 - 0.99**rows.count)) + 1e-8), (full, rows)

    return optax.GradientTransformation(init, update)


def counterpart(kind: str) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-8)
    return {
        "sgd": optax.identity(),
        "adagrad": row_wise(optax.scale_by_rss(initial_accumulator_value=0.0, eps=1e-16), None),
        "adam": adam,
        "row_adam": row_wise(adam, "nu"),
    }[kind]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_follow_optax_on_the_dense_gradient(kind: str, decay: float):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    mine = row_optimizer(RowOptimizerConfig(kind=kind, b2=0.99, weight_decay=decay))
    theirs = optax.chain(counterpart(kind), optax.add_decayed_weights(decay),
                         optax.scale_by_learning_rate(0.05))
    rows, state = jnp.asarray(first), mine.init((ROWS, DIM))
    params, opt_state = jnp.asarray(first), theirs.init(jnp.asarray(first))
    step = jax.jit(mine.update)
    for _ in range(STEPS):
        grads = jnp.asarray(rng.normal(size=(ROWS, DIM)).astype(np.float32)) * (params + 0.1)
        rows, state = step(rows, grads, state, Hyper(jnp.float32(0.05)))
        updates, opt_state = theirs.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    assert np.abs(np.asarray(rows) - first).max() > 0.1
    np.testing.assert_allclose(rows, params, atol=1e-6, rtol=1e-6)


def test_row_wise_adagrad_of_one_column_is_adagrad_of_optax():
    mine = row_optimizer(RowOptimizerConfig(kind="adagrad"))
    theirs = optax.adagrad(0.1, initial_accumulator_value=0.0, eps=1e-16)
    rows = params = jnp.ones((ROWS, 1))
    state, opt_state = mine.init((ROWS, 1)), theirs.init(params)
    for number in range(5):
        grads = jnp.cos(jnp.arange(ROWS, dtype=jnp.float32) + number)[:, None]
        rows, state = mine.update(rows, grads, state, Hyper(jnp.float32(0.1)))
        updates, opt_state = theirs.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(rows, params, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_with_zero_gradients_from_the_start_stays(kind: str):
    optimizer = row_optimizer(RowOptimizerConfig(kind=kind, eps=0.0 if kind == "adagrad" else 1e-8))
    rows = jnp.ones((3, DIM))
    after, state = optimizer.update(rows, jnp.zeros((3, DIM)), optimizer.init((3, DIM)),
                                    Hyper(jnp.float32(1.0)))
    np.testing.assert_array_equal(after, rows)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_clipping_limits_each_row_by_its_own_norm():
    optimizer = row_optimizer(RowOptimizerConfig(kind="sgd", clip=1.0))
    grads = jnp.asarray([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    after, _ = optimizer.update(jnp.zeros((3, 2)), grads, (), Hyper(jnp.float32(1.0)))
    np.testing.assert_allclose(after, [[-0.6, -0.8], [-0.3, -0.4], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("settings", [
    {"kind": "lamb"}, {"rate": 0.0}, {"clip": -1.0}, {"b1": 1.0}, {"b2": -0.1}, {"eps": -1.0},
    {"weight_decay": -0.5}])
def test_settings_out_of_range_are_refused_by_name(settings: dict):
    (name,) = settings
    with pytest.raises(InputError, match=f"table.optimizer.{name}"):
        RowOptimizerConfig(**settings)
