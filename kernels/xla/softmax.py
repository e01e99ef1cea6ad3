"""Forward sums, gradient of the rows, and the update in place, as loops over tiles of rows.

Elementwise work fuses into few passes over a tile that is in cache, and costs a fifth of the
matrix products; both products of a pass therefore keep the layout in which they are fast:
`[n, T] x [T, d]` forward, `[T, n] x [n, d]` for the rows, never a transposed left operand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..compat import materialise, vary_like
from ..primitives import LEAST, Array, Partials, RowUpdate, Scores, SparseRows
from ..rounding import store_rows
from .exp import exp
from .tiles import (
    DEFAULT,
    LOWEST,
    Sizes,
    Tile,
    fold_tiles,
    fold_tiles_of,
    in_blocks,
    pair_scores,
    query_block,
    score_tile,
    score_tile_by_item,
    tile_rows,
    weighted_sum,
)

_SPARSE_CHUNK = 256

TileGrad = Callable[[Tile], tuple[Array, Array | None]]
"""Gradient f32 `[T, d]` of a tile's rows and f32 `[T]` of its bias (None without one)."""


def forward(queries: Array, items: Array, targets: Array, scores: Scores, *,
            with_expected: bool, with_moment: bool = False, sizes: Sizes = DEFAULT) -> Partials:
    """See `primitives.Forward`, and `primitives.EntropyForward` for the moment. Flash attention's
    online softmax with the label left out."""
    block = query_block(queries.shape[0], sizes)
    size = tile_rows(block, items.shape[0], sizes)

    def one_block(inputs: tuple[Array, Array]) -> Partials:
        queries, targets = inputs

        def fold(tile: Tile, carry: Any) -> Any:
            before, l_minus, o_minus, *moments = carry
            s, slope = score_tile(queries, tile, scores)
            # The label may take part in the reference, which saves a pass over the tile.
            m = jnp.maximum(before, jnp.max(s, axis=1))
            shrink = jnp.exp(before - m)
            x = s - m[:, None]
            p = jnp.where(tile.ids == targets[:, None], 0.0, exp(x))
            # The slope of what is no item is NaN where the query is.
            bent = p if slope is None else jnp.where(p == 0, 0.0, p * slope)
            if moments:
                l_moment, o_moment = moments
                by, x = jnp.maximum(before - m, LEAST), jnp.maximum(x, LEAST)
                l_moment = (l_moment + by * l_minus) * shrink + jnp.sum(p * x, axis=1)
                if o_minus is not None:
                    o_moment = ((o_moment + by[:, None] * o_minus) * shrink[:, None]
                                + weighted_sum(bent * x, tile.rows))
                moments = [l_moment, o_moment]
            l_minus = l_minus * shrink + jnp.sum(p, axis=1)
            if o_minus is not None:
                o_minus = o_minus * shrink[:, None] + weighted_sum(bent, tile.rows)
            return m, l_minus, o_minus, *moments

        sums = (jnp.zeros((block,)), jnp.zeros((block, items.shape[1])) if with_expected else None)
        start = (jnp.full((block,), LOWEST), *sums, *(sums if with_moment else ()))
        start = jax.tree.map(lambda x: vary_like(x, items), start)
        m, l_minus, o_minus, *moments = fold_tiles(items, size, scores, fold, start)
        return Partials(m, l_minus, o_minus, pair_scores(queries, items, targets, scores),
                        *moments)

    parts = jax.lax.map(one_block, (in_blocks(queries, block), in_blocks(targets, block, -1)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:queries.shape[0]], parts)


class _Side(NamedTuple):
    """What the backward fold needs of the queries, in blocks: `[blocks, n, ...]`."""

    queries: Array
    targets: Array
    lse: Array
    weight: Array
    label_weight: Array
    log_weight: Array | None


def _side(sizes: Sizes, queries: Array, *per_query: Array | None) -> _Side:
    block = query_block(queries.shape[0], sizes)
    targets, lse, *rest = per_query
    assert targets is not None and lse is not None
    # exp(s - lse) of a query that pads is 0, whatever the bias.
    weight, label_weight, log_weight = (
        None if x is None else in_blocks(x, block) for x in rest)
    assert weight is not None and label_weight is not None
    return _Side(in_blocks(queries, block), in_blocks(targets, block, -1),
                 in_blocks(lse, block, jnp.inf), weight, label_weight, log_weight)


def _tile_grad(side: _Side, scores: Scores, tile: Tile) -> tuple[Array, Array | None]:
    """Gradient f32 `[T, d]` of a tile's rows and f32 `[T]` of its bias; 0 where not fresh."""

    def one_block(part: _Side) -> tuple[Array, Array | None]:
        s, slope = score_tile_by_item(part.queries, tile, scores)
        x, factor = s - part.lse, part.weight
        if part.log_weight is not None:
            x = jnp.maximum(x, LEAST)
            factor = factor + part.log_weight * x
        c = factor * exp(x)
        c = c if slope is None else c * slope
        c = jnp.where(tile.ids[:, None] == part.targets, part.label_weight, c)
        grad = weighted_sum(c, part.queries)
        return grad, None if scores.bias is None else jnp.sum(c, axis=1)

    blocks = side.queries.shape[0]
    total = one_block(jax.tree.map(lambda x: x[0], side))
    if blocks > 1:
        def add(index: Array, total: Any) -> Any:
            part = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, False), side)
            return jax.tree.map(jnp.add, total, one_block(part))

        total = jax.lax.fori_loop(1, blocks, add, total)
    grad, grad_bias = scores.scale * total[0], total[1]
    if tile.fresh is not None:
        grad = jnp.where(tile.fresh[:, None], grad, 0.0)
        grad_bias = None if grad_bias is None else jnp.where(tile.fresh, grad_bias, 0.0)
    return grad, grad_bias


def item_grad(queries: Array, items: Array, targets: Array, lse: Array, weight: Array,
              label_weight: Array, scores: Scores, *, log_weight: Array | None = None,
              sizes: Sizes = DEFAULT) -> tuple[Array, Array | None]:
    """See `primitives.ItemGrad` and `primitives.EntropyGrad`."""
    side = _side(sizes, queries, targets, lse, weight, label_weight, log_weight)
    size = tile_rows(side.queries.shape[1], items.shape[0], sizes)

    def fold(tile: Tile, carry: Any) -> Any:
        return _put(carry, _tile_grad(side, scores, tile), _slices(carry, tile), tile)

    bias = None if scores.bias is None else jnp.zeros(items.shape[:1], jnp.float32)
    start = jax.tree.map(lambda x: vary_like(x, items), (jnp.zeros(items.shape), bias))
    return fold_tiles(items, size, scores, fold, start)


def item_update(queries: Array, items: Array, state: Any, targets: Array, lse: Array,
                weight: Array, label_weight: Array, scores: Scores, *, update: RowUpdate,
                hyper: Any, sparse: SparseRows | None, seed: Array | None,
                log_weight: Array | None = None, sizes: Sizes = DEFAULT
                ) -> tuple[Array, Any, Array | None]:
    """See `primitives.ItemUpdate` and `primitives.EntropyUpdate`. The loop carries the
    table, so that XLA updates it in place."""
    side = _side(sizes, queries, targets, lse, weight, label_weight, log_weight)
    return update_tiles(
        items, state, scores, partial(_tile_grad, side, scores), side.targets[0, 0],
        size=tile_rows(side.queries.shape[1], items.shape[0], sizes), update=update, hyper=hyper,
        sparse=sparse, seed=seed)


def update_tiles(items: Array, state: Any, scores: Scores, tile_grad: TileGrad, opaque: Array, *,
                 size: int, update: RowUpdate, hyper: Any, sparse: SparseRows | None,
                 seed: Array | None) -> tuple[Array, Any, Array | None]:
    """`primitives.ItemUpdate` over tiles of `size` rows, whose gradient is `tile_grad(tile)`.

    `opaque`: see `compat.materialise`.
    """

    def fold(tile: Tile, carry: Any) -> Any:
        items, state, d_bias = carry
        grad, grad_bias = tile_grad(tile)
        if sparse is not None:
            grad = _add_sparse(grad, sparse, tile.ids[0])
        # A read of the table that is fused into another operation than the write makes XLA
        # copy the whole table first.
        old, old_state = materialise(_slices((items, state), tile), opaque)
        rows, new_state = update(old.astype(jnp.float32), grad, old_state, hyper)
        rows = store_rows(rows, items.dtype, tile.ids, seed)
        items, state = _put((items, state), (rows, new_state), (old, old_state), tile)
        d_bias = _put(d_bias, grad_bias, _slices(d_bias, tile), tile)
        return items, state, d_bias

    bias = None if scores.bias is None else vary_like(
        jnp.zeros(items.shape[:1], jnp.float32), items)
    return fold_tiles_of(lambda carry: carry[0], items.shape[0], size, scores, fold,
                         (items, state, bias))


def _slices(arrays: Any, tile: Tile) -> Any:
    """The tile's part `[T, ...]` of every array `[V, ...]`."""
    size = tile.ids.shape[0]
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, tile.start, size), arrays)


def _put(arrays: Any, new: Any, old: Any, tile: Tile) -> Any:
    """`arrays` with `new` at the tile's rows, but for rows of the tile before, which stay `old`."""

    def put(x: Array, new: Array, old: Array) -> Array:
        if tile.first is not None:
            new = jnp.where(tile.first.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), tile.start, 0)

    return jax.tree.map(put, arrays, new, old)


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
