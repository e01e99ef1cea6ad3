"""Pairs (query, item) that are no candidates, sorted by tile, and their mask inside a kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..primitives import Array, Excluded, Scores
from .tiles import LANES, Tiling, local_rows, matmul, round_up

CHUNK = LANES
"""Pairs that are masked at once."""


class Pairs(NamedTuple):
    """Pairs in whole chunks, ordered by tile; in the kernel the refs."""

    spans: Any  # int32 [row tiles, 1, 2 x query tiles]: first chunks, then one past their last
    rows: Any  # int32 [C, 1, CHUNK], local
    queries: Any  # int32 [C, 1, CHUNK]


def pairs(excluded: Excluded, rows: int, padded_queries: int, scores: Scores, tiling: Tiling
          ) -> tuple[Pairs, Pairs]:
    """Operands and specs; pairs of other shards go to the end, behind every tile."""
    query_tiles, row_tiles = padded_queries // tiling.n, pl.cdiv(rows, tiling.v)
    missing = round_up(max(excluded.item.shape[0], 1), CHUNK) - excluded.item.shape[0]
    local = jnp.pad(local_rows(excluded.item, rows, scores), (0, missing), constant_values=-1)
    query = jnp.pad(excluded.query.astype(jnp.int32), (0, missing))
    tile = jnp.where(local < 0, row_tiles * query_tiles,
                     local // tiling.v * query_tiles + query // tiling.n)
    tile, local, query = jax.lax.sort((tile, local, query), num_keys=1)
    bounds = jnp.searchsorted(tile, jnp.arange(row_tiles * query_tiles + 1, dtype=jnp.int32))
    first = bounds[:-1] // CHUNK
    # A tile without pairs gets an empty span.
    last = jnp.where(bounds[1:] > bounds[:-1], -(-bounds[1:] // CHUNK), first)
    spans = [x.astype(jnp.int32).reshape(row_tiles, 1, query_tiles) for x in (first, last)]
    operands = Pairs(jnp.concatenate(spans, axis=2),
                     local.reshape(-1, 1, CHUNK), query.reshape(-1, 1, CHUNK))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return operands, Pairs(
        pl.BlockSpec((1, 1, 2 * query_tiles), lambda i, j: (j, 0, 0), memory_space=pltpu.SMEM),
        anywhere, anywhere)


def scratch() -> dict[str, Any]:
    """Buffers of `mask_pairs`, to be handed on by name."""
    return {"row_chunk": pltpu.VMEM((1, CHUNK), jnp.int32),
            "query_chunk": pltpu.VMEM((1, CHUNK), jnp.int32),
            "arrived": pltpu.SemaphoreType.DMA((2,))}


def mask_pairs(refs: Pairs, tile: Any, tiling: Tiling, fill: float, *, row_chunk: Any,
               query_chunk: Any, arrived: Any) -> None:
    """Set the excluded entries of `tile` `[n, v]` to `fill`.

    The mask of a chunk of pairs is a product of two one-hot matrices, `[n, pairs]` and
    `[v, pairs]`: a pair of another tile has a column of zeros in one of them.
    """
    query_tile = tiling.query_tile()
    query_base, row_base = query_tile * tiling.n, tiling.row_base()

    def one_chunk(chunk: Array, carry: None) -> None:
        copies = [pltpu.make_async_copy(source.at[chunk], target, arrived.at[number])
                  for number, (source, target) in enumerate(
                      ((refs.rows, row_chunk), (refs.queries, query_chunk)))]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()
        hit = matmul(_one_hot(query_chunk[...], query_base, tiling.n),
                     _one_hot(row_chunk[...], row_base, tiling.v), (1, 1))
        tile[...] = jnp.where(hit > 0.0, fill, tile[...])
        return carry

    first = refs.spans[0, 0, query_tile]
    last = refs.spans[0, 0, query_tile + refs.spans.shape[2] // 2]
    jax.lax.fori_loop(first, last, one_chunk, None)


def _one_hot(ids: Array, base: Array, size: int) -> Array:
    """bf16 `[size, CHUNK]`: 1 where base + row = id."""
    row = jax.lax.broadcasted_iota(jnp.int32, (size, CHUNK), 0) + base
    return jnp.where(row == ids, 1.0, 0.0).astype(jnp.bfloat16)


