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

from ..compat import vary_like
from ..primitives import Scores
from .compat import load_with_layout, plain
from .tiles import (
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
    turn,
    zeros,
)


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
    # 2^(x - inf) of a query that pads is 0, whatever the bias.
    return Prepared(rule, labels, pad(lse.astype(jnp.float32) * LOG2E, jnp.inf),
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
    if rule.bias is not None:
        operands.append(rule.bias)
        # Whole tiles: copies of vectors go by address and are not clipped like those of matrices.
        out_type.append(jax.ShapeDtypeStruct((pl.cdiv(rows, BLOCK) * BLOCK,), jnp.float32))
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
    return results[0], results[1][:rows] if with_bias else None


class _Inputs(NamedTuple):
    items: Ref
    queries: Ref
    lse2: Ref
    weight: Ref
    labels: Ref
    label_weight: Ref
    starts: Ref
    hit_tiles: Ref
    factors: Ref
    limits: Ref
    bias: Ref | None = None


class _Outputs(NamedTuple):
    items: Ref
    bias: Ref | None = None


class _Buffers(NamedTuple):
    """Shared memory; the first axis is a warpgroup, or a slot of the ring."""

    items: Ref
    bias: Ref | None
    queries: Ref
    lse2: Ref
    weight: Ref
    out: Ref
    factors: Ref | None  # only for the interpreter, see `add_product`


class _Barriers(NamedTuple):
    items: Ref
    bias: Ref | None
    queries: Ref
    lse2: Ref
    weight: Ref
    free: Ref
    schedule: Ref | None


def _body(*refs: Ref, tiles: Tiles, dim: int, dtype: Any, with_bias: bool, staged: bool,
          **static: Any) -> None:
    """Allocate shared memory and barriers, then run the roles."""
    count = 11 if with_bias else 10
    inputs, outs = _Inputs(*refs[:count]), _Outputs(*refs[count:])
    tile, stages = tiles.grad, tiles.grad_stages
    own = plgpu.Barrier(num_barriers=WARPGROUPS)
    full = plgpu.Barrier(num_barriers=stages)
    pl.run_scoped(
        functools.partial(_roles, inputs, outs, tile=tile, stages=stages, **static),
        _Buffers(
            items=shared((WARPGROUPS, ROWS, dim), dtype),
            bias=plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32) if with_bias else None,
            queries=shared((stages, tile, dim), dtype),
            lse2=plgpu.SMEM((stages, tile), jnp.float32),
            weight=plgpu.SMEM((stages, tile), jnp.float32),
            out=shared((WARPGROUPS, ROWS, out_columns(dim)), jnp.float32),
            factors=shared((WARPGROUPS, ROWS, tile), dtype) if staged else None),
        _Barriers(
            items=own, bias=own if with_bias else None, queries=full, lse2=full, weight=full,
            free=plgpu.Barrier(num_barriers=stages, num_arrivals=WARPGROUPS),
            schedule=plgpu.Barrier(num_arrivals=WARPGROUPS) if tiles.turns else None),
        collective_axes="wg",
    )


def _roles(ins: _Inputs, outs: _Outputs, buffers: _Buffers, full: _Barriers, *, tile: int,
           stages: int, steps: int, softcap: float | None) -> None:
    block, wg = lax.axis_index("block"), lax.axis_index("wg")

    @pl.when(wg == WARPGROUPS)
    def _memory() -> None:
        plgpu.set_max_registers(40, action="decrease")

        def copy(step: Any, slot: Any) -> None:
            at = pl.ds(step * tile, tile)
            for source, buffer, barrier in (
                    (ins.queries, buffers.queries, full.queries),
                    (ins.lse2, buffers.lse2, full.lse2),
                    (ins.weight, buffers.weight, full.weight)):
                plgpu.copy_gmem_to_smem(source.at[at], buffer.at[slot], barrier.at[slot])

        ring(steps, stages, full.free, copy)

    @pl.when(wg < WARPGROUPS)
    def _compute() -> None:
        plgpu.set_max_registers(232, action="increase")
        group = ins.limits[1] + block
        base = group * BLOCK + wg * ROWS
        own_items = buffers.items.at[wg]
        # Rows past the end: TMA reads zeros, and does not write their gradient.
        plgpu.copy_gmem_to_smem(ins.items.at[pl.ds(base, ROWS)], own_items, full.items.at[wg])
        biases = None
        if ins.bias is not None and buffers.bias is not None and full.bias is not None:
            plgpu.copy_gmem_to_smem(ins.bias.at[pl.ds(base, ROWS)], buffers.bias.at[wg],
                                    full.bias.at[wg])
            plgpu.barrier_wait(full.bias.at[wg])
            biases = load_with_layout(buffers.bias.at[wg], BY_ROW)
        plgpu.barrier_wait(full.items.at[wg])
        hits_end = ins.starts[group + 1]
        shape, width = (ROWS, tile), (ROWS, buffers.items.shape[-1])

        def next_hit(at: Array) -> Array:
            # Position N holds a sentinel, so that `at` is always inside.
            return jnp.where(at < hits_end, ins.hit_tiles[at], jnp.int32(NEVER))

        def step(index: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            total, bias_total, hit_at, hit = carry
            slot = lax.rem(index, jnp.int32(stages))
            rows = buffers.queries.at[slot]
            plgpu.barrier_wait(full.queries.at[slot])

            def products(ref: Ref) -> Array:
                plgpu.wgmma(ref, own_items, rows.transpose((1, 0)))
                turn(full.schedule)
                return ref[...]

            x = pl.run_scoped(products, plgpu.ACC(shape, jnp.float32))
            x, unit, slope = tile_scores(
                x, ins.factors, None if biases is None else across(biases, shape, 0), softcap)
            plgpu.barrier_wait(full.lse2.at[slot])
            normaliser = load_with_layout(buffers.lse2.at[slot], BY_COLUMN)
            c = jnp.exp2(times(x, unit) - across(normaliser, shape, 1))
            plgpu.barrier_wait(full.weight.at[slot])
            c = c * across(load_with_layout(buffers.weight.at[slot], BY_COLUMN), shape, 1)
            if slope is not None:
                c = c * slope

            def special(c: Array, at: Array) -> tuple[Array, Array, Array]:
                """The label has a coefficient of its own."""
                row = plgpu.broadcasted_iota(
                    jnp.int32, shape, 0, layout=plgpu.Layout.WGMMA) + base
                here = pl.ds(index * tile, tile)
                label = load_with_layout(ins.labels.at[here], BY_COLUMN, optimized=False)
                own = load_with_layout(ins.label_weight.at[here], BY_COLUMN, optimized=False)
                c = jnp.where(row == across(label, shape, 1), across(own, shape, 1), c)
                return c, at + 1, next_hit(at + 1)

            c, hit_at, hit = lax.cond(
                hit == index, special, lambda c, at: (c, at, hit), c, hit_at)
            if bias_total is not None:
                bias_total = bias_total + jnp.sum(c, axis=1)
            turn(full.schedule)
            total = add_product(
                total, c, rows, None if buffers.factors is None else buffers.factors.at[wg])
            plgpu.barrier_arrive(full.free.at[slot])
            return total, bias_total, hit_at, hit

        start = plain(ins.starts[group])
        carry = (zeros(width, plgpu.Layout.WGMMA),
                 None if outs.bias is None else zeros((ROWS,), BY_ROW), start, next_hit(start))
        pl.when(wg == 1)(lambda: turn(full.schedule))
        total, bias_total, _, _ = lax.fori_loop(0, steps, step, carry)
        pl.when(wg == 0)(lambda: turn(full.schedule))

        row = plgpu.broadcasted_iota(
            jnp.int32, width, 0, layout=plgpu.Layout.WGMMA) + base
        total = jnp.where(row < ins.limits[0], total * ins.factors[1], 0.0)
        if biases is not None:
            total = jnp.where(across(biases, width, 0) == -jnp.inf, 0.0, total)
        place = pl.ds(block * BLOCK + wg * ROWS, ROWS)
        if outs.bias is not None and buffers.bias is not None:
            row = plgpu.layout_cast(lax.iota(jnp.int32, ROWS), BY_ROW) + base
            counts = (row < ins.limits[0]) & (biases != -jnp.inf)
            buffers.bias.at[wg][...] = jnp.where(counts, bias_total, 0.0)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(buffers.bias.at[wg], outs.bias.at[place])
        store_matrix(total, buffers.out.at[wg], outs.items.at[place])
        plgpu.wait_smem_to_gmem(0)
