"""Tiles of item rows for the XLA folds: their size, their scores, and how a fold visits them.

The last tile starts early rather than reaching past the table (which would need a padded
copy), so that it overlaps the tile before it; `fresh` marks the rows not seen before.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .primitives import Array, Scores

LOWEST = jnp.finfo(jnp.float32).min
"""A finite start for running maxima: `-inf - LOWEST` is -inf, where `-inf - -inf` is NaN."""

_TILE_LOGITS = 1 << 20


class Tile(NamedTuple):
    """start: int32 `[]`, local row; ids: int32 `[T]`, global ids; fresh: bool `[T]`, the row is
    an item and in no earlier tile; rows: `[T, d]`."""

    start: Array
    ids: Array
    fresh: Array
    rows: Array


def tile_rows(num_queries: int, num_rows: int) -> int:
    """Rows of a tile: about a million logits, 64 to 8192 rows."""
    wanted = max(64, min(8192, _TILE_LOGITS // num_queries // 64 * 64))
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
    fresh = (local >= wanted) & (ids < scores.num_items)
    return Tile(start, ids, fresh, jax.lax.dynamic_slice_in_dim(items, start, size))


def matmul(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """f32 product over axis `contract[0]` of a and `contract[1]` of b."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    precision = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dims, precision=precision,
                               preferred_element_type=jnp.float32)


def score_tile(queries: Array, tile: Tile, scores: Scores) -> tuple[Array, Array | None]:
    """s `[N, T]`, -inf where the row is not fresh, and c' with softcap; f32."""
    s = matmul(queries, tile.rows, (1, 1)) * scores.scale
    if scores.bias is not None:
        s = s + jax.lax.dynamic_slice_in_dim(scores.bias, tile.start, tile.rows.shape[0])
    slope = None
    if scores.softcap is not None:
        bent = jnp.tanh(s / scores.softcap)
        s, slope = scores.softcap * bent, 1 - jnp.square(bent)
    return jnp.where(tile.fresh, s, -jnp.inf), slope
