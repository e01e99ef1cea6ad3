"""Tiles for the XLA folds: how large they are, which rows they hold, what they score.

A fold walks over blocks of queries and tiles of rows whose scores, about a million, stay in the
caches of a few cores. Queries are padded to whole blocks (N x d is small). The table is not:
its last tile starts early instead of reaching past the end, overlaps the tile before it, and
`fresh` marks the rows that were not seen before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..primitives import Array, Scores

LOWEST = jnp.finfo(jnp.float32).min
"""A finite start for running maxima: `-inf - LOWEST` is -inf, where `-inf - -inf` is NaN."""


@dataclass(frozen=True)
class Sizes:
    """Bounds of a tile: how many scores, queries and rows it may have at most.

    The defaults were the fastest on CPUs with 2 MiB of L2 cache a core (`docs/kernels.md`).
    """

    scores: int = 1 << 20
    queries: int = 1024
    rows: int = 8192


DEFAULT = Sizes()


class Tile(NamedTuple):
    """Rows [start, start + T) of this shard.

    start: int32 `[]`. ids: int32 `[T]`, global. rows: `[T, d]`.
    first: bool `[T]`, not in an earlier tile; None if that is so for all.
    fresh: bool `[T]`, not in an earlier tile, and an item; None if that is so for all. Rows that
      are not fresh are 0 here: they may hold NaN, and 0 * NaN is NaN.
    """

    start: Array
    ids: Array
    first: Array | None
    fresh: Array | None
    rows: Array


def query_block(num_queries: int, sizes: Sizes) -> int:
    """Queries of a block: all of them if so many are allowed, else equal blocks."""
    blocks = -(-num_queries // sizes.queries)
    each = -(-num_queries // blocks)
    return each if blocks == 1 else -(-each // 16) * 16


def in_blocks(x: Array, block: int, fill: float | int = 0) -> Array:
    """`[N, ...]` as `[blocks, block, ...]`, padded with `fill`."""
    missing = -x.shape[0] % block
    if missing:
        x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1), constant_values=fill)
    return x.reshape(-1, block, *x.shape[1:])


def tile_rows(block: int, num_rows: int, sizes: Sizes) -> int:
    """Rows of a tile next to `block` queries: a multiple of 64, or the whole table."""
    wanted = max(1, min(sizes.rows, sizes.scores // block) // 64) * 64
    return min(wanted, num_rows)


def fold_tiles(items: Array, size: int, scores: Scores, fold: Callable[[Tile, Any], Any],
               start: Any) -> Any:
    """`start` carried by `fold` over all tiles of the table, in order."""
    return fold_tiles_of(lambda _: items, items.shape[0], size, scores, fold, start)


def fold_tiles_of(rows_of: Callable[[Any], Array], num_rows: int, size: int, scores: Scores,
                  fold: Callable[[Tile, Any], Any], start: Any) -> Any:
    """The same where the table is part of the carry: `rows_of(carry)`.

    Without a bias, tiles of items only, which are almost all, need no masks.
    """
    whole = num_rows // size
    items_here = jnp.asarray(scores.num_items - scores.row_offset, jnp.int32)
    plain = jnp.clip(items_here // size, 0, whole)

    def step(index: Array, carry: Any, masked: bool) -> Any:
        wanted = index * size
        begin = jnp.minimum(wanted, num_rows - size)
        local = begin + jnp.arange(size, dtype=jnp.int32)
        ids = scores.row_offset + local
        rows = jax.lax.dynamic_slice_in_dim(rows_of(carry), begin, size)
        first = local >= wanted if masked else None
        fresh = first if first is None else first & (ids < scores.num_items)
        if scores.bias is not None:
            kept = jax.lax.dynamic_slice_in_dim(scores.bias, begin, size) != -jnp.inf
            fresh = kept if fresh is None else fresh & kept
        if fresh is not None:
            rows = jnp.where(fresh[:, None], rows, 0)
        return fold(Tile(begin, ids, first, fresh, rows), carry)

    carry = jax.lax.fori_loop(0, plain, partial(step, masked=False), start)
    return jax.lax.fori_loop(plain, -(-num_rows // size), partial(step, masked=True), carry)


def matmul(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """f32 product over axis `contract[0]` of a and `contract[1]` of b."""
    precision = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())),
                               precision=precision, preferred_element_type=jnp.float32)


def weighted_sum(weights: Array, vectors: Array) -> Array:
    """f32 `[n, d]`: f32 weights `[n, T]` times vectors `[T, d]`.

    With vectors in bf16 a GPU or TPU has its fast product only for weights in bf16, and is many
    times slower without; a CPU gains a fifth from it, and keeps the weights exact.
    """
    def exact(weights: Array, vectors: Array) -> Array:
        return matmul(weights, vectors.astype(jnp.float32), (1, 0))

    def fast(weights: Array, vectors: Array) -> Array:
        return matmul(weights.astype(vectors.dtype), vectors, (1, 0))

    return jax.lax.platform_dependent(weights, vectors, cpu=exact, default=fast)


def score_tile(queries: Array, tile: Tile, scores: Scores) -> tuple[Array, Array | None]:
    """s `[n, T]`, -inf where the row is not fresh, and c' with softcap; f32."""
    bias = tile_bias(tile, scores)
    return _finish(matmul(queries, tile.rows, (1, 1)), tile.fresh, bias, scores)


def score_tile_by_item(queries: Array, tile: Tile, scores: Scores) -> tuple[Array, Array | None]:
    """The same as `[T, n]`: its product with the queries then needs no transposed operand."""
    bias = tile_bias(tile, scores)
    fresh = None if tile.fresh is None else tile.fresh[:, None]
    return _finish(matmul(tile.rows, queries, (1, 1)), fresh,
                   None if bias is None else bias[:, None], scores)


def pair_scores(queries: Array, items: Array, ids: Array, scores: Scores) -> Array:
    """Score of each query with one row, by global id, f32 `[n]`; -inf where it is not here.

    Equal to the tile's score up to the order of additions.
    """
    local = ids - scores.row_offset
    here = (local >= 0) & (local < items.shape[0])
    at = jnp.where(here, local, 0)
    here &= scores.is_item(at)
    products = jnp.sum(queries.astype(jnp.float32) * items[at].astype(jnp.float32), axis=1)
    bias = None if scores.bias is None else scores.bias[at]
    return _finish(products, here, bias, scores)[0]


def tile_bias(tile: Tile, scores: Scores) -> Array | None:
    """f32 `[T]`, 0 where a row is not fresh; None without a bias."""
    if scores.bias is None:
        return None
    bias = jax.lax.dynamic_slice_in_dim(scores.bias, tile.start, tile.ids.shape[0])
    return bias if tile.fresh is None else jnp.where(tile.fresh, bias, 0.0)


def _finish(products: Array, fresh: Array | None, bias: Array | None, scores: Scores
            ) -> tuple[Array, Array | None]:
    s = products * scores.scale
    if bias is not None:
        s = s + bias
    slope = None
    if scores.softcap is not None:
        bent = jnp.tanh(s / scores.softcap)
        s, slope = scores.softcap * bent, 1 - jnp.square(bent)
    return s if fresh is None else jnp.where(fresh, s, -jnp.inf), slope
