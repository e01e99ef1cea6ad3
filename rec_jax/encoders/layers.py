"""Pieces that several encoders share: dropout by counter, projections, rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


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


def project(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    """`layer` on x `[B, L, d]`, as one product of `[B * L, d]`.

    The gradient of its kernel then sums over one axis, not two, which on a CPU is three times
    as fast.
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def split_keys(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` independent keys, or as many Nones: no key means no dropout."""
    if key is None:
        return [None] * count
    return list(jax.random.split(key, count))


def rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary positions: x `[B, L, h, c]` with pair i of its values turned by its own angle.

    Pair i is values i and i + c / 2, and turns by position * 10000^(-2 i / c), so that the
    product of a query and a key depends on the distance of their int32 positions `[B, L]` alone
    (Su et al., "RoFormer", 2021).
    """
    half = x.shape[-1] // 2
    angle = positions[:, :, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
    return turned.astype(x.dtype)
