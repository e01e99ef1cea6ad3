"""K2 on TPU: the finished gradient of one tile of rows.

The grid keeps a tile of rows and streams the queries past it, so that the tile's gradient is
complete in VMEM before it leaves: nothing is accumulated in HBM.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..primitives import Array, Scores
from .tiles import (
    Head,
    Tiling,
    are_items,
    choose_tiling,
    cost,
    head,
    local_rows,
    mask_padding,
    matmul,
    only_items,
    operand_tiles,
    pad_queries,
    query_bytes,
    row_bytes,
    score_tile,
    stream,
    when_label_here,
)


class Known(NamedTuple):
    """What the second pass knows of each query, and in the kernel the refs to its blocks."""

    targets: Any  # int32 [N, 1], local row of the label or -1
    numbers: Any  # f32 [N, 3]: lse, weight, label_weight


class GradOut(NamedTuple):
    """items: f32 `[V, d]` or `[d, V]`; bias: f32 `[1, V]` or None."""

    items: Any
    bias: Any


def tiling_of(queries: int, rows: int, dim: int, query_size: int, item_size: int,
              budget: int, *, turned: int = 0, state: int = 0) -> Tiling:
    """Tiles of this fold. An epilogue has `turned` f32 rows `[v, d]` and `state` bytes a row."""
    return choose_tiling(
        queries, rows, dim, query_bytes(dim, query_size, columns=2),
        row_bytes(rows, dim, item_size, 4, stored=2, turned=turned) + state, budget=budget,
        rows_outer=True)


def known(targets: Array, lse: Array, weight: Array, label_weight: Array, rows: int,
          scores: Scores, tiling: Tiling) -> tuple[Known, Known]:
    """Operands and specs of `Known`; a padded query has lse = inf and counts for nothing."""
    numbers = [pad_queries(x.astype(jnp.float32), tiling, fill)
               for x, fill in ((lse, jnp.inf), (weight, 0.0), (label_weight, 0.0))]
    operands = Known(pad_queries(local_rows(targets, rows, scores), tiling, -1),
                     jnp.concatenate(numbers, axis=1))
    return operands, Known(tiling.query_spec(1), tiling.query_spec(3))


def item_grad(queries: Array, items: Array, targets: Array, lse: Array, weight: Array,
              label_weight: Array, scores: Scores, *, budget: int, interpret: Any
              ) -> tuple[Array, Array | None]:
    """See `primitives.ItemGrad`."""
    rows, dim = items.shape
    tiling = tiling_of(queries.shape[0], rows, dim, queries.dtype.itemsize,
                       items.dtype.itemsize, budget)
    common, specs = head(queries, items, scores, tiling)
    second, second_specs = known(targets, lse, weight, label_weight, rows, scores, tiling)
    with_bias = scores.bias is not None
    (out,) = stream(
        functools.partial(_kernel, tiling=tiling, softcap=scores.softcap),
        (common, second), (specs, second_specs),
        (GradOut(jax.ShapeDtypeStruct(common.items.shape, jnp.float32),
                 jax.ShapeDtypeStruct((1, rows), jnp.float32) if with_bias else None),),
        (GradOut(tiling.table_spec(dim), tiling.lane_spec() if with_bias else None),),
        grid=tiling.grid(second.targets.shape[0], rows),
        scratch={"tile": pltpu.VMEM((tiling.n, tiling.v), jnp.float32)},
        name="catalogue_softmax_item_grad", interpret=interpret,
        cost=cost(queries, items, 2, 1, 1 + 4 / items.dtype.itemsize),
    )
    return tiling.stored(out.items), out.bias[0] if with_bias else None


def accumulate(refs: Head, second: Known, grad: GradOut, tile: Any, tiling: Tiling,
               softcap: float | None) -> None:
    """Add this tile of queries to `grad`; with the last one it is complete."""
    step, last, base = pl.program_id(1), pl.num_programs(1) - 1, tiling.row_base()

    @pl.when(step == 0)
    def _start() -> None:
        grad.items[...] = jnp.zeros_like(grad.items)
        if grad.bias is not None:
            grad.bias[...] = jnp.zeros_like(grad.bias)

    queries, table = operand_tiles(refs)
    scored, slope = score_tile(refs, queries, table, base, tiling, softcap)
    factors = jnp.exp(scored - second.numbers[:, 0:1]) * second.numbers[:, 1:2]
    tile[...] = factors if slope is None else factors * slope

    def put_label_in(here: Array, has: Array) -> None:
        tile[...] = jnp.where(here, second.numbers[:, 2:3], tile[...])

    when_label_here(second.targets, tile, base, put_label_in)
    mask_padding(refs, tile, base, 0.0)

    if grad.bias is not None:
        grad.bias[...] += jnp.sum(tile[...], axis=0, keepdims=True)
    factors = tile[...].astype(queries.dtype)
    grad.items[...] += (matmul(queries, factors, (0, 0)) if tiling.features_first
                        else matmul(factors, queries, (0, 0)))

    @pl.when(step == last)
    def _scale() -> None:
        grad.items[...] = only_items(refs, grad.items[...] * refs.scale[0], base, tiling)
        if grad.bias is not None:
            grad.bias[...] = jnp.where(are_items(refs, base), grad.bias[...], 0.0)


def _kernel(refs: Head, second: Known, out: GradOut, *, tile: Any, tiling: Tiling,
            softcap: float | None) -> None:
    accumulate(refs, second, out, tile, tiling, softcap)
