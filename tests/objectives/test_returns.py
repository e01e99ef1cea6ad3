"""Discounted sums along histories against loops."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.objectives.returns import discounted_returns, first_rewards, follows


def packed(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and segments `[4, 9]`: two or three histories a row, and padding."""
    random = np.random.default_rng(seed)
    segments = np.array([[1, 1, 1, 2, 2, 3, 3, 3, 3], [1, 1, 1, 1, 1, 1, 1, 1, 1],
                         [1, 2, 3, 3, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0]])
    return np.where(segments > 0, random.standard_normal(segments.shape), 0), segments


def written_out(rewards: np.ndarray, segments: np.ndarray, discount: float, most: int
                ) -> np.ndarray:
    found = np.zeros(rewards.shape)
    for row, place in np.ndindex(*rewards.shape):
        for ahead in range(most):
            if place + ahead >= rewards.shape[1]:
                break
            if segments[row, place + ahead] != segments[row, place] or not segments[row, place]:
                break
            found[row, place] += discount ** ahead * rewards[row, place + ahead]
    return found


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_returns_are_sums_within_a_history(discount: float) -> None:
    rewards, segments = packed(1)
    found = discounted_returns(jnp.asarray(rewards), jnp.asarray(segments), discount)
    np.testing.assert_allclose(found, written_out(rewards, segments, discount, 9), atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4, 12])
def test_first_rewards_end_with_their_history(steps: int) -> None:
    rewards, segments = packed(2)
    found = first_rewards(jnp.asarray(rewards), jnp.asarray(segments), 0.7, steps)
    np.testing.assert_allclose(found, written_out(rewards, segments, 0.7, steps), atol=1e-6)


def test_what_follows_is_of_the_same_history() -> None:
    found = np.asarray(follows(jnp.array([[1, 1, 1, 2, 2, 0, 0]]), 2))
    np.testing.assert_array_equal(found, [[True, False, False, False, False, False, False]])
