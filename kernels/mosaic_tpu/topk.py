"""Top k on TPU: the k best rows of each query, kept in VMEM while the table streams by.

After the first tiles few rows beat the k-th best so far, so a tile is searched only while one
of its scores does: the largest of each query's row replaces that query's worst entry, again
and again. Exact, whatever the order of the scores; a sorted table costs the most.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..primitives import Array, Excluded, Scores
from .excluded import mask_pairs, pairs, scratch
from .tiles import (
    LANES,
    Head,
    Tiling,
    choose_tiling,
    cost,
    head,
    lane_ids,
    mask_padding,
    operand_tiles,
    query_bytes,
    round_up,
    row_bytes,
    score_tile,
    stream,
)

LAST = jnp.iinfo(jnp.int32).max


def top_k(queries: Array, items: Array, k: int, excluded: Excluded | None, scores: Scores, *,
          budget: int, interpret: Any) -> tuple[Array, Array]:
    """See `primitives.TopK`."""
    count, (rows, dim) = queries.shape[0], items.shape
    width = round_up(k, LANES)
    tiling = choose_tiling(
        count, rows, dim, query_bytes(dim, queries.dtype.itemsize, columns=8 * width // LANES),
        row_bytes(rows, dim, items.dtype.itemsize, stored=1), budget=budget)
    common, specs = head(queries, items, scores, tiling)
    length = common.queries.shape[0]
    grid = tiling.grid(length, rows)
    operands: tuple[Any, ...] = (common,)
    in_specs: tuple[Any, ...] = (specs,)
    buffers = {"tile": pltpu.VMEM((tiling.n, tiling.v), jnp.float32),
               "best": pltpu.VMEM((tiling.n, width), jnp.float32),
               "ids": pltpu.VMEM((tiling.n, width), jnp.int32)}
    if excluded is not None:
        listed, listed_specs = pairs(excluded, rows, length, scores, tiling)
        operands, in_specs = (common, listed), (specs, listed_specs)
        buffers |= scratch()
    best, ids = stream(
        functools.partial(_kernel, k=k, tiling=tiling, softcap=scores.softcap,
                          with_excluded=excluded is not None),
        operands, in_specs,
        tuple(jax.ShapeDtypeStruct((length, width), dtype) for dtype in (jnp.float32, jnp.int32)),
        (tiling.query_spec(width),) * 2, grid=grid, scratch=buffers, name="catalogue_top_k",
        interpret=interpret, cost=cost(queries, items, 1, 0, grid[0]))
    best, ids = best[:count, :k], ids[:count, :k]
    return best, jnp.where(ids < 0, -1, ids + scores.row_offset)


def _kernel(refs: Head, *rest: Any, k: int, tile: Any, best: Any, ids: Any, tiling: Tiling,
            softcap: float | None, with_excluded: bool, **chunks: Any) -> None:
    best_out, ids_out = rest[-2:]
    base, last = tiling.row_base(), pl.num_programs(1) - 1
    lane = jax.lax.broadcasted_iota(jnp.int32, best.shape, 1)

    @pl.when(pl.program_id(1) == 0)
    def _start() -> None:
        # Lanes past k are never the worst; empty entries are told apart by distinct ids.
        best[...] = jnp.where(lane < k, -jnp.inf, jnp.inf)
        ids[...] = -1 - lane

    queries, table = operand_tiles(refs)
    scored, _ = score_tile(refs, queries, table, base, tiling, softcap)
    tile[...] = jnp.where(scored == scored, scored, -jnp.inf)
    mask_padding(refs, tile, base, -jnp.inf)
    if with_excluded:
        mask_pairs(rest[0], tile, tiling, -jnp.inf, **chunks)

    def beaten() -> Array:
        """Whether a score of the tile belongs among the best of its query."""
        top = jnp.max(tile[...], axis=1, keepdims=True)
        worst = jnp.min(best[...], axis=1, keepdims=True)
        return jnp.max(jnp.where(top > worst, 1.0, 0.0)) > 0.0

    def exchange(_: Array) -> Array:
        """Each query's largest score, lowest id first, for its worst entry, highest id first."""
        scored, kept = tile[...], best[...]
        columns = lane_ids(scored.shape, base)
        top = jnp.max(scored, axis=1, keepdims=True)
        row = jnp.min(jnp.where(scored == top, columns, LAST), axis=1, keepdims=True)
        worst = jnp.min(kept, axis=1, keepdims=True)
        out = jnp.max(jnp.where(kept == worst, ids[...], -LAST), axis=1, keepdims=True)
        here = (ids[...] == out) & (kept == worst) & (top > worst)
        best[...] = jnp.where(here, top, kept)
        ids[...] = jnp.where(here, row, ids[...])
        tile[...] = jnp.where(columns == row, -jnp.inf, scored)
        return beaten()

    jax.lax.while_loop(lambda more: more, exchange, beaten())

    @pl.when(pl.program_id(1) == last)
    def _sort() -> None:
        def place(number: Array, carry: None) -> None:
            kept = jnp.where(lane < k, best[...], -jnp.inf)
            top = jnp.max(kept, axis=1, keepdims=True)
            row = jnp.min(jnp.where(kept == top, ids[...], LAST), axis=1, keepdims=True)
            here = lane == number
            best_out[...] = jnp.where(here, top, best_out[...])
            ids_out[...] = jnp.where(here, jnp.where(top == -jnp.inf, -1, row), ids_out[...])
            best[...] = jnp.where(ids[...] == row, -jnp.inf, best[...])
            return carry

        jax.lax.fori_loop(0, k, place, None)
