"""Pieces that the text encoders share. They are applied to tokens of texts padded at their end."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rec_jax.kernels import auto
from rec_jax.kernels.native import attention as native_attention
from rec_jax.model.encoders.attention import (
    attention_mask,
    by_head,
    by_place,
    head_product,
    masked_scores,
)
from rec_jax.model.encoders.layers import product

Array = jax.Array
Params = Mapping[str, Array]
"""Parameters by path; matrices `[in, out]` and tables in the type that is computed in, biases and
norms f32."""

_ERF = 0.5**0.5


def dense(params: Params, path: str, x: Array) -> Array:
    """x `[N, d]` -> x kernel + bias `[N, e]`, summed in f32, in the type of x."""
    out = product(x, params[f"{path}/kernel"].astype(x.dtype), (1, 0))
    return (out + params[f"{path}/bias"]).astype(x.dtype)


def layer_norm(params: Params, path: str, x: Array, epsilon: float) -> Array:
    """x `[N, d]` -> scale (x - mean) / sqrt(variance + epsilon) + bias, in f32, in x's type."""
    given = x.astype(jnp.float32)
    centred = given - jnp.mean(given, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + epsilon)
    return (normed * params[f"{path}/scale"] + params[f"{path}/bias"]).astype(x.dtype)


def activate(name: str, x: Array) -> Array:
    """The activation, computed in f32, in the type of x.

    gelu: x Phi(x), by the error function; gelu_tanh: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    / 2; relu, silu.
    """
    given = x.astype(jnp.float32)
    if name == "gelu":
        found = 0.5 * given * (1.0 + jax.lax.erf(given * _ERF))
    elif name == "gelu_tanh":
        found = jax.nn.gelu(given, approximate=True)
    else:
        found = getattr(jax.nn, name)(given)
    return found.astype(x.dtype)


def feed_forward(params: Params, path: str, x: Array, activation: str) -> Array:
    """x `[N, c]` -> activation(x up + b) down + b', `[N, c]`."""
    return dense(params, f"{path}/down", activate(activation, dense(params, f"{path}/up", x)))


def self_attention(qkv: Array, lengths: Array, heads: int, *, causal: bool) -> Array:
    """Attention of texts with themselves: qkv `[B, L, 3 c]` -> `[B, L, c]`.

    A token attends the first `lengths` `[B]` tokens of its text, and if `causal` those up to its
    own alone: softmax(q K^T / sqrt(c / heads)) V in each head, scores in f32. Queries, keys and
    values stand side by side, each `[heads, c / heads]`. What comes out behind the end of a text
    is nothing that may be used.
    """
    batch, length, _ = qkv.shape
    places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    # Padding is a segment of its own, so that no row of the softmax is empty.
    segments = (places < lengths[:, None]).astype(jnp.int32)
    if auto.takes_native("attention"):
        return native_attention.self_attention(
            qkv, native_attention.Seen(segments, segments, places), heads, causal)
    q, k, v = (by_head(part.reshape(batch, length, heads, -1))
               for part in jnp.split(qkv, 3, axis=-1))
    mask = attention_mask(segments, segments, places[0], causal=causal)
    weights = jax.nn.softmax(masked_scores(q, k, mask))
    mixed = head_product(weights.astype(v.dtype), v, 2, 1)
    return by_place(mixed, heads).reshape(batch, length, -1).astype(qkv.dtype)
