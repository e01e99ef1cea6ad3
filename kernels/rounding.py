"""Stochastic rounding to bf16 from a counter: the same bits on any device count and tile size.

A value between two bf16 neighbours goes up with the probability of its distance from the lower
one, so that the mean over seeds is the f32 value (Gupta et al., 2015). The 16 random bits come
from a hash of (seed, row, column), not from a stream: no state, no order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def mix(x: Array) -> Array:
    """A bijection of uint32 that scatters its bits (the finaliser of MurmurHash3)."""
    x = x ^ (x >> 16)
    x = x * jnp.uint32(0x85EBCA6B)
    x = x ^ (x >> 13)
    x = x * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def random_bits(seed: Array, rows: Array, dim: int) -> Array:
    """uint32 `[T, dim]` from `seed` uint32 `[]` and global row ids int32 `[T]`."""
    row = mix(rows.astype(jnp.uint32) ^ mix(seed.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))
    column = jax.lax.iota(jnp.uint32, dim) * jnp.uint32(0x9E3779B1)
    return mix(row[:, None] + column[None, :])


def round_to_bf16(values: Array, bits: Array) -> Array:
    """bf16 of f32 `values`: cut after adding 16 random low bits; NaN and inf stay what they are."""
    raw = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    cut = (raw + (bits & jnp.uint32(0xFFFF))) >> 16
    rounded = jax.lax.bitcast_convert_type(cut.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(values), rounded, values.astype(jnp.bfloat16))


def store_rows(values: Array, dtype: jnp.dtype, rows: Array, seed: Array | None) -> Array:
    """f32 `[T, d]` in the table's type: stochastic rounding for bf16 if there is a seed."""
    if dtype != jnp.bfloat16 or seed is None:
        return values.astype(dtype)
    return round_to_bf16(values, random_bits(seed, rows, values.shape[1]))
