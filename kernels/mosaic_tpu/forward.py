"""K1 on TPU: one pass over the table gives m, l-, s_y and (for training) O-.

Attention's forward pass with keys and values both the table (Dao et al., 2022), the label left
out of the sums and carried apart. The output blocks of a tile of queries stay in VMEM while
the table streams by, so they are the accumulators; each leaves for HBM once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..primitives import Array, Partials, Scores
from .tiles import (
    Head,
    Tiling,
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


class _Out(NamedTuple):
    """Blocks `[n, 1]`, and `[n, d]` or None; as in `Partials`."""

    m: Any
    l: Any  # noqa: E741
    s_y: Any
    o: Any


def tiling_of(queries: int, rows: int, dim: int, query_size: int, item_size: int,
              budget: int) -> Tiling:
    """Tiles of this fold; sizes in bytes of an entry."""
    return choose_tiling(
        queries, rows, dim, query_bytes(dim, query_size, 4, columns=4),
        row_bytes(rows, dim, item_size, stored=2), budget=budget)


def forward(queries: Array, items: Array, targets: Array, scores: Scores, *,
            with_expected: bool, budget: int, interpret: Any) -> Partials:
    """See `primitives.Forward`."""
    count, (rows, dim) = queries.shape[0], items.shape
    tiling = tiling_of(count, rows, dim, queries.dtype.itemsize, items.dtype.itemsize, budget)
    common, specs = head(queries, items, scores, tiling)
    labels = pad_queries(local_rows(targets, rows, scores), tiling, -1)
    padded = labels.shape[0]
    column, wide = (jax.ShapeDtypeStruct((padded, width), jnp.float32) for width in (1, dim))
    narrow = tiling.query_spec(1)
    tiles = tiling.grid(padded, rows)
    (out,) = stream(
        functools.partial(_kernel, tiling=tiling, softcap=scores.softcap),
        (common, labels), (specs, narrow),
        (_Out(column, column, column, wide if with_expected else None),),
        (_Out(narrow, narrow, narrow, tiling.query_spec(dim) if with_expected else None),),
        grid=tiles, scratch={"tile": pltpu.VMEM((tiling.n, tiling.v), jnp.float32)},
        name="catalogue_softmax_forward", interpret=interpret,
        cost=cost(queries, items, 2 if with_expected else 1, 1, tiles[0]),
    )
    return Partials(out.m[:count, 0], out.l[:count, 0],
                    out.o[:count] if with_expected else None, out.s_y[:count, 0])


def _kernel(refs: Head, targets: Any, out: _Out, *, tile: Any, tiling: Tiling,
            softcap: float | None) -> None:
    step, last, base = pl.program_id(1), pl.num_programs(1) - 1, tiling.row_base()

    @pl.when(step == 0)
    def _start() -> None:
        out.m[...] = jnp.full_like(out.m, -jnp.inf)
        out.l[...] = jnp.zeros_like(out.l)
        out.s_y[...] = jnp.full_like(out.s_y, -jnp.inf)
        if out.o is not None:
            out.o[...] = jnp.zeros_like(out.o)

    queries, table = operand_tiles(refs)
    table = only_items(refs, table, base, tiling)  # 0 * NaN is NaN
    raw, slope = score_tile(refs, queries, table, base, tiling, softcap)
    tile[...] = raw
    mask_padding(refs, tile, base, -jnp.inf)

    def take_label_out(here: Array, has: Array) -> None:
        label_score = jnp.sum(jnp.where(here, tile[...], 0.0), axis=1, keepdims=True)
        out.s_y[...] = jnp.where(has, label_score, out.s_y[...])
        tile[...] = jnp.where(here, -jnp.inf, tile[...])

    when_label_here(targets, tile, base, take_label_out)

    masked = tile[...]
    before = out.m[...]
    after = jnp.maximum(before, jnp.max(masked, axis=1, keepdims=True))
    # All -inf so far: subtract 0, so that exp gives 0 and not NaN.
    finite = jnp.where(after == -jnp.inf, 0.0, after)
    shrink = jnp.exp(before - finite)
    weights = jnp.exp(masked - finite)
    out.m[...] = after
    out.l[...] = out.l[...] * shrink + jnp.sum(weights, axis=1, keepdims=True)
    if out.o is not None:
        if slope is not None:
            # The slope of what is no item is NaN where the query is.
            weights = jnp.where(weights == 0.0, 0.0, weights * slope)
        out.o[...] = out.o[...] * shrink + matmul(
            weights.astype(table.dtype), table, (1, tiling.row_axis))

    @pl.when(step == last)
    def _finish() -> None:
        out.m[...] = jnp.where(out.m[...] == -jnp.inf, 0.0, out.m[...])
