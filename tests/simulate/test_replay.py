"""The store of episodes: the newest are there, and draws have their probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.simulate.replay import ReplayConfig, add, draw, judged, new_replay
from rec_jax.simulate.rollout import Episodes


def episodes(*numbers: int) -> Episodes:
    """One of two places for each number, which stands in all of its arrays."""
    values = jnp.tile(jnp.array(numbers)[:, None], (1, 2))
    return Episodes(values, values, jnp.ones_like(values), values.astype(jnp.float32))


def test_the_oldest_make_room() -> None:
    replay = new_replay(5, 2)
    for first in (1, 4, 7):
        replay = add(replay, episodes(first, first + 1, first + 2))
    assert sorted(np.asarray(replay.episodes.items[:, 0]).tolist()) == [5, 6, 7, 8, 9]
    assert int(replay.written) == 9


def test_even_draws_are_of_what_is_there() -> None:
    replay = add(new_replay(50, 2), episodes(3, 4, 5))
    drawn, _, factors = draw(replay, ReplayConfig(capacity=50, rows=3000), jax.random.key(0))
    counts = np.bincount(np.asarray(drawn.items[:, 0]), minlength=6)
    assert (counts[:3] == 0).all() and counts[3:].min() > 850
    np.testing.assert_array_equal(factors, 1.0)


def test_draws_by_priority_and_their_corrections() -> None:
    replay = add(new_replay(8, 2), episodes(0, 1, 2))
    errors = np.array([[0.5, 1.5], [2.0, 99.0], [4.0, 4.0]])  # of places, the 99 has no loss
    present = jnp.array([[True, True], [True, False], [True, True]])
    replay = judged(replay, jnp.arange(3), jnp.asarray(0.5 * errors ** 2, jnp.float32), present)
    np.testing.assert_allclose(replay.priority[:3], [1.0, 2.0, 4.0], rtol=1e-6)
    settings = ReplayConfig(capacity=8, rows=20_000, priority=0.5, correction=0.4)
    drawn, places, factors = draw(replay, settings, jax.random.key(1))
    np.testing.assert_array_equal(drawn.items[:, 0], places)
    chance = np.sqrt([1, 2, 4]) / np.sqrt([1, 2, 4]).sum()
    np.testing.assert_allclose(np.bincount(np.asarray(places)) / 20_000, chance, atol=0.015)
    weights = (3 * chance) ** -0.4
    np.testing.assert_allclose(factors, (weights / weights.max())[np.asarray(places)], rtol=1e-5)
    newer = add(replay, episodes(7))
    np.testing.assert_allclose(newer.priority[3], 4.0)  # as the largest, so that it comes soon
