"""The entropy of each query's softmax over the whole catalogue, streamed and differentiable.

    H_i = - sum_j p_ij l_ij,   l_ij = s_ij - lse_i,   p_ij = exp(l_ij)

No term is negative, so nothing cancels. The log-normaliser is an argument, since a loss has it
already: the whole derivative of H is that at fixed lse and that by way of lse. A tile of rows adds
its part to every query's sum, and its gradient asks for nothing but the tile, the queries and the
factors on their sums, so an update that goes through a table once can add it (`entropy_grad`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .compat import vary_like
from .primitives import Array, AxisName
from .shards import align, check_arrays, place

_PAIRS, _ROWS, _QUERIES = 1 << 20, 8192, 1024  # of a tile, at most


class EntropySide(NamedTuple):
    """What the gradient of the rows needs of the queries. queries: `[N, d]`; lse, weight: f32
    `[N]`, the log-normaliser and the factor on each query's entropy."""

    queries: Array
    lse: Array
    weight: Array


def softmax_entropy(queries: Array, items: Array, lse: Array, *, bias: Array | None = None,
                    logit_scale: float = 1.0, softcap: float | None = None,
                    num_items: int | None = None, axis_name: AxisName | None = None) -> Array:
    """f32 `[N]`, see the top of the file; plain JAX, differentiable in every array.

    queries: `[N, d]`; items: `[V, d]`; lse: f32 `[N]`, as `softmax_loss` gives it for the same
    scores; the other arguments as there.

    Raises:
      ValueError: wrong shapes or types.
    """
    check_arrays("softmax_entropy", queries, items, None, bias, softcap)
    count, width = items.shape
    size = min(max(64, min(_ROWS, _PAIRS // queries.shape[0]) // 64 * 64), count)
    queries, items, lse, bias = align(queries, items, lse, bias)
    offset = offsets(items, bias, num_items, axis_name)
    spare = -count % size
    if spare:
        items = jnp.pad(items, ((0, spare), (0, 0)))
        offset = jnp.pad(offset, (0, spare), constant_values=-jnp.inf)

    @jax.checkpoint
    def one(total: Array, tile: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _terms(queries, *tile, lse, logit_scale, softcap), None

    zero = vary_like(jnp.zeros(queries.shape[:1], jnp.float32), items)
    total, _ = jax.lax.scan(one, zero, (items.reshape(-1, size, width), offset.reshape(-1, size)))
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def entropy_grad(rows: Array, offset: Array, side: EntropySide, logit_scale: float,
                 softcap: float | None) -> Array:
    """Gradient f32 `[T, d]` of sum_i weight_i H_i by a tile of rows, at fixed log-normalisers."""
    def add(grad: Array, block: EntropySide) -> tuple[Array, None]:
        def total(rows: Array) -> Any:
            terms = _terms(block.queries, rows, offset, block.lse, logit_scale, softcap)
            return jnp.sum(jnp.where(block.weight != 0, block.weight * terms, 0.0))

        return grad + jax.grad(total)(rows), None

    # All queries at once would be N scores a row, and N may be large.
    spare = -side.weight.shape[0] % min(_QUERIES, side.weight.shape[0])
    blocks = jax.tree.map(lambda x: jnp.pad(x, ((0, spare),) + ((0, 0),) * (x.ndim - 1)).reshape(
        -1, min(_QUERIES, x.shape[0]), *x.shape[1:]), side)
    return jax.lax.scan(add, jnp.zeros_like(rows), blocks)[0]


def offsets(items: Array, bias: Array | None, num_items: int | None,
            axis_name: AxisName | None = None) -> Array:
    """f32 `[V]`: what is added to the score of each of this shard's rows, -inf where it is no
    item."""
    total, first = place(items, num_items, axis_name)
    there = first + jnp.arange(items.shape[0]) < total
    return jnp.where(there, 0.0 if bias is None else bias.astype(jnp.float32), -jnp.inf)


def _terms(queries: Array, rows: Array, offset: Array, lse: Array, scale: float,
           softcap: float | None) -> Array:
    """f32 `[N]`: sum over the rows of -p log p."""
    product = jnp.matmul(queries.astype(jnp.float32), rows.astype(jnp.float32).T,
                         precision=jax.lax.Precision.HIGHEST)
    there = offset > -jnp.inf
    s = scale * product + jnp.where(there, offset, 0.0)
    if softcap is not None:
        s = softcap * jnp.tanh(s / softcap)
    log_p = jnp.where(there, s - lse[:, None], 0.0)
    return -jnp.sum(jnp.where(there, jnp.exp(log_p) * log_p, 0.0), axis=1)
