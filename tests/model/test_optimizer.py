"""The dense optimizer: its schedule moves from the first step, and decay knows its place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rec_jax.errors import InputError
from rec_jax.model.optimizer import OptimizerConfig, dense_optimizer, schedule


def rates(config: OptimizerConfig, total: int) -> np.ndarray:
    rule = schedule(config, total)
    return np.array([float(rule(step)) for step in range(total + 1)])


def test_the_warm_up_is_linear_and_its_first_step_moves() -> None:
    found = rates(OptimizerConfig(rate=0.5, warmup=5), 8)
    np.testing.assert_allclose(found[:5], 0.5 * np.arange(1, 6) / 5, rtol=1e-6)
    np.testing.assert_allclose(found[5:], 0.5, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_a_warm_up_the_first_step_has_the_whole_rate(warmup: int) -> None:
    np.testing.assert_allclose(rates(OptimizerConfig(rate=0.5, warmup=warmup), 4), 0.5, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_cosine_falls_from_the_peak_to_its_final_share(warmup: int) -> None:
    settings = OptimizerConfig(rate=2.0, warmup=warmup, schedule="cosine", final=0.1)
    found = rates(settings, 24)[warmup:]
    assert found[0] == pytest.approx(2.0)
    assert np.all(np.diff(found) < 0)
    assert found[len(found) // 2] == pytest.approx(2.0 * (0.1 + 0.9 / 2), rel=1e-5)
    assert found[-1] == pytest.approx(0.2, rel=1e-5)


def test_a_warm_up_longer_than_the_run_still_makes_a_schedule() -> None:
    found = rates(OptimizerConfig(rate=1.0, warmup=10, schedule="cosine"), 4)
    np.testing.assert_allclose(found, np.arange(1, 6) / 10, rtol=1e-6)


def trees() -> tuple[dict, dict]:
    ones = {"encoder": {"block/kernel": jnp.ones((2, 3)), "block/bias": jnp.ones(3),
                        "norm/scale": jnp.ones(3)},
            "tables": {"items": jnp.ones((4, 3)), "inputs": jnp.ones((4, 3))}}
    return ones, jax.tree.map(jnp.zeros_like, ones)


def test_decay_touches_matrices_of_the_encoder_only() -> None:
    params, gradient = trees()
    optimizer = dense_optimizer(OptimizerConfig(rate=0.1, warmup=0, weight_decay=0.5), 10)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["encoder"]["block/kernel"], -0.05, rtol=1e-6)
    for untouched in (updates["encoder"]["block/bias"], updates["encoder"]["norm/scale"],
                      updates["tables"]["items"], updates["tables"]["inputs"]):
        assert not np.any(untouched)


def test_the_first_update_is_a_full_adam_step_at_the_first_rate() -> None:
    params, gradient = trees()
    gradient = jax.tree.map(lambda leaf: leaf + 3.0, gradient)
    optimizer = dense_optimizer(OptimizerConfig(rate=0.4, warmup=4), 10)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, -0.1, rtol=1e-5)  # bias-corrected: the sign of g


def test_it_is_optax_adamw_where_nothing_is_masked() -> None:
    settings = OptimizerConfig(rate=0.03, warmup=0, weight_decay=0.2, clip=0.5)
    ours = dense_optimizer(settings, 10)
    theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.03, weight_decay=0.2))
    params = mine = {"encoder": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
    state, own = theirs.init(params), ours.init(mine)
    for step in range(3):
        gradient = jax.tree.map(lambda leaf, step=step: jnp.cos(leaf + step), params)
        updates, state = theirs.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        updates, own = ours.update(gradient, own, mine)
        mine = optax.apply_updates(mine, updates)
    np.testing.assert_allclose(mine["encoder"]["kernel"], params["encoder"]["kernel"], rtol=1e-6)


@pytest.mark.parametrize("settings", [{"rate": 0.0}, {"rate": -1.0}, {"warmup": -1}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        OptimizerConfig(**settings)  # type: ignore[arg-type]
