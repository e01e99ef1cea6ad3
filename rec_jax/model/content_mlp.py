"""Content that goes through an MLP on its way into an item's row.

    f(x) = gelu(.. gelu(x W_0 + b_0) ..) W_k + b_k,    and 0 of an item without content (x = 0)

A matrix says what is common to all items whose content points in a direction; hidden layers say
what follows from several directions at once. There is no query that has the product with `[e, x]`
that h has with `e + f(x)`, so such rows are made vectors where all of them are at hand, in a table
that trains densely. The gelu is that of tanh (Hendrycks and Gimpel, 2016).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rec_jax.data.content import Content

Array = jax.Array
_OF_GELU = 0.425
"""The mean square of a gelu of a standard normal number."""


def mlp(weights: Sequence[Array], content: Array) -> Array:
    """Content `[..., c]` -> what it adds to rows `[..., d]`.

    weights: kernel `[n, m]` and bias `[m]` of each layer, in the order of `Content.paths`.
    """
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    values = content
    for kernel, bias in layers[:-1]:
        values = jax.nn.gelu(values @ kernel + bias, approximate=True)
    kernel, bias = layers[-1]
    there = jnp.any(content != 0, axis=-1, keepdims=True)
    return jnp.where(there, values @ kernel + bias, 0)


def init_mlp(part: Content, dim: int, key: Array, scale: float) -> dict[str, Array]:
    """Parameters f32 by path: content of norm 1 has hidden values of deviation about 1, and begins
    with vectors of deviation `scale`."""
    widths = (part.columns, *part.hidden, dim)
    found = {}
    for layer, (before, after) in enumerate(itertools.pairwise(widths)):
        size = (scale if layer == len(part.hidden) else 1.0) * (
            1.0 if layer == 0 else (_OF_GELU * before) ** -0.5)
        kernel, bias = part.paths[2 * layer:2 * layer + 2]
        found[kernel] = size * jax.random.normal(jax.random.fold_in(key, layer), (before, after))
        found[bias] = jnp.zeros(after)
    return found
