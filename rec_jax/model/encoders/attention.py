"""Who may look at whom, and attention of a long row in pieces.

Everything an attention needs of L x L values (scores, masks, biases) is made for a range of
queries, so that a row of 2,048 items need not hold them for all queries at once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.kernels.xla.exp import exp

Array = jax.Array

Attend = Callable[[Any, Array, int], Array]
"""`attend(queries, places, seen)`, see `by_queries`."""

_HALVED = 64  # places of a row from which on halves pay
_HIDDEN = -1e30  # finite: behind the end of a row stand queries that may attend nothing


def attention_mask(of_queries: Array, of_keys: Array, places: Array, *, causal: bool) -> Array:
    """Who may look at whom: bool `[B, 1, C, L]`, true where a query may attend key j.

    of_queries: segments `[B, C]` of the queries, which stand in `places` `[C]` of every row, or
    in `[B, C]`, those of their own;
    of_keys: segments `[B, L]` of the row.

    Padding attends padding only, so that no row is empty and no softmax is 0/0.
    """
    same = of_queries[:, :, None] == of_keys[:, None, :]
    if causal:
        same &= places[..., None] >= jnp.arange(of_keys.shape[1])
    return same[:, None]


@jax.custom_vjp
def masked_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Softmax attention of queries `[B, C, h, c]` over keys and values `[B, L, h, c]`.

    Gives `[B, C, h, c]` in the type of the queries. mask: bool `[B, 1, C, L]`, true where a query
    may attend. Scores are scaled by c^-1/2 and f32.

    The backward pass makes the weights again from the log-normalisers (flash attention, Dao et
    al., 2022), with keys before queries: of its four products only one then has a transposed left
    operand, which on a CPU costs twice the others.
    """
    return _attention_forward(q, k, v, mask)[0]


def _attention_forward(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Any]:
    heads = q.shape[2]
    q, k, v = (by_head(x) for x in (q, k, v))
    scores = masked_scores(q, k, mask)
    peak = jnp.max(scores, axis=2, keepdims=True)
    weights = exp(scores - peak)
    total = jnp.sum(weights, axis=2, keepdims=True)
    out = head_product(weights.astype(v.dtype), v, 2, 1) / total
    log_total = (peak + jnp.log(total))[..., 0]  # [B * h, C]
    return by_place(out, heads).astype(q.dtype), (q, k, v, mask, log_total, out)


def _attention_backward(kept: Any, gradient: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, log_total, out = kept
    heads, scale = gradient.shape[2], q.shape[-1] ** -0.5
    g = by_head(gradient)
    scores = masked_scores(k, q, mask.swapaxes(2, 3))
    weights = exp(scores - log_total[:, None]).astype(q.dtype)  # [B * h, L, C]
    mean = jnp.sum(g * out, axis=2)[:, None]  # [B * h, 1, C]
    of_scores = (weights * (head_product(v, g, 2, 2) - mean)).astype(q.dtype)
    # Scaled when they are small: a constant in front of products becomes an array on a CPU.
    found = (head_product(of_scores, k, 1, 1) * scale, head_product(of_scores, q, 2, 1) * scale,
             head_product(weights, g, 2, 1))
    dq, dk, dv = (by_place(x, heads).astype(q.dtype) for x in found)
    return dq, dk, dv, None


masked_attention.defvjp(_attention_forward, _attention_backward)


def by_head(x: Array) -> Array:
    """`[B, L, h, c]` as `[B * h, L, c]`. On a CPU, products with one axis of batches are twice as
    fast as those with two."""
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def by_place(x: Array, heads: int) -> Array:
    """`[B * h, L, c]` back as `[B, L, h, c]`."""
    return x.reshape(-1, heads, *x.shape[1:]).swapaxes(1, 2)


def head_product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """f32 product of a and b over one axis each, for every entry of their first axis."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((0,), (0,))),
                               preferred_element_type=jnp.float32)


def masked_scores(q: Array, k: Array, mask: Array) -> Array:
    """Scores f32 `[B * h, C, L]` of q `[B * h, C, c]` and k `[B * h, L, c]`, scaled by c^-1/2; of
    pairs that mask `[B, 1, C, L]` hides, a large negative number."""
    heads = q.shape[0] // mask.shape[0]
    shown = jnp.broadcast_to(mask, (mask.shape[0], heads, *mask.shape[2:]))
    scores = head_product(q, k, 2, 2) * q.shape[-1] ** -0.5
    return jnp.where(shown.reshape(scores.shape), scores, _HIDDEN)


def by_queries(attend: Attend, queries: Any, size: int, *,
               length: int, causal: bool, at: Array | None = None) -> Array:
    """`attend(queries, places, seen)` of a row of at most `size` places, or of one piece after
    another.

    queries: arrays `[B, L, ...]`, in any structure; `attend` gets `[B, C, ...]` of them with
    their int32 places `[C]` in the row, and gives `[B, C, ...]`; they attend none but the first
    `seen` places. The last piece may end in places behind the row. The backward pass makes each
    piece again (Rabe & Staats, 2021), so that L x L values exist in neither direction.

    A causal row of one piece is cut in halves, of which the first need not look at the second:
    a quarter of the scores less, and a third of the time of attention on a CPU.

    length: L; at: int32 `[B, C]`, where the queries are those of few places alone, `[B, C, ...]`.
    """
    if at is not None:
        return attend(queries, at, length)
    if length <= size:
        bounds = [0, length // 2, length] if causal and length >= _HALVED else [0, length]
        parts = [attend(jax.tree.map(lambda x: x[:, begin:end], queries),  # noqa: B023
                        jnp.arange(begin, end), end) for begin, end in pairwise(bounds)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
    pieces = -(-length // size)

    def cut(array: Array) -> Array:  # [B, L, ...] -> [pieces, B, size, ...]
        spare = [(0, 0), (0, pieces * size - length)] + [(0, 0)] * (array.ndim - 2)
        parts = jnp.pad(array, spare).reshape(array.shape[0], pieces, size, *array.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    again = jax.checkpoint(lambda queries, places: attend(queries, places, length))
    places = jnp.arange(pieces * size).reshape(pieces, size)
    found = jax.lax.map(lambda each: again(*each), (jax.tree.map(cut, queries), places))
    joined = jnp.moveaxis(found, 0, 1)  # [B, pieces, size, ...]
    return joined.reshape(joined.shape[0], pieces * size, *joined.shape[3:])[:, :length]
