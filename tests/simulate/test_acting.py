"""Which items are shown, and what an episode says of its user."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.simulate.acting import ActingConfig, any_items, exploring
from rec_jax.simulate.environments import interest
from rec_jax.simulate.rollout import watch


def test_any_items_are_as_likely_and_different_in_a_slate() -> None:
    slates = np.asarray(any_items(4000, 3, 11, jnp.uint32(5)))
    assert all(len(set(slate)) == 3 for slate in slates.tolist())
    assert slates.min() == 0 and slates.max() == 10
    np.testing.assert_allclose(np.bincount(slates.ravel(), minlength=11) / slates.size, 1 / 11,
                               atol=0.01)


def test_a_share_of_places_is_explored() -> None:
    def constant(state: None, items: jax.Array, place: jax.Array, seed: jax.Array) -> jax.Array:
        return jnp.full((items.shape[0], 2), 7)

    act = exploring(constant, jnp.float32(0.3), 1000)  # type: ignore[arg-type]
    found = np.asarray(act(None, jnp.zeros((5000, 1)), jnp.int32(0), jnp.uint32(1)))  # type: ignore[arg-type]
    assert abs(np.mean(found != 7) - 0.3) < 0.02
    falling = ActingConfig(explore=0.1, explore_from=0.9, explore_steps=10)
    shares = [float(falling.explored(jnp.int32(step))) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(shares, [0.9, 0.5, 0.1, 0.1], rtol=1e-5)
    with pytest.raises(InputError, match="belong together"):
        ActingConfig(explore_steps=4)


def test_an_episode_has_what_was_seen_shown_taken_and_earned() -> None:
    environment = interest.Config(items=30, topics=4, trashy=3, slate=2, horizon=25, budget=10.0,
                                  bonus=0.1, idle=1.0, nothing=1.0).open()

    def choose(items: jax.Array, place: jax.Array, seed: jax.Array) -> jax.Array:
        return any_items(items.shape[0], 2, 30, seed)

    episodes, states, slates = jax.device_get(
        jax.jit(lambda key: watch(environment, choose, key, 20))(jax.random.key(0)))
    for user in range(20):
        there = episodes.segments[user] > 0
        length = there.sum()
        assert there[:length].all() and length < 25  # leaves when the budget is spent
        budgets = states.budget[:length, user]
        assert (budgets[:-1] > 0).all() and budgets[-1] <= 0
        for turn in range(length):
            taken = episodes.targets[user, turn]
            assert taken == -1 or taken in slates[turn, user]
            assert episodes.rewards[user, turn] == (0 if taken < 0 else 4)
            if turn + 1 < length:
                seen = episodes.items[user, turn + 1]
                assert seen == (taken if taken >= 0 else episodes.items[user, turn])
        assert (episodes.targets[user, length:] == -1).all()
        assert (episodes.rewards[user, length:] == 0).all()
    np.testing.assert_allclose(episodes.returns, episodes.rewards.sum(1))
    batch = episodes.batch()
    assert {value.shape for value in batch.values()} == {(1, 20, 25)}
