"""Counting better rows and keeping the best ones, as scans over tiles of rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .compat import vary_like
from .primitives import Array, Excluded, Scores
from .xla_tiles import Tile, num_tiles, query_block, score_tile, take_tile, tile_rows

_PAIR_CHUNK = 256


def label_scores(queries: Array, items: Array, targets: Array, scores: Scores) -> Array:
    """See `primitives.LabelScores`. Picks the labels from the tiles that `rank_count` computes."""
    size = tile_rows(query_block(queries.shape[0]), items.shape[0])

    def fold(index: Array, s_y: Array) -> Array:
        tile = take_tile(items, index, size, scores)
        s, _ = score_tile(queries, tile, scores)
        return jnp.maximum(s_y, jnp.max(
            jnp.where(tile.ids == targets[:, None], s, -jnp.inf), axis=1))

    start = vary_like(jnp.full(queries.shape[:1], -jnp.inf), items)
    return jax.lax.fori_loop(0, num_tiles(items.shape[0], size), fold, start)


def _mask_pairs(s: Array, tile: Tile, excluded: Excluded) -> Array:
    """s `[N, T]` with the excluded pairs of this tile at -inf."""
    chunk = min(_PAIR_CHUNK, excluded.item.shape[0])
    if chunk == 0:
        return s
    size = s.shape[1]
    first = tile.ids[0]
    begin, end = jnp.searchsorted(excluded.item, jnp.stack([first, first + size]))

    def mask(step: Array, s: Array) -> Array:
        position = begin + step * chunk + jnp.arange(chunk)
        at = jnp.minimum(position, excluded.item.shape[0] - 1)
        column = jnp.where(position < end, excluded.item[at] - first, size)
        return s.at[excluded.query[at], column].set(-jnp.inf, mode="drop")

    return jax.lax.fori_loop(0, -(-(end - begin) // chunk), mask, s)


def rank_count(queries: Array, items: Array, s_y: Array, excluded: Excluded,
               scores: Scores) -> Array:
    """See `primitives.RankCount`."""
    size = tile_rows(query_block(queries.shape[0]), items.shape[0])

    def fold(index: Array, count: Array) -> Array:
        tile = take_tile(items, index, size, scores)
        s, _ = score_tile(queries, tile, scores)
        ahead = (~(s < s_y[:, None]) & tile.fresh).astype(jnp.float32)
        ahead = _mask_pairs(jnp.where(ahead > 0, 1.0, -jnp.inf), tile, excluded)
        return count + jnp.sum(ahead > 0, axis=1, dtype=jnp.int32)

    start = vary_like(jnp.zeros(queries.shape[:1], jnp.int32), items)
    return jax.lax.fori_loop(0, num_tiles(items.shape[0], size), fold, start)


def top_k(queries: Array, items: Array, k: int, excluded: Excluded | None,
          scores: Scores) -> tuple[Array, Array]:
    """See `primitives.TopK`."""
    count = queries.shape[0]
    size = tile_rows(query_block(count), items.shape[0])

    def fold(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        tile = take_tile(items, index, size, scores)
        s, _ = score_tile(queries, tile, scores)
        if excluded is not None:
            s = _mask_pairs(s, tile, excluded)
        new, where = jax.lax.top_k(s, min(k, size))
        ids = jnp.where(new == -jnp.inf, -1, tile.ids[where])
        # Earlier tiles first: of equal scores the lower id stays ahead.
        all_scores = jnp.concatenate([carry[0], new], axis=1)
        all_ids = jnp.concatenate([carry[1], ids], axis=1)
        best, where = jax.lax.top_k(all_scores, k)
        return best, jnp.take_along_axis(all_ids, where, axis=1)

    start = (jnp.full((count, k), -jnp.inf), jnp.full((count, k), -1, jnp.int32))
    start = jax.tree.map(lambda x: vary_like(x, items), start)
    return jax.lax.fori_loop(0, num_tiles(items.shape[0], size), fold, start)
