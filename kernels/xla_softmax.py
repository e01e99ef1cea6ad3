"""Forward sums, gradient of the rows, and the update in place, as scans over tiles of rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .compat import vary_like
from .primitives import Array, Partials, RowUpdate, Scores, SparseRows
from .rounding import store_rows
from .xla_tiles import LOWEST, Tile, matmul, num_tiles, score_tile, take_tile, tile_rows

_SPARSE_CHUNK = 256


def forward(queries: Array, items: Array, targets: Array, scores: Scores, *,
            with_expected: bool) -> Partials:
    """See `primitives.Forward`. Flash attention's online softmax with the label left out."""
    count, dim = queries.shape
    size = tile_rows(count, items.shape[0])

    def fold(index: Array, carry: Partials) -> Partials:
        tile = take_tile(items, index, size, scores)
        s, slope = score_tile(queries, tile, scores)
        label = tile.ids == targets[:, None]
        s_y = jnp.maximum(carry.s_y, jnp.max(jnp.where(label, s, -jnp.inf), axis=1))
        s = jnp.where(label, -jnp.inf, s)
        m = jnp.maximum(carry.m, jnp.max(s, axis=1))
        shrink = jnp.exp(carry.m - m)
        p = jnp.exp(s - m[:, None])
        l_minus = carry.l_minus * shrink + jnp.sum(p, axis=1)
        o_minus = None
        if carry.o_minus is not None:
            p = p if slope is None else p * slope
            o_minus = carry.o_minus * shrink[:, None] + matmul(
                p, tile.rows.astype(jnp.float32), (1, 0))
        return Partials(m, l_minus, o_minus, s_y)

    start = Partials(
        jnp.full((count,), LOWEST), jnp.zeros((count,)),
        jnp.zeros((count, dim)) if with_expected else None, jnp.full((count,), -jnp.inf))
    start = jax.tree.map(lambda x: vary_like(x, items), start)
    return jax.lax.fori_loop(0, num_tiles(items.shape[0], size), fold, start)


def _tile_grad(queries: Array, targets: Array, lse: Array, weight: Array, label_weight: Array,
               scores: Scores, tile: Tile) -> tuple[Array, Array]:
    """Gradient f32 `[T, d]` of a tile's rows and f32 `[T]` of its bias; 0 where not fresh."""
    s, slope = score_tile(queries, tile, scores)
    c = weight[:, None] * jnp.exp(s - lse[:, None])
    c = c if slope is None else c * slope
    label = (tile.ids == targets[:, None]) & tile.fresh
    c = jnp.where(label, label_weight[:, None], c)
    grad = scores.scale * matmul(c, queries.astype(jnp.float32), (0, 0))
    return grad, jnp.sum(c, axis=0)


def item_grad(queries: Array, items: Array, targets: Array, lse: Array, weight: Array,
              label_weight: Array, scores: Scores) -> tuple[Array, Array | None]:
    """See `primitives.ItemGrad`."""
    size = tile_rows(queries.shape[0], items.shape[0])

    def fold(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_items, d_bias = carry
        tile = take_tile(items, index, size, scores)
        grad, grad_bias = _tile_grad(queries, targets, lse, weight, label_weight, scores, tile)
        seen = tile.ids - scores.row_offset < index * size
        grad = jnp.where(seen[:, None], _slice(d_items, tile.start, size), grad)
        grad_bias = jnp.where(seen, _slice(d_bias, tile.start, size), grad_bias)
        return _put(d_items, grad, tile.start), _put(d_bias, grad_bias, tile.start)

    start = (jnp.zeros(items.shape, jnp.float32), jnp.zeros(items.shape[:1], jnp.float32))
    start = jax.tree.map(lambda x: vary_like(x, items), start)
    d_items, d_bias = jax.lax.fori_loop(0, num_tiles(items.shape[0], size), fold, start)
    return d_items, None if scores.bias is None else d_bias


def item_update(queries: Array, items: Array, state: Any, targets: Array, lse: Array,
                weight: Array, label_weight: Array, scores: Scores, *, update: RowUpdate,
                hyper: Any, sparse: SparseRows | None, seed: Array | None
                ) -> tuple[Array, Any, Array | None]:
    """See `primitives.ItemUpdate`. The loop carries the table, so that XLA updates it in place."""
    size = tile_rows(queries.shape[0], items.shape[0])

    def fold(index: Array, carry: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
        items, state, d_bias = carry
        tile = take_tile(items, index, size, scores)
        grad, grad_bias = _tile_grad(queries, targets, lse, weight, label_weight, scores, tile)
        if sparse is not None:
            grad = _add_sparse(grad, sparse, scores.row_offset + tile.start)
        old = jax.tree.map(lambda x: _slice(x, tile.start, size), state)
        rows, new = update(tile.rows.astype(jnp.float32), grad, old, hyper)
        rows = store_rows(rows, items.dtype, tile.ids, seed)
        # Rows of the tile before were updated there.
        first = tile.ids - scores.row_offset >= index * size

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(first.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        items = _put(items, keep(rows, tile.rows), tile.start)
        state = jax.tree.map(lambda x, a, b: _put(x, keep(a, b), tile.start), state, new, old)
        grad_bias = keep(grad_bias, _slice(d_bias, tile.start, size))
        return items, state, _put(d_bias, grad_bias, tile.start)

    start = (items, state, vary_like(jnp.zeros(items.shape[:1], jnp.float32), items))
    items, state, d_bias = jax.lax.fori_loop(0, num_tiles(items.shape[0], size), fold, start)
    return items, state, None if scores.bias is None else d_bias


def _slice(x: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _put(x: Array, tile: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, tile.astype(x.dtype), start, 0)


def _add_sparse(grad: Array, sparse: SparseRows, first_id: Array) -> Array:
    """`grad [T, d]` plus the sparse rows with ids in [first_id, first_id + T), in their order."""
    size = grad.shape[0]
    chunk = min(_SPARSE_CHUNK, sparse.ids.shape[0])
    if chunk == 0:
        return grad
    begin, end = jnp.searchsorted(sparse.ids, jnp.stack([first_id, first_id + size]))

    def add(step: Array, grad: Array) -> Array:
        position = begin + step * chunk + jnp.arange(chunk)
        at = jnp.minimum(position, sparse.ids.shape[0] - 1)
        local = jnp.where(position < end, sparse.ids[at] - first_id, size)
        return grad.at[local].add(sparse.grads[at].astype(jnp.float32), mode="drop")

    return jax.lax.fori_loop(0, -(-(end - begin) // chunk), add, grad)
