"""Pieces that several encoders share: dropout by hash, projections, rotary positions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rec_jax.kernels.native import feed_forward as native_feed_forward
from rec_jax.kernels.rounding import mix

MOST_DROPOUT = 0.9999
"""Highest rate: what is kept is scaled by 1 / (1 - rate)."""


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout, exact in its rate to 2^-32; the identity where `key` is None.

    An element's coin is a hash of two words of the key and of its place, so XLA computes it where
    it is used. Drawing as many bits from the key itself is a visible part of a small CPU step.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**32)
    keep = coins(key, x.shape) >= jnp.uint32(threshold)
    return jnp.where(keep, x * (2.0**32 / (2**32 - threshold)), 0).astype(x.dtype)


def constant_last(x: jax.Array) -> jax.Array:
    """x `[..., d]` with 1 in the last column: in a product with it, that of an item is added."""
    return x.at[..., -1].set(1)


def coins(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Hashed bits uint32 of a shape: the same for an element on however many devices."""
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    row = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape) - 1):
        row = row * jnp.uint32(shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    column = jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
    return mix(mix(mix(row ^ first) + column * jnp.uint32(0x9E3779B1)) ^ second)


def project(layer: nnx.Linear, x: jax.Array, columns: slice = slice(None)) -> jax.Array:
    """`layer` on x `[B, L, d]` in the layer's type, as one product of `[B * L, d]`.

    The gradient of its kernel then sums over one axis, not two, which on a CPU is three times
    as fast. columns: only these of its outputs.
    """
    assert layer.bias is not None
    flat = affine(x.reshape(-1, x.shape[-1]).astype(layer.dtype), layer.kernel[...][:, columns],
                  layer.bias[...][columns])
    return flat.reshape(*x.shape[:-1], -1)


def feed_forward_layers(up: nnx.Linear, down: nnx.Linear, x: jax.Array, activation: str
                        ) -> jax.Array:
    """`project(down, activate(activation, project(up, x)))` of x `[B, L, d]`, natively."""
    assert up.bias is not None and down.bias is not None
    flat = feed_forward(x.reshape(-1, x.shape[-1]).astype(up.dtype), up.kernel[...], up.bias[...],
                        down.kernel[...], down.bias[...], activation)
    return flat.reshape(x.shape)


@jax.custom_vjp
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x `[N, d]` times kernel f32 `[d, e]` plus bias f32 `[e]`, in the type of x, summed in f32.

    Every product has both operands in the type of x and its result in f32, also in the backward
    pass, where the gradients of kernel and bias stay f32: CPUs with bf16 units (AMX) are then two
    to four times as fast in bf16 as in f32, and lose that with any other types. The gradient of
    the bias is a product with ones, too, which XLA:CPU runs on all cores, unlike a sum.
    """
    return _affine_forward(x, kernel, bias)[0]


def _affine_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
    cast = kernel.astype(x.dtype)
    return (product(x, cast, (1, 0)) + bias).astype(x.dtype), (x, cast)


def _affine_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel = kept
    ones = jnp.ones((1, x.shape[0]), x.dtype)
    return (product(gradient, kernel, (1, 1)).astype(x.dtype), product(x, gradient, (0, 0)),
            product(ones, gradient, (1, 0))[0])


affine.defvjp(_affine_forward, _affine_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def feed_forward(x: jax.Array, up: jax.Array, up_bias: jax.Array, down: jax.Array,
                 down_bias: jax.Array, activation: str) -> jax.Array:
    """`affine(activation(affine(x, up, up_bias)), down, down_bias)` by the native library.

    x `[N, d]`, up f32 `[d, e]` (`[d, 2 e]` for swiglu), down f32 `[e, d]`. The backward pass is
    that of the parts, and activates again what was kept before the activation.
    """
    return native_feed_forward.feed_forward(
        x, up.astype(x.dtype), up_bias, down.astype(x.dtype), down_bias, activation=activation,
        keep=False)[0]


def _feed_forward_forward(x: jax.Array, up: jax.Array, up_bias: jax.Array, down: jax.Array,
                          down_bias: jax.Array, activation: str) -> tuple[jax.Array, Any]:
    up, down = up.astype(x.dtype), down.astype(x.dtype)
    out, before = native_feed_forward.feed_forward(x, up, up_bias, down, down_bias,
                                                   activation=activation, keep=True)
    return out, (x, up, down, before)


def _feed_forward_backward(activation: str, kept: Any, gradient: jax.Array) -> Any:
    x, up, down, before = kept
    hidden, back = jax.vjp(lambda before: activate(activation, before), before)
    of_hidden, of_down, of_down_bias = _affine_backward((hidden, down), gradient)
    return (*_affine_backward((x, up), back(of_hidden)[0]), of_down, of_down_bias)


feed_forward.defvjp(_feed_forward_forward, _feed_forward_backward)


def activate(name: str, x: jax.Array) -> jax.Array:
    """`jax.nn`'s activation of this name, computed in f32, in the type of x.

    swiglu: silu of the first half of the last axis times the second (Shazeer, 2020).
    """
    given = x.astype(jnp.float32)
    if name == "swiglu":
        gate, values = jnp.split(given, 2, axis=-1)
        return (jax.nn.silu(gate) * values).astype(x.dtype)
    return getattr(jax.nn, name)(given).astype(x.dtype)


def product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """f32 product of two matrices over one axis each."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())),
                               preferred_element_type=jnp.float32)


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
