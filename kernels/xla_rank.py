"""Counting better rows and keeping the best ones, as loops over tiles of rows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from .compat import vary_like
from .primitives import Array, Excluded, Scores
from .xla_tiles import (
    DEFAULT,
    Sizes,
    Tile,
    fold_tiles,
    in_blocks,
    query_block,
    score_tile,
    tile_rows,
)

_PAIR_CHUNK = 256


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
        here = (local >= 0) & (local < items.shape[0]) & (targets < scores.num_items)
        at = jnp.where(here, local, 0)
        if size == items.shape[0]:
            whole = Tile(jnp.int32(0), jnp.arange(size, dtype=jnp.int32), None, None, items)
            s, _ = score_tile(queries, whole, scores)
            found = jnp.take_along_axis(s, at[:, None], axis=1)[:, 0]
        else:
            found = jnp.concatenate([
                jnp.diagonal(_gathered(queries, items, rows, scores), -part * size)
                for part, rows in enumerate(in_blocks(at, size))])
        return jnp.where(here, found, -jnp.inf)

    found = jax.lax.map(one_block, (in_blocks(queries, block), in_blocks(targets, block, -1)))
    return found.reshape(-1)[:queries.shape[0]]


def _gathered(queries: Array, items: Array, rows: Array, scores: Scores) -> Array:
    """s `[n, T]` of any `rows` int32 `[T]`, with the bits of a tile."""
    bias = None if scores.bias is None else scores.bias[rows]
    tile = Tile(jnp.int32(0), rows, None, None, items[rows])
    return score_tile(queries, tile, dataclasses.replace(scores, bias=bias))[0]


def _drop_pairs(s: Array, tile: Tile, excluded: Excluded, first_query: Array) -> Array:
    """s `[n, T]` with the excluded pairs of this tile and block at -inf."""
    chunk = min(_PAIR_CHUNK, excluded.item.shape[0])
    if chunk == 0:
        return s
    count, size = s.shape
    first = tile.ids[0]
    begin, end = jnp.searchsorted(excluded.item, jnp.stack([first, first + size]))

    def drop(step: Array, s: Array) -> Array:
        position = begin + step * chunk + jnp.arange(chunk)
        at = jnp.minimum(position, excluded.item.shape[0] - 1)
        row = excluded.query[at] - first_query
        used = (position < end) & (row >= 0) & (row < count)
        return s.at[jnp.where(used, row, count), excluded.item[at] - first].set(
            -jnp.inf, mode="drop")

    return jax.lax.fori_loop(0, -(-(end - begin) // chunk), drop, s)


def rank_count(queries: Array, items: Array, s_y: Array, excluded: Excluded,
               scores: Scores, *, sizes: Sizes = DEFAULT) -> Array:
    """See `primitives.RankCount`."""
    block = query_block(queries.shape[0], sizes)
    size = tile_rows(block, items.shape[0], sizes)

    def one_block(inputs: tuple[Array, Array, Array]) -> Array:
        queries, s_y, first_query = inputs

        def fold(tile: Tile, count: Array) -> Array:
            s, _ = score_tile(queries, tile, scores)
            return count + _not_less(_drop_pairs(s, tile, excluded, first_query), s_y)

        start = vary_like(jnp.zeros((block,), jnp.int32), items)
        return fold_tiles(items, size, scores, fold, start)

    blocked = in_blocks(queries, block)
    first = vary_like(jnp.arange(blocked.shape[0], dtype=jnp.int32) * block, items)
    counts = jax.lax.map(one_block, (blocked, in_blocks(s_y, block), first))
    return counts.reshape(-1)[:queries.shape[0]]


def _not_less(s: Array, s_y: Array) -> Array:
    """int32 `[n]`: entries of s `[n, T]` that are not less than s_y, but for -inf.

    On CPU a sum of a few f32 operations fuses into the reduction, and comparing does not, so
    that the sign of the difference is summed (exact up to 2^24 entries). NaN shows in the sum.
    """
    def compare(s: Array, s_y: Array) -> Array:
        return jnp.sum(~(s < s_y[:, None]), axis=1, dtype=jnp.int32)

    def by_sign(s: Array, s_y: Array) -> Array:
        total = jnp.sum(jnp.minimum(jnp.sign(s - s_y[:, None]) + 1, 1), axis=1)
        return jax.lax.cond(jnp.any(jnp.isnan(total)), compare,
                            lambda *_: total.astype(jnp.int32), s, s_y)

    return jax.lax.platform_dependent(s, s_y, cpu=by_sign, default=compare)


def top_k(queries: Array, items: Array, k: int, excluded: Excluded | None,
          scores: Scores, *, sizes: Sizes = DEFAULT) -> tuple[Array, Array]:
    """See `primitives.TopK`."""
    block = query_block(queries.shape[0], sizes)
    size = tile_rows(block, items.shape[0], sizes)

    def one_block(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        queries, first_query = inputs

        def fold(tile: Tile, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            s, _ = score_tile(queries, tile, scores)
            if excluded is not None:
                s = _drop_pairs(s, tile, excluded, first_query)
            new, where = jax.lax.top_k(s, min(k, size))
            ids = jnp.where(new == -jnp.inf, -1, tile.ids[where])
            # Earlier tiles first: of equal scores the lower id stays ahead.
            all_scores = jnp.concatenate([carry[0], new], axis=1)
            all_ids = jnp.concatenate([carry[1], ids], axis=1)
            best, where = jax.lax.top_k(all_scores, k)
            return best, jnp.take_along_axis(all_ids, where, axis=1)

        start = (jnp.full((block, k), -jnp.inf), jnp.full((block, k), -1, jnp.int32))
        start = jax.tree.map(lambda x: vary_like(x, items), start)
        return fold_tiles(items, size, scores, fold, start)

    blocked = in_blocks(queries, block)
    first = vary_like(jnp.arange(blocked.shape[0], dtype=jnp.int32) * block, items)
    best, ids = jax.lax.map(one_block, (blocked, first))
    count = queries.shape[0]
    return best.reshape(-1, k)[:count], ids.reshape(-1, k)[:count]
