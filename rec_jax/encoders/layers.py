"""Pieces that several encoders share: dropout by counter, segment masks, attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout, exact in its rate to 2^-16; the identity where `key` is None.

    Sixteen random bits an element are enough to decide a coin and cost half of what a float
    draw costs; on a CPU the draw is a visible part of a step.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 65536)
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.uint16(threshold)
    return jnp.where(keep, x * (65536.0 / (65536 - threshold)), 0).astype(x.dtype)


def segment_mask(segments: jax.Array, *, causal: bool) -> jax.Array:
    """Who may look at whom: bool `[B, 1, L, L]`, true where query i may attend key j.

    Padding attends padding only, so that no row is empty and no softmax is 0/0.
    """
    same = segments[:, :, None] == segments[:, None, :]
    if causal:
        length = segments.shape[1]
        same &= jnp.arange(length)[:, None] >= jnp.arange(length)[None, :]
    return same[:, None]


def split_keys(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` independent keys, or as many Nones: no key means no dropout."""
    if key is None:
        return [None] * count
    return list(jax.random.split(key, count))
