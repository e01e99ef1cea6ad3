"""Ranks on TPU: rows that are not worse than a query's target, counted as the table streams by."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..primitives import Array, Excluded, Scores
from .excluded import Pairs, mask_pairs, pairs, scratch
from .gather import gather_rows
from .tiles import (
    Head,
    Tiling,
    choose_tiling,
    cost,
    head,
    local_rows,
    mask_padding,
    operand_tiles,
    pad_queries,
    query_bytes,
    round_up,
    row_bytes,
    score_tile,
    stream,
)


def _tiling(queries: Array, items: Array, budget: int) -> Tiling:
    rows, dim = items.shape
    return choose_tiling(
        queries.shape[0], rows, dim, query_bytes(dim, queries.dtype.itemsize, columns=3),
        row_bytes(rows, dim, items.dtype.itemsize, stored=1), budget=budget, square=True)


def label_scores(queries: Array, items: Array, targets: Array, scores: Scores, *, budget: int,
                 interpret: Any) -> Array:
    """See `primitives.LabelScores`.

    The label rows are gathered and scored in tiles of the shape that `rank_count` uses, of
    which only the entries (query, own label) are kept.
    """
    count, (rows, dim) = queries.shape[0], items.shape
    tiling = dataclasses.replace(_tiling(queries, items, budget), rows_outer=True)
    local = local_rows(targets, rows, scores)
    padded = round_up(count, tiling.v)
    picked = jnp.pad(jnp.maximum(local, 0), (0, padded - count))
    bias = None if scores.bias is None else scores.bias[picked]
    # Every gathered row counts as an item here; whether it is one is decided below.
    rule = Scores(scores.scale, bias, padded, 0, scores.softcap)
    label_rows = gather_rows(items, picked, interpret=interpret)
    common, specs = head(jnp.pad(queries, ((0, padded - count), (0, 0))), label_rows, rule,
                         tiling)
    share = tiling.v // tiling.n

    def own(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((tiling.n, width), lambda j, i: (j * share + i, 0))

    (out,) = stream(
        functools.partial(_label_kernel, tiling=tiling, softcap=scores.softcap),
        (common,), (specs._replace(queries=own(dim)),),
        (jax.ShapeDtypeStruct((padded, 1), jnp.float32),), (own(1),),
        grid=(padded // tiling.v, share), scratch={}, name="catalogue_label_scores",
        interpret=interpret)
    here = (local >= 0) & scores.is_item(jnp.maximum(local, 0))
    return jnp.where(here, out[:count, 0], -jnp.inf)


def rank_count(queries: Array, items: Array, s_y: Array, excluded: Excluded, scores: Scores, *,
               budget: int, interpret: Any) -> Array:
    """See `primitives.RankCount`."""
    count, rows = queries.shape[0], items.shape[0]
    tiling = _tiling(queries, items, budget)
    common, specs = head(queries, items, scores, tiling)
    length = common.queries.shape[0]
    listed, listed_specs = pairs(excluded, rows, length, scores, tiling)
    grid = tiling.grid(length, rows)
    column = tiling.query_spec(1)
    (out,) = stream(
        functools.partial(_rank_kernel, tiling=tiling, softcap=scores.softcap),
        (common, pad_queries(s_y.astype(jnp.float32), tiling), listed),
        (specs, column, listed_specs), (jax.ShapeDtypeStruct((length, 1), jnp.int32),),
        (column,), grid=grid,
        scratch={"tile": pltpu.VMEM((tiling.n, tiling.v), jnp.float32)} | scratch(),
        name="catalogue_rank_count", interpret=interpret,
        cost=cost(queries, items, 1, 0, grid[0]))
    return out[:count, 0]


def _label_kernel(refs: Head, out: Any, *, tiling: Tiling, softcap: float | None) -> None:
    queries, table = operand_tiles(refs)
    scored, _ = score_tile(refs, queries, table, tiling.row_base(), tiling, softcap)
    query = jax.lax.broadcasted_iota(jnp.int32, scored.shape, 0) + tiling.query_tile() * tiling.n
    column = jax.lax.broadcasted_iota(jnp.int32, scored.shape, 1)
    out[...] = jnp.sum(jnp.where(query == column, scored, 0.0), axis=1, keepdims=True)


def _rank_kernel(refs: Head, s_y: Any, listed: Pairs, out: Any, *, tile: Any, tiling: Tiling,
                 softcap: float | None, **chunks: Any) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _start() -> None:
        out[...] = jnp.zeros_like(out)

    base = tiling.row_base()
    queries, table = operand_tiles(refs)
    scored, _ = score_tile(refs, queries, table, base, tiling, softcap)
    tile[...] = jnp.where(scored < s_y[...], 0.0, 1.0)
    mask_padding(refs, tile, base, 0.0)
    mask_pairs(listed, tile, tiling, 0.0, **chunks)
    out[...] += jnp.sum(tile[...], axis=1, keepdims=True).astype(jnp.int32)
