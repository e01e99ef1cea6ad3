"""K1 on Hopper: one pass over the table gives m, l-, s_y and (for training) O-.

Attention's forward pass with keys and values both the item table, so that a tile is loaded once
for both products. Blocks of queries times splits of the table fill the processors; the splits
are merged outside. Blocks that run together sweep the same split, and share it in the L2 cache.
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
from ..primitives import Partials, Scores
from .compat import load_with_layout, plain
from .tiles import (
    BLOCK,
    BY_COLUMN,
    BY_ROW,
    FLOOR,
    LN2,
    NEVER,
    ROWS,
    WARPGROUPS,
    Array,
    Ref,
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


def choose_splits(blocks: int, tiles: int, processors: int) -> int:
    """Into how many parts to cut the table: the least time of all waves, in tiles.

    A block costs its tiles and about eight more to start and to finish.
    """
    most = max(1, min(tiles, 4 * processors // blocks))
    return min(range(1, most + 1),
               key=lambda n: pl.cdiv(blocks * n, processors) * (pl.cdiv(tiles, n) + 8))


def forward(queries: Array, items: Array, targets: Array, scores: Scores, *,
            with_expected: bool, tiles: Tiles | None = None, interpret: Any = None) -> Partials:
    """`primitives.Forward`. queries `[N, d]`, items `[V, d]`, both bf16; see `refuses`.

    tiles: tile sizes, for tuning. interpret: `plgpu.InterpretGPUParams`, to run without a GPU.
    """
    count, dim = queries.shape
    rows = items.shape[0]
    tiles = tiles or choose_tiles(dim)
    blocks = pl.cdiv(count, BLOCK)
    padded = blocks * BLOCK
    steps_all = pl.cdiv(rows, tiles.forward)
    steps = pl.cdiv(steps_all, choose_splits(blocks, steps_all, tiles.processors))
    splits = pl.cdiv(steps_all, steps)
    rule = kernel_rule(queries, items, scores, padded)

    local = targets.astype(jnp.int32) - jnp.asarray(scores.row_offset, jnp.int32)
    here = (local >= 0) & (local < rule.limits[0])
    labels = jnp.pad(jnp.where(here, local, -1), (0, padded - count), constant_values=-1)
    tile = labels // tiles.forward
    # One list for each warpgroup and split.
    group = (jnp.arange(padded, dtype=jnp.int32) // ROWS) * splits + tile // steps
    groups = WARPGROUPS * blocks * splits
    hits = label_hits(jnp.where(labels >= 0, group, groups), tile, groups)

    per_query = jax.ShapeDtypeStruct((splits, padded), jnp.float32)
    out_type = [per_query] * 3
    if with_expected:
        out_type.append(jax.ShapeDtypeStruct((splits, padded, dim), jnp.float32))
    body = functools.partial(
        _body, tiles=tiles, dim=dim, dtype=items.dtype, steps=steps,
        splits=splits, with_bias=rule.bias is not None, with_expected=with_expected,
        softcap=rule.softcap, staged=interpret is not None)
    operands = [rule.queries, items, _last_tile(items, rule.limits[0], tiles.forward), labels,
                hits.starts, hits.tiles, rule.factors, rule.limits]
    if rule.bias is not None:
        operands.append(rule.bias)
    results = plgpu.kernel(
        body, out_type=out_type, grid=(splits, blocks), grid_names=("split", "block"),
        num_threads=WARPGROUPS + 1, thread_name="wg",
        kernel_name="catalogue_softmax_forward",
        compiler_params=plgpu.CompilerParams(approx_math=True), interpret=interpret,
    )(*operands)
    results = [vary_like(result, queries, items) for result in results]

    m = jnp.max(results[0], axis=0)
    shrink = jnp.exp2(results[0] - m)
    l_minus = jnp.sum(results[1] * shrink, axis=0)[:count]
    o_minus = None
    if with_expected:
        o_minus = jnp.sum(results[3] * shrink[:, :, None], axis=0)[:count]
    s_y = jnp.sum(results[2], axis=0)[:count] * LN2
    return Partials(m[:count] * LN2, l_minus, o_minus, jnp.where(here, s_y, -jnp.inf))


def _last_tile(items: Array, valid: Array, tile: int) -> Array:
    """`[tile, d]`: the tile in which the items end, 0 from row `valid` on.

    The rows that pad a table may hold NaN, and 0 * NaN is NaN. The kernel reads this tile in place
    of the table's, and none behind it, so that no tile has to be cleaned where it is used.
    """
    rows = valid // tile * tile + lax.iota(jnp.int32, tile)
    there = rows < valid
    return jnp.where(there[:, None], items[jnp.where(there, rows, 0)], 0)


class _Inputs(NamedTuple):
    queries: Ref
    items: Ref
    last_tile: Ref
    labels: Ref
    starts: Ref
    hit_tiles: Ref
    factors: Ref
    limits: Ref
    bias: Ref | None = None


class _Outputs(NamedTuple):
    m: Ref
    l_minus: Ref
    label_score: Ref
    expected: Ref | None = None


class _Buffers(NamedTuple):
    """Shared memory; the first axis is a warpgroup, or a slot of the ring."""

    queries: Ref
    labels: Ref
    items: Ref
    bias: Ref | None
    stats: Ref
    out: Ref | None
    factors: Ref | None  # only for the interpreter, see `add_product`


class _Barriers(NamedTuple):
    queries: Ref
    labels: Ref
    items: Ref
    bias: Ref | None
    free: Ref
    schedule: Ref | None


def _body(*refs: Ref, tiles: Tiles, dim: int, dtype: Any, with_bias: bool, with_expected: bool,
          staged: bool, **static: Any) -> None:
    """Allocate shared memory and barriers, then run the roles."""
    count = 9 if with_bias else 8
    inputs, outs = _Inputs(*refs[:count]), _Outputs(*refs[count:])
    tile, stages = tiles.forward, tiles.forward_stages
    own = plgpu.Barrier(num_barriers=WARPGROUPS)
    full = plgpu.Barrier(num_barriers=stages)
    roles = functools.partial(_roles, inputs, outs, tile=tile, stages=stages, **static)
    pl.run_scoped(
        roles,
        _Buffers(
            queries=shared((WARPGROUPS, ROWS, dim), dtype),
            labels=plgpu.SMEM((WARPGROUPS, ROWS), jnp.int32),
            items=shared((stages, tile, dim), dtype),
            bias=plgpu.SMEM((stages, tile), jnp.float32) if with_bias else None,
            stats=plgpu.SMEM((WARPGROUPS, 3, ROWS), jnp.float32),
            out=(shared((WARPGROUPS, ROWS, out_columns(dim)), jnp.float32)
                 if with_expected else None),
            factors=(shared((WARPGROUPS, ROWS, tile), dtype)
                     if staged and with_expected else None)),
        _Barriers(
            queries=own, labels=own, items=full, bias=full if with_bias else None,
            free=plgpu.Barrier(num_barriers=stages, num_arrivals=WARPGROUPS),
            schedule=plgpu.Barrier(num_arrivals=WARPGROUPS) if tiles.turns else None),
        collective_axes="wg",
    )


def _roles(ins: _Inputs, outs: _Outputs, buffers: _Buffers, full: _Barriers, *, tile: int,
           stages: int, steps: int, splits: int, softcap: float | None) -> None:
    split, block, wg = (lax.axis_index(name) for name in ("split", "block", "wg"))
    first = split * steps
    whole = lax.div(plain(ins.limits[0]), jnp.int32(tile))
    ends_inside = (plain(ins.limits[0]) > whole * tile).astype(jnp.int32)
    mine = jnp.clip(whole + ends_inside - first, 0, steps)

    @pl.when(wg == WARPGROUPS)
    def _memory() -> None:
        plgpu.set_max_registers(40, action="decrease")

        def copy(step: Any, slot: Any) -> None:
            at = pl.ds((first + step) * tile, tile)

            @pl.when(first + step < whole)
            def _whole() -> None:
                plgpu.copy_gmem_to_smem(
                    ins.items.at[at], buffers.items.at[slot], full.items.at[slot])

            @pl.when(first + step >= whole)
            def _last() -> None:
                plgpu.copy_gmem_to_smem(
                    ins.last_tile, buffers.items.at[slot], full.items.at[slot])

            if ins.bias is not None and buffers.bias is not None and full.bias is not None:
                plgpu.copy_gmem_to_smem(ins.bias.at[at], buffers.bias.at[slot], full.bias.at[slot])

        ring(mine, stages, full.free, copy)

    @pl.when(wg < WARPGROUPS)
    def _compute() -> None:
        plgpu.set_max_registers(232, action="increase")
        own = pl.ds(block * BLOCK + wg * ROWS, ROWS)
        own_queries, own_labels = buffers.queries.at[wg], buffers.labels.at[wg]
        plgpu.copy_gmem_to_smem(ins.queries.at[own], own_queries, full.queries.at[wg])
        plgpu.copy_gmem_to_smem(ins.labels.at[own], own_labels, full.labels.at[wg])
        plgpu.barrier_wait(full.queries.at[wg])
        plgpu.barrier_wait(full.labels.at[wg])
        valid = ins.limits[0]
        shape, width = (ROWS, tile), (ROWS, buffers.queries.shape[-1])
        group = (block * WARPGROUPS + wg) * splits + split
        hits_end = ins.starts[group + 1]

        def next_hit(at: Array) -> Array:
            # Position N holds a sentinel, so that `at` is always inside.
            return jnp.where(at < hits_end, ins.hit_tiles[at], jnp.int32(NEVER))

        def step(index: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            m, total, label_score, expected, hit_at, hit = carry
            slot = lax.rem(index, jnp.int32(stages))
            table = buffers.items.at[slot]
            plgpu.barrier_wait(full.items.at[slot])

            def products(ref: Ref) -> Array:
                plgpu.wgmma(ref, own_queries, table.transpose((1, 0)))
                turn(full.schedule)
                return ref[...]

            x = pl.run_scoped(products, plgpu.ACC(shape, jnp.float32))
            biases = None
            if buffers.bias is not None and full.bias is not None:
                plgpu.barrier_wait(full.bias.at[slot])
                biases = across(load_with_layout(buffers.bias.at[slot], BY_COLUMN), shape, 1)
            x, unit, slope = tile_scores(x, ins.factors, biases, softcap)
            number = first + index
            base = number * tile

            def special(x: Array, label_score: Array, at: Array, hit: Array) -> tuple[Array, ...]:
                """Take out the label, whose score is kept, and the rows that are no items."""
                column = plgpu.broadcasted_iota(
                    jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA) + base
                label = across(load_with_layout(own_labels, BY_ROW), shape, 0)
                chosen = column == label
                label_score = label_score + jnp.sum(jnp.where(chosen, x, 0.0), axis=1)
                x = jnp.where(chosen | (column >= valid), -jnp.inf, x)
                at = jnp.where(hit == number, at + 1, at)
                return x, label_score, at, next_hit(at)

            x, label_score, hit_at, hit = lax.cond(
                (hit == number) | (base + tile > valid), special, lambda *same: same,
                x, label_score, hit_at, hit)

            before, m = m, jnp.maximum(m, times(jnp.max(x, axis=1), unit))
            shrink = jnp.exp2(before - m)
            p = jnp.exp2(times(x, unit) - across(m, shape, 0))
            total = total * shrink + jnp.sum(p, axis=1)
            if expected is None:
                turn(full.schedule)
            else:
                expected = expected * across(shrink, width, 0)
                if slope is not None:
                    # The slope of what is no item is NaN where the query is.
                    p = jnp.where(p == 0.0, 0.0, p * slope)
                turn(full.schedule)
                expected = add_product(
                    expected, p, table, None if buffers.factors is None else buffers.factors.at[wg])
            plgpu.barrier_arrive(full.free.at[slot])
            return m, total, label_score, expected, hit_at, hit

        expected = None if outs.expected is None else zeros(width, plgpu.Layout.WGMMA)
        start = plain(ins.starts[group])
        carry = (zeros((ROWS,), BY_ROW, FLOOR), zeros((ROWS,), BY_ROW), zeros((ROWS,), BY_ROW),
                 expected, start, next_hit(start))
        pl.when(wg == 1)(lambda: turn(full.schedule))
        m, total, label_score, expected, _, _ = lax.fori_loop(0, mine, step, carry)
        pl.when(wg == 0)(lambda: turn(full.schedule))

        if ins.bias is None and softcap is None:
            label_score = label_score * ins.factors[0]
        own_stats = buffers.stats.at[wg]
        for place, (value, out) in enumerate(
                ((m, outs.m), (total, outs.l_minus), (label_score, outs.label_score))):
            own_stats.at[place][...] = value
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(own_stats.at[place], out.at[split, own])
        if outs.expected is not None and buffers.out is not None:
            store_matrix(expected, buffers.out.at[wg], outs.expected.at[split, own])
        plgpu.wait_smem_to_gmem(0)
