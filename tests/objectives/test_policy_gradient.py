"""Chen et al. (2019), section 6.1: policies of one state, learned from another one's log."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import make_step, new_state

from rec_jax.model.rows import RowSource
from rec_jax.objectives.policy_gradient import Config
from rec_jax.tables import RowOptimizerConfig, TableConfig

ITEMS = 10
FALLING = np.arange(ITEMS, 0, -1)  # how often a log of 55 rows has each action
RISING = np.arange(1, ITEMS + 1)
EVEN = np.full(ITEMS, 6)


class OneState:
    """A query that is a parameter, whatever the history."""

    features, source = (), RowSource(0)

    def __call__(self, params: Any, vectors: jax.Array, *_: Any) -> jax.Array:
        return jnp.broadcast_to(params["query"], vectors.shape)


def learned(config: Config, counts: np.ndarray, rewards: np.ndarray, mode: str = "dense",
            steps: int = 200) -> np.ndarray:
    """The policy after so many steps over the whole log, whose actions come as often as beta says,
    so that every step is the expected one."""
    actions = np.repeat(np.arange(ITEMS), counts)[None, :, None]
    beta = counts / counts.sum()
    batch = {
        "items": np.zeros(actions.shape, np.int32), "targets": actions.astype(np.int32),
        "segments": np.ones(actions.shape, np.int32),
        "positions": np.zeros(actions.shape, np.int32),
        "values/reward": rewards[actions].astype(np.float32),
        "values/propensity": beta[actions].astype(np.float32)}
    table = TableConfig(dim=ITEMS, init_scale=0.0, optimizer=RowOptimizerConfig(kind="adam"))
    rule = optax.adam(0.1)
    params = {"query": jnp.ones(ITEMS)}
    step = make_step(OneState(), config, rule, table, mode,  # type: ignore[arg-type]
                     rate=optax.constant_schedule(0.1))
    state = new_state(params, rule, table, mode, ITEMS)
    batch = jax.tree.map(jnp.asarray, batch)
    for _ in range(steps):
        state, _ = step(state, batch)
    scores = np.asarray(state.items.rows[:ITEMS] @ state.encoder["query"], np.float64)
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


@pytest.mark.parametrize(("counts", "share", "mode"), [
    (FALLING, 0.05, "dense"), (RISING, 0.26, "streamed")], ids=["falling", "rising"])
def test_a_corrected_policy_takes_the_best_item_whoever_wrote_the_log(
        counts: np.ndarray, share: float, mode: str) -> None:
    rewards = np.arange(1.0, ITEMS + 1)
    corrected = learned(Config(behaviour="propensity", cap=None), counts, rewards, mode)
    assert corrected[-1] >= 0.999
    plain = learned(Config(), counts, rewards, mode)
    np.testing.assert_allclose(plain, counts * rewards / (counts * rewards).sum(), atol=0.01)
    assert abs(plain[-1] - share) < 0.01


def test_of_two_items_that_are_shown_both_get_their_share() -> None:
    rewards = np.array([10.0, 9.0] + [1.0] * 8)
    one = learned(Config(behaviour="propensity", cap=None), EVEN, rewards)
    both = learned(Config(behaviour="propensity", cap=None, slate=2), EVEN, rewards)
    assert one[0] > 0.99
    np.testing.assert_allclose(both[:2], 0.5, atol=0.06)
