"""Tiles for the XLA folds: how large they are, which rows they hold, what they score.

A fold walks over blocks of queries and tiles of rows whose scores, about a million, stay in the
caches of a few cores. Queries are padded to whole blocks (N x d is small). The table is not:
its last tile starts early instead of reaching past the end, overlaps the tile before it, and
`fresh` marks the rows that were not seen before.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .primitives import Array, Scores

LOWEST = jnp.finfo(jnp.float32).min
"""A finite start for running maxima: `-inf - LOWEST` is -inf, where `-inf - -inf` is NaN."""

_TILE_SCORES = 1 << 20
_MOST_QUERIES = 2048
_MOST_ROWS = 8192


class Tile(NamedTuple):
    """Rows [start, start + T) of this shard.

    start: int32 `[]`. ids: int32 `[T]`, global. rows: `[T, d]`.
    first: bool `[T]`, not in an earlier tile. fresh: bool `[T]`, and an item, too.
    """

    start: Array
    ids: Array
    first: Array
    fresh: Array
    rows: Array


def query_block(num_queries: int) -> int:
    """Queries of a block: all of them up to 2048, else equal blocks of at most that."""
    blocks = -(-num_queries // _MOST_QUERIES)
    each = -(-num_queries // blocks)
    return each if blocks == 1 else -(-each // 16) * 16


def in_blocks(x: Array, block: int, fill: float | int = 0) -> Array:
    """`[N, ...]` as `[blocks, block, ...]`, padded with `fill`."""
    missing = -x.shape[0] % block
    if missing:
        x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1), constant_values=fill)
    return x.reshape(-1, block, *x.shape[1:])


def tile_rows(block: int, num_rows: int) -> int:
    """Rows of a tile next to `block` queries: about a million scores, at most 8192 rows."""
    wanted = min(_MOST_ROWS, _TILE_SCORES // block // 64 * 64)
    return min(wanted, num_rows)


def num_tiles(num_rows: int, size: int) -> int:
    """Tiles that cover the table."""
    return -(-num_rows // size)


def take_tile(items: Array, index: Array, size: int, scores: Scores) -> Tile:
    """Tile `index` of the table."""
    wanted = index * size
    start = jnp.minimum(wanted, items.shape[0] - size)
    local = start + jnp.arange(size, dtype=jnp.int32)
    ids = scores.row_offset + local
    first = local >= wanted
    return Tile(start, ids, first, first & (ids < scores.num_items),
                jax.lax.dynamic_slice_in_dim(items, start, size))


def matmul(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """f32 product over axis `contract[0]` of a and `contract[1]` of b."""
    precision = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())),
                               precision=precision, preferred_element_type=jnp.float32)


def score_tile(queries: Array, tile: Tile, scores: Scores) -> tuple[Array, Array | None]:
    """s `[n, T]`, -inf where the row is not fresh, and c' with softcap; f32."""
    bias = _tile_bias(tile, scores)
    return _finish(matmul(queries, tile.rows, (1, 1)), tile.fresh, bias, scores)


def score_tile_by_item(queries: Array, tile: Tile, scores: Scores) -> tuple[Array, Array | None]:
    """The same as `[T, n]`: its product with the queries then needs no transposed operand."""
    bias = _tile_bias(tile, scores)
    return _finish(matmul(tile.rows, queries, (1, 1)), tile.fresh[:, None],
                   None if bias is None else bias[:, None], scores)


def pair_scores(queries: Array, items: Array, ids: Array, scores: Scores) -> Array:
    """Score of each query with one row, by global id, f32 `[n]`; -inf where it is not here.

    Equal to the tile's score up to the order of additions.
    """
    local = ids - scores.row_offset
    here = (local >= 0) & (local < items.shape[0]) & (ids < scores.num_items)
    at = jnp.where(here, local, 0)
    products = jnp.sum(queries.astype(jnp.float32) * items[at].astype(jnp.float32), axis=1)
    bias = None if scores.bias is None else scores.bias[at]
    return _finish(products, here, bias, scores)[0]


def _tile_bias(tile: Tile, scores: Scores) -> Array | None:
    if scores.bias is None:
        return None
    return jax.lax.dynamic_slice_in_dim(scores.bias, tile.start, tile.ids.shape[0])


def _finish(products: Array, fresh: Array, bias: Array | None, scores: Scores
            ) -> tuple[Array, Array | None]:
    s = products * scores.scale
    if bias is not None:
        s = s + bias
    slope = None
    if scores.softcap is not None:
        bent = jnp.tanh(s / scores.softcap)
        s, slope = scores.softcap * bent, 1 - jnp.square(bent)
    return jnp.where(fresh, s, -jnp.inf), slope
