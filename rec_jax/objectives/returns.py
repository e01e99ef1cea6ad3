"""Sums of discounted rewards along histories that share rows.

A batch's arrays are `[..., L]`; `segments` says whose a place is (0: padding), and the places of a
history stand side by side. Nothing of one history reaches another.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def discounted_returns(rewards: Array, segments: Array, discount: float) -> Array:
    """f32 `[..., L]`: G_t = r_t + discount * G_{t+1}, and G_t = r_t at a history's last place."""
    if discount == 0.0:
        return rewards
    factor = discount * follows(segments, 1).astype(jnp.float32)

    def join(right: tuple[Array, Array], left: tuple[Array, Array]) -> tuple[Array, Array]:
        (after, total), (own, reward) = right, left
        return own * after, reward + own * total

    return jax.lax.associative_scan(join, (factor, rewards), reverse=True,
                                    axis=rewards.ndim - 1)[1]


def first_rewards(rewards: Array, segments: Array, discount: float, steps: int) -> Array:
    """f32 `[..., L]`: r_t + discount * r_{t+1} + ... of at most `steps` places of the history."""
    total = rewards
    for ahead in range(1, steps):
        total += discount ** ahead * jnp.where(follows(segments, ahead),
                                               _ahead(rewards, ahead), 0.0)
    return total


def follows(segments: Array, steps: int) -> Array:
    """Bool `[..., L]`: whether the place `steps` further is of the same history."""
    return (segments > 0) & (segments == _ahead(segments, steps))


def _ahead(values: Array, steps: int) -> Array:
    """`values [..., L]` of the places `steps` further; 0 past the end."""
    steps = min(steps, values.shape[-1])
    pad = [(0, 0)] * (values.ndim - 1) + [(0, steps)]
    return jnp.pad(values[..., steps:], pad)
