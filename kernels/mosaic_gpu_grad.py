"""K2 on Hopper: the gradient of each tile of rows, complete, from the known normaliser.

A block keeps 128 rows of the table in shared memory while all queries stream past, and adds up
their gradient in registers: no atomics, no second visit, and the same bits in every run.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from .compat import vary_like
from .mosaic_gpu_compat import load_with_layout
from .mosaic_gpu_tiles import (
    BLOCK,
    BY_COLUMN,
    BY_ROW,
    LOG2E,
    NEVER,
    ROWS,
    WARPGROUPS,
    Array,
    Hits,
    Ref,
    Rule,
    Tiles,
    across,
    add_product,
    choose_tiles,
    kernel_rule,
    label_hits,
    out_columns,
    ring,
    shared,
    store_matrix,
    tile_scores,
    times,
    zeros,
)
from .primitives import Scores


class Prepared(NamedTuple):
    """What all blocks of rows share; vectors over queries are padded to full tiles."""

    rule: Rule
    labels: Array  # int32 [P], row of the label, or -1
    lse2: Array  # f32 [P], times log2 e
    weight: Array  # f32 [P]
    label_weight: Array  # f32 [P]
    hits: Hits  # groups are tiles of BLOCK rows, tiles are tiles of queries


def prepare(queries: Array, items: Array, targets: Array, lse: Array, weight: Array,
            label_weight: Array, scores: Scores, tiles: Tiles) -> Prepared:
    """Pad and sort what depends on the queries alone: O(N d)."""
    count = queries.shape[0]
    padded = pl.cdiv(count, tiles.grad) * tiles.grad
    rule = kernel_rule(queries, items, scores, padded)

    def pad(vector: Array, value: float = 0) -> Array:
        return jnp.pad(vector, (0, padded - count), constant_values=value)

    local = targets.astype(jnp.int32) - jnp.asarray(scores.row_offset, jnp.int32)
    here = (local >= 0) & (local < rule.limits[0])
    labels = pad(jnp.where(here, local, -1), -1)
    groups = pl.cdiv(items.shape[0], BLOCK)
    hits = label_hits(jnp.where(labels >= 0, labels // BLOCK, groups),
                      jnp.arange(padded, dtype=jnp.int32) // tiles.grad, groups)
    return Prepared(rule, labels, pad(lse.astype(jnp.float32) * LOG2E),
                    pad(weight.astype(jnp.float32)), pad(label_weight.astype(jnp.float32)), hits)


def item_grad(queries: Array, items: Array, targets: Array, lse: Array, weight: Array,
              label_weight: Array, scores: Scores, *, tiles: Tiles | None = None,
              interpret: Any = None) -> tuple[Array, Array | None]:
    """`primitives.ItemGrad`. queries `[N, d]`, items `[V, d]`, both bf16; see `refuses`.

    tiles: tile sizes, for tuning. interpret: `plgpu.InterpretGPUParams`, to run without a GPU.
    """
    tiles = tiles or choose_tiles(items.shape[1])
    prepared = prepare(queries, items, targets, lse, weight, label_weight, scores, tiles)
    return rows_grad(items, prepared, 0, items.shape[0], tiles, interpret)


def rows_grad(items: Array, prepared: Prepared, first_block: Array | int, rows: int,
              tiles: Tiles, interpret: Any = None) -> tuple[Array, Array | None]:
    """Gradient f32 `[rows, d]` of `rows` rows from row BLOCK * first_block on, and of their bias.

    items: the whole table `[V, d]`; nothing of it is copied.
    """
    dim = items.shape[1]
    rule = prepared.rule
    with_bias = rule.bias is not None
    limits = jnp.stack([rule.limits[0], jnp.asarray(first_block, jnp.int32)])
    operands = [items, rule.queries, prepared.lse2, prepared.weight, prepared.labels,
                prepared.label_weight, prepared.hits.starts, prepared.hits.tiles, rule.factors,
                limits]
    out_type = [jax.ShapeDtypeStruct((rows, dim), jnp.float32)]
    if with_bias:
        operands.append(rule.bias)
        out_type.append(jax.ShapeDtypeStruct((rows,), jnp.float32))
    body = functools.partial(
        _body, tiles=tiles, dim=dim, dtype=items.dtype, with_bias=with_bias,
        steps=rule.queries.shape[0] // tiles.grad, softcap=rule.softcap,
        staged=interpret is not None)
    results = plgpu.kernel(
        body, out_type=out_type, grid=(pl.cdiv(rows, BLOCK),), grid_names=("block",),
        num_threads=WARPGROUPS + 1, thread_name="wg",
        kernel_name="catalogue_softmax_item_grad",
        compiler_params=plgpu.CompilerParams(approx_math=True), interpret=interpret,
    )(*operands)
    results = [vary_like(result, rule.queries, items) for result in results]
    return results[0], results[1] if with_bias else None


def _body(*refs: Ref, tiles: Tiles, dim: int, dtype: Any, with_bias: bool, staged: bool,
          **static: Any) -> None:
    """Allocate shared memory and barriers, then run the roles."""
    inputs = 11 if with_bias else 10
    ins, outs = list(refs[:inputs]), list(refs[inputs:])
    stages = tiles.grad_stages
    own = plgpu.Barrier(num_barriers=WARPGROUPS)
    full = plgpu.Barrier(num_barriers=stages)
    per_query = plgpu.SMEM((stages, tiles.grad), jnp.float32)
    per_row = plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32)
    pl.run_scoped(
        functools.partial(
            _roles, *ins[:10], ins[10] if with_bias else None, outs[0],
            outs[1] if with_bias else None, tile=tiles.grad, stages=stages, **static),
        shared((WARPGROUPS, ROWS, dim), dtype),
        per_row if with_bias else None,
        shared((stages, tiles.grad, dim), dtype),
        per_query,
        per_query,
        shared((WARPGROUPS, ROWS, out_columns(dim)), jnp.float32),
        shared((WARPGROUPS, ROWS, tiles.grad), dtype) if staged else None,
        (own, own if with_bias else None, full, full, full,
         plgpu.Barrier(num_barriers=stages, num_arrivals=WARPGROUPS),
         plgpu.Barrier(num_arrivals=WARPGROUPS)),
        collective_axes="wg",
    )


def _roles(items: Ref, queries: Ref, lse2: Ref, weight: Ref, labels: Ref, label_weight: Ref,
           starts: Ref, hit_tiles: Ref, factors: Ref, limits: Ref, bias: Ref | None, out: Ref,
           bias_out: Ref | None, item_buffer: Ref, bias_buffer: Ref | None, query_buffer: Ref,
           lse_buffer: Ref, weight_buffer: Ref, out_staging: Ref, staging: Ref | None,
           barriers: tuple[Ref, ...], *, tile: int, stages: int, steps: int,
           softcap: float | None) -> None:
    items_full, bias_full, queries_full, lse_full, weight_full, free, schedule = barriers
    block, wg = lax.axis_index("block"), lax.axis_index("wg")

    @pl.when(wg == WARPGROUPS)
    def _memory() -> None:
        plgpu.set_max_registers(40, action="decrease")

        def copy(step: Any, slot: Any) -> None:
            at = pl.ds(step * tile, tile)
            plgpu.copy_gmem_to_smem(queries.at[at], query_buffer.at[slot], queries_full.at[slot])
            plgpu.copy_gmem_to_smem(lse2.at[at], lse_buffer.at[slot], lse_full.at[slot])
            plgpu.copy_gmem_to_smem(weight.at[at], weight_buffer.at[slot], weight_full.at[slot])

        ring(steps, stages, free, copy)

    def turn() -> None:
        plgpu.barrier_arrive(schedule)
        plgpu.barrier_wait(schedule)

    @pl.when(wg < WARPGROUPS)
    def _compute() -> None:
        plgpu.set_max_registers(232, action="increase")
        group = limits[1] + block
        base = group * BLOCK + wg * ROWS
        own_items = item_buffer.at[wg]
        # Rows past the end: TMA reads zeros, and does not write their gradient.
        plgpu.copy_gmem_to_smem(items.at[pl.ds(base, ROWS)], own_items, items_full.at[wg])
        biases = None
        if bias is not None and bias_buffer is not None:
            plgpu.copy_gmem_to_smem(bias.at[pl.ds(base, ROWS)], bias_buffer.at[wg],
                                    bias_full.at[wg])
            plgpu.barrier_wait(bias_full.at[wg])
            biases = load_with_layout(bias_buffer.at[wg], BY_ROW)
        plgpu.barrier_wait(items_full.at[wg])
        hits_end = starts[group + 1]
        shape = (ROWS, tile)

        def next_hit(at: Array) -> Array:
            # Position N holds a sentinel, so that `at` is always inside.
            return jnp.where(at < hits_end, hit_tiles[at], jnp.int32(NEVER))

        def step(index: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            total, bias_total, hit_at, hit = carry
            slot = lax.rem(index, jnp.int32(stages))
            rows = query_buffer.at[slot]
            plgpu.barrier_wait(queries_full.at[slot])

            def products(ref: Ref) -> Array:
                plgpu.wgmma(ref, own_items, rows.transpose((1, 0)))
                turn()
                return ref[...]

            x = pl.run_scoped(products, plgpu.ACC(shape, jnp.float32))
            x, unit, slope = tile_scores(
                x, factors, None if biases is None else across(biases, shape, 0), softcap)
            plgpu.barrier_wait(lse_full.at[slot])
            normaliser = load_with_layout(lse_buffer.at[slot], BY_COLUMN)
            c = jnp.exp2(times(x, unit) - across(normaliser, shape, 1))
            plgpu.barrier_wait(weight_full.at[slot])
            c = c * across(load_with_layout(weight_buffer.at[slot], BY_COLUMN), shape, 1)
            if slope is not None:
                c = c * slope

            def special(c: Array, at: Array) -> tuple[Array, Array, Array]:
                """The label has a coefficient of its own."""
                row = plgpu.broadcasted_iota(
                    jnp.int32, shape, 0, layout=plgpu.Layout.WGMMA) + base
                here = pl.ds(index * tile, tile)
                label = load_with_layout(labels.at[here], BY_COLUMN, optimized=False)
                own = load_with_layout(label_weight.at[here], BY_COLUMN, optimized=False)
                c = jnp.where(row == across(label, shape, 1), across(own, shape, 1), c)
                return c, at + 1, next_hit(at + 1)

            c, hit_at, hit = lax.cond(
                hit == index, special, lambda c, at: (c, at, hit), c, hit_at)
            if bias_total is not None:
                bias_total = bias_total + jnp.sum(c, axis=1)
            turn()
            total = add_product(total, c, rows, None if staging is None else staging.at[wg])
            plgpu.barrier_arrive(free.at[slot])
            return total, bias_total, hit_at, hit

        start = starts[group]
        carry = (zeros(item_buffer.shape[1:], plgpu.Layout.WGMMA),
                 None if bias_out is None else zeros((ROWS,), BY_ROW), start, next_hit(start))
        pl.when(wg == 1)(turn)
        total, bias_total, _, _ = lax.fori_loop(0, steps, step, carry)
        pl.when(wg == 0)(turn)

        row = plgpu.broadcasted_iota(
            jnp.int32, total.shape, 0, layout=plgpu.Layout.WGMMA) + base
        total = jnp.where(row < limits[0], total * factors[1], 0.0)
        place = pl.ds(block * BLOCK + wg * ROWS, ROWS)
        if bias_total is not None and bias_out is not None and bias_buffer is not None:
            row = plgpu.layout_cast(lax.iota(jnp.int32, ROWS), BY_ROW) + base
            bias_buffer.at[wg][...] = jnp.where(row < limits[0], bias_total, 0.0)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(bias_buffer.at[wg], bias_out.at[place])
        store_matrix(total, out_staging.at[wg], out.at[place])
        plgpu.wait_smem_to_gmem(0)
