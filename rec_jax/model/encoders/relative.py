"""Relative biases of attention scores: by places between, and by time between.

Both are looked up in small learned tables. Their gradients are written without a scatter into few
addresses, which some devices do one after another, and others in any order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

TIME_BUCKETS = 64
"""Two an octave from a second to 2^31 seconds, and one for 0."""


def place_bias(table: Array, first: Array, count: int, length: int) -> Array:
    """Biases `[h, C, L]` of `count` queries from place `first` on against L keys.

    table: `[h, 2 L - 1]`, for distances (query's place - key's place) from 1 - L to L - 1, or
      `[h, L]`, for those from 0; a key that stands later then has bias 0.
    """
    heads, known = table.shape
    width = count + length - 1
    table = jnp.pad(table, ((0, 0), (2 * length - 1 - known, count)))
    own = jax.lax.dynamic_slice_in_dim(table, first, width, axis=1)[:, ::-1]
    # Query c needs own[C - 1 - c:][:L]. Rows of one value more than they are read with shift by
    # one a row: neither this nor its gradient looks anything up.
    rows = jnp.broadcast_to(jnp.pad(own, ((0, 0), (0, 1)))[:, None], (heads, count, width + 1))
    flat = rows.reshape(heads, -1)[:, count - 1:count - 1 + count * width]
    return flat.reshape(heads, count, width)[:, :, :length]


def time_bucket(seconds: Array) -> Array:
    """Bucket int32 of each int32 duration of at least 0, finer for shorter ones.

    Exponent and first fraction bit of the float `seconds + 1`: a logarithm in steps of a half
    that has no rounding, so that the same duration is in the same bucket in every program.
    """
    bits = jax.lax.bitcast_convert_type(seconds.astype(jnp.float32) + 1.0, jnp.int32)
    return (bits >> 22) - (127 << 1)


@jax.custom_vjp
def look_up(table: Array, index: Array) -> Array:
    """`table[index]` for f32 table `[K]` with a small K and int32 index of any shape."""
    return table[index]


def _look_up(table: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
    return table[index], (table, index)


def _sum_by_index(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, None]:
    table, index = kept
    # A pass for each entry: all at once would be an array of indices x entries on a CPU.
    sums = jax.lax.map(lambda entry: jnp.sum(jnp.where(index == entry, cotangent, 0)),
                       jnp.arange(table.shape[0]))
    return sums.astype(table.dtype), None


look_up.defvjp(_look_up, _sum_by_index)
