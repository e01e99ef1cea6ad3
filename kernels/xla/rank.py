"""Counting better rows and keeping the best ones, as loops over tiles of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..compat import materialise, vary_like
from ..primitives import Array, Excluded, Scores, ordered
from .tiles import (
    DEFAULT,
    Sizes,
    Tile,
    fold_tiles,
    in_blocks,
    matmul,
    query_block,
    tile_bias,
    tile_rows,
)

_PAIR_CHUNK = 256
_GROUP = 32
_FEW = 8


def label_scores(queries: Array, items: Array, targets: Array, scores: Scores, *,
                 sizes: Sizes = DEFAULT) -> Array:
    """See `primitives.LabelScores`.

    The bits of a product may depend on the shapes of its operands (XLA picks another
    algorithm), but not on where in a tile a row stands, if tiles are a multiple of 64 rows. So
    the labels' rows are gathered into tiles of the shape that `rank_count` folds.
    """
    block = query_block(queries.shape[0], sizes)
    size = tile_rows(block, items.shape[0], sizes)

    def one_block(inputs: tuple[Array, Array]) -> Array:
        queries, targets = inputs
        local = targets - scores.row_offset
        here = (local >= 0) & (local < items.shape[0])
        at = jnp.where(here, local, 0)
        here &= scores.is_item(at)
        if size == items.shape[0]:
            s = _scores(queries, items, scores.bias, scores)
            found = jnp.take_along_axis(s, at[:, None], axis=1)[:, 0]
        else:
            found = jnp.concatenate([
                jnp.diagonal(_scores(queries, items[rows], None if scores.bias is None else
                                     scores.bias[rows], scores), -part * size)
                for part, rows in enumerate(in_blocks(at, size))])
        return jnp.where(here, found, -jnp.inf)

    blocks = (in_blocks(_scaled(queries, scores), block), in_blocks(targets, block, -1))
    return jax.lax.map(one_block, blocks).reshape(-1)[:queries.shape[0]]


def _scaled(queries: Array, scores: Scores) -> Array:
    """f32 queries `[N, d]`, or `[N, d + 1]` with a one for the bias, whose product is the score.

    Only the product's own buffer then holds the scores, and all that read it see the same bits;
    elementwise steps could be fused, and rounded, in two ways.
    """
    queries = queries.astype(jnp.float32) * scores.scale
    if scores.bias is None:
        return queries
    return jnp.concatenate([queries, jnp.ones_like(queries[:, :1])], axis=1)


def _scores(scaled: Array, rows: Array, bias: Array | None, scores: Scores) -> Array:
    """s `[n, T]` of scaled queries and rows with their bias."""
    rows = rows.astype(jnp.float32)
    if bias is not None:
        rows = jnp.concatenate([rows, bias[:, None]], axis=1)
    s = matmul(scaled, rows, (1, 1))
    if scores.softcap is None:
        return s
    return materialise(scores.softcap * jnp.tanh(s / scores.softcap),
                       jax.lax.bitcast_convert_type(scaled[0, 0], jnp.int32))


def _tile_scores(scaled: Array, tile: Tile, scores: Scores) -> Array:
    """s `[n, T]` of a tile; -inf where a row is no item or was in an earlier tile."""
    s = _scores(scaled, tile.rows, tile_bias(tile, scores), scores)
    return s if tile.fresh is None else jnp.where(tile.fresh, s, -jnp.inf)


def _over_pairs(tile: Tile, excluded: Excluded, first_query: Array, count: int,
                step: Callable[[Array, Array, Any], Any], start: Any) -> Any:
    """`start` carried by `step(query [C], column [C], carry)` over the tile's excluded pairs.

    `query` is the row in the block of `count` queries from `first_query` on; pairs that are
    none have row `count`, which is out of bounds.
    """
    chunk = min(_PAIR_CHUNK, excluded.item.shape[0])
    if chunk == 0:
        return start
    first = tile.ids[0]
    begin, end = jnp.searchsorted(excluded.item, jnp.stack([first, first + tile.ids.shape[0]]))

    def fold(index: Array, carry: Any) -> Any:
        position = begin + index * chunk + jnp.arange(chunk)
        at = jnp.minimum(position, excluded.item.shape[0] - 1)
        row = excluded.query[at] - first_query
        used = (position < end) & (row >= 0) & (row < count)
        return step(jnp.where(used, row, count), jnp.where(used, excluded.item[at] - first, 0),
                    carry)

    return jax.lax.fori_loop(0, -(-(end - begin) // chunk), fold, start)


def rank_count(queries: Array, items: Array, s_y: Array, excluded: Excluded,
               scores: Scores, *, sizes: Sizes = DEFAULT) -> Array:
    """See `primitives.RankCount`. Counts all rows, and takes back the excluded pairs."""
    block = query_block(queries.shape[0], sizes)
    size = tile_rows(block, items.shape[0], sizes)

    def one_block(inputs: tuple[Array, Array, Array]) -> Array:
        scaled, s_y, first_query = inputs

        def fold(tile: Tile, count: Array) -> Array:
            s = _tile_scores(scaled, tile, scores)

            def take_back(query: Array, column: Array, count: Array) -> Array:
                safe = jnp.minimum(query, block - 1)
                counted = ~(s[safe, column] < s_y[safe])
                return count.at[query].add(-counted.astype(jnp.int32), mode="drop")

            return _over_pairs(tile, excluded, first_query, block, take_back,
                               count + _not_less(s, s_y))

        start = vary_like(jnp.zeros((block,), jnp.int32), items)
        return fold_tiles(items, size, scores, fold, start)

    blocked = in_blocks(_scaled(queries, scores), block)
    first = vary_like(jnp.arange(blocked.shape[0], dtype=jnp.int32) * block, items)
    counts = jax.lax.map(one_block, (blocked, in_blocks(s_y, block), first))
    return counts.reshape(-1)[:queries.shape[0]]


def _not_less(s: Array, s_y: Array) -> Array:
    """int32 `[n]`: entries of s `[n, T]` that are not less than s_y.

    Summed in f32, exact up to 2^24: on CPU, XLA has a fast sum for f32 and none for integers.
    """
    ones = jnp.where(s < s_y[:, None], jnp.float32(0), jnp.float32(1))
    return jnp.sum(ones, axis=1).astype(jnp.int32)


class Best(NamedTuple):
    """The k best so far: scores f32 `[n, k]` descending, ids int32 `[n, k]`; -inf and -1 empty."""

    scores: Array
    ids: Array


def take_best(best: Best, s: Array, ids: Array) -> Best:
    """`best` joined by the columns of s `[n, T]` with the ascending `ids [T]` above its own.

    Few columns of a later tile are good enough, and a maximum costs a fraction of a sort: only
    groups of columns whose maximum beats the last of the best are sorted in, a few at a time
    from left to right, so that of equal scores the lower id stays ahead.
    """
    count, size = s.shape
    width = _GROUP if size % _GROUP == 0 else size
    groups = size // width
    few = min(_FEW, groups)
    grouped = s.reshape(count, groups, width)
    group_ids = ids.reshape(groups, width)

    def promising(best: Best, peaks: Array) -> Array:
        return peaks > best.scores[:, -1:]

    def join(state: tuple[Best, Array]) -> tuple[Best, Array]:
        best, peaks = state
        position = jnp.arange(groups, dtype=jnp.int32)
        turn = jnp.where(promising(best, peaks), groups - position, 0)
        waits, chosen = jax.lax.top_k(turn, few)
        new = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1)
        # With fewer promising groups than `few`, others are chosen too, perhaps a second time.
        new = jnp.where(waits[:, :, None] > 0, new, -jnp.inf).reshape(count, -1)
        done = jnp.any(chosen[:, :, None] == position, axis=1)
        scores, where = jax.lax.top_k(jnp.concatenate([best.scores, new], axis=1),
                                      best.scores.shape[1])
        joined = jnp.concatenate([best.ids, group_ids[chosen].reshape(count, -1)], axis=1)
        kept = jnp.take_along_axis(joined, where, axis=1)
        return (Best(scores, jnp.where(scores == -jnp.inf, -1, kept)),
                jnp.where(done, -jnp.inf, peaks))

    return jax.lax.while_loop(lambda state: jnp.any(promising(*state)), join,
                              (best, jnp.max(grouped, axis=2)))[0]


def top_k(queries: Array, items: Array, k: int, excluded: Excluded | None,
          scores: Scores, *, sizes: Sizes = DEFAULT) -> tuple[Array, Array]:
    """See `primitives.TopK`."""
    block = query_block(queries.shape[0], sizes)
    size = tile_rows(block, items.shape[0], sizes)

    def one_block(inputs: tuple[Array, Array]) -> Best:
        scaled, first_query = inputs

        def fold(tile: Tile, best: Best) -> Best:
            s = ordered(_tile_scores(scaled, tile, scores))
            if excluded is not None:
                s = _over_pairs(
                    tile, excluded, first_query, block,
                    lambda query, column, s: s.at[query, column].set(-jnp.inf, mode="drop"), s)
            return take_best(best, s, tile.ids)

        start = Best(jnp.full((block, k), -jnp.inf), jnp.full((block, k), -1, jnp.int32))
        start = jax.tree.map(lambda x: vary_like(x, items), start)
        return fold_tiles(items, size, scores, fold, start)

    blocked = in_blocks(_scaled(queries, scores), block)
    first = vary_like(jnp.arange(blocked.shape[0], dtype=jnp.int32) * block, items)
    best, ids = jax.lax.map(one_block, (blocked, first))
    count = queries.shape[0]
    return best.reshape(-1, k)[:count], ids.reshape(-1, k)[:count]
