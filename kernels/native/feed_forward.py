"""The feed-forward layer of a transformer on a CPU, from the `native` library."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..by_rows import by_rows
from ..primitives import Array
from . import build

ACTIVATIONS = {"gelu": 0, "relu": 1, "silu": 2, "swiglu": 3}
"""Names of `encoders.layers.activate`, and the numbers of `cpp/feed_forward.h`."""


def feed_forward(x: Array, up: Array, up_bias: Array, down: Array, down_bias: Array, *,
                 activation: str, keep: bool) -> tuple[Array, Array | None]:
    """`activation(x up + up_bias) down + down_bias`, and with `keep` what is activated.

    x `[N, d]`, up `[d, e]` (`[d, 2 e]` for swiglu), down `[e, d]` of one type, f32 or bf16; biases
    f32. Gives `[N, d]` and `[N, e]` or `[N, 2 e]` (or None) in that type. Sums are f32; the hidden
    layer is not rounded in f32, and rounded to bf16 in bf16. Not differentiable by itself. XLA may
    cut N over devices.
    """
    def rows(x: Array, *weights: Array) -> list[Array]:
        hidden = (x.shape[0], weights[0].shape[0]) if keep else (x.shape[0], 0)
        call = build.function("feed_forward", [
            jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(hidden, x.dtype)])
        return call(x, *weights, amx=build.has_amx(),
                    activation=np.int32(ACTIVATIONS[activation]))

    weights = (up.T, up_bias.astype(jnp.float32), down, down_bias.astype(jnp.float32))
    out, before = by_rows(rows, [x], [2, 2], weights)
    return out, before if keep else None
