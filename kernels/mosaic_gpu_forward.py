"""K1 on Hopper: one pass over the table gives m, l-, s_y and (for training) O-.

Attention's forward pass with keys and values both the item table, so that a tile is loaded once
for both products. Blocks of queries times splits of the table fill the processors; the splits
are merged outside. Blocks that run together sweep the same split, and share it in the L2 cache.
"""

from __future__ import annotations

import functools
from typing import Any

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
    zeros,
)
from .primitives import Partials, Scores


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
        _body, tiles=tiles, dim=dim, dtype=items.dtype, steps_all=steps_all, steps=steps,
        splits=splits, with_bias=rule.bias is not None, with_expected=with_expected,
        softcap=rule.softcap, staged=interpret is not None)
    operands = [rule.queries, items, labels, hits.starts, hits.tiles, rule.factors, rule.limits]
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


def _body(*refs: Ref, tiles: Tiles, dim: int, dtype: Any, with_bias: bool, with_expected: bool,
          staged: bool, **static: Any) -> None:
    """Allocate shared memory and barriers, then run the three roles."""
    inputs = 8 if with_bias else 7
    ins, outs = list(refs[:inputs]), list(refs[inputs:])
    stages = tiles.forward_stages
    compute = plgpu.Barrier(num_barriers=WARPGROUPS)
    full = plgpu.Barrier(num_barriers=stages)
    pl.run_scoped(
        functools.partial(
            _roles, *ins[:7], ins[7] if with_bias else None, *outs[:3],
            outs[3] if with_expected else None, tile=tiles.forward, stages=stages, **static),
        shared((WARPGROUPS, ROWS, dim), dtype),
        plgpu.SMEM((WARPGROUPS, ROWS), jnp.int32),
        shared((stages, tiles.forward, dim), dtype),
        plgpu.SMEM((stages, tiles.forward), jnp.float32) if with_bias else None,
        plgpu.SMEM((WARPGROUPS, 3, ROWS), jnp.float32),
        shared((WARPGROUPS, ROWS, out_columns(dim)), jnp.float32) if with_expected else None,
        shared((WARPGROUPS, ROWS, tiles.forward), dtype) if staged and with_expected else None,
        (compute, compute, full, full if with_bias else None,
         plgpu.Barrier(num_barriers=stages, num_arrivals=WARPGROUPS),
         plgpu.Barrier(num_arrivals=WARPGROUPS)),
        collective_axes="wg",
    )


def _roles(queries: Ref, items: Ref, labels: Ref, starts: Ref, hit_tiles: Ref, factors: Ref,
           limits: Ref, bias: Ref | None, m_out: Ref, l_out: Ref, label_out: Ref,
           expected_out: Ref | None, query_buffer: Ref, label_buffer: Ref, item_buffer: Ref,
           bias_buffer: Ref | None, stats: Ref, out_staging: Ref | None, staging: Ref | None,
           barriers: tuple[Ref, ...], *, tile: int, stages: int, steps_all: int, steps: int,
           splits: int, softcap: float | None) -> None:
    queries_full, labels_full, items_full, bias_full, free, schedule = barriers
    split, block, wg = (lax.axis_index(name) for name in ("split", "block", "wg"))
    first = split * steps
    mine = jnp.minimum(jnp.int32(steps), steps_all - first)

    @pl.when(wg == WARPGROUPS)
    def _memory() -> None:
        plgpu.set_max_registers(40, action="decrease")

        def copy(step: Any, slot: Any) -> None:
            at = pl.ds((first + step) * tile, tile)  # past the end TMA reads zeros
            plgpu.copy_gmem_to_smem(items.at[at], item_buffer.at[slot], items_full.at[slot])
            if bias is not None and bias_buffer is not None:
                plgpu.copy_gmem_to_smem(bias.at[at], bias_buffer.at[slot], bias_full.at[slot])

        ring(mine, stages, free, copy)

    def turn() -> None:
        plgpu.barrier_arrive(schedule)
        plgpu.barrier_wait(schedule)

    @pl.when(wg < WARPGROUPS)
    def _compute() -> None:
        plgpu.set_max_registers(232, action="increase")
        own = pl.ds(block * BLOCK + wg * ROWS, ROWS)
        own_queries, own_labels = query_buffer.at[wg], label_buffer.at[wg]
        plgpu.copy_gmem_to_smem(queries.at[own], own_queries, queries_full.at[wg])
        plgpu.copy_gmem_to_smem(labels.at[own], own_labels, labels_full.at[wg])
        plgpu.barrier_wait(queries_full.at[wg])
        plgpu.barrier_wait(labels_full.at[wg])
        valid = limits[0]
        group = (block * WARPGROUPS + wg) * splits + split
        hits_end = starts[group + 1]

        def next_hit(at: Array) -> Array:
            # Position N holds a sentinel, so that `at` is always inside.
            return jnp.where(at < hits_end, hit_tiles[at], jnp.int32(NEVER))

        def step(index: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            m, total, label_score, expected, hit_at, hit = carry
            slot = lax.rem(index, jnp.int32(stages))
            table = item_buffer.at[slot]
            plgpu.barrier_wait(items_full.at[slot])

            def products(ref: Ref) -> Array:
                plgpu.wgmma(ref, own_queries, table.transpose((1, 0)))
                turn()
                return ref[...]

            x = pl.run_scoped(products, plgpu.ACC((ROWS, tile), jnp.float32))
            biases = None
            if bias_buffer is not None:
                plgpu.barrier_wait(bias_full.at[slot])
                biases = across(load_with_layout(bias_buffer.at[slot], BY_COLUMN), x.shape, 1)
            x, unit, slope = tile_scores(x, factors, biases, softcap)
            number = first + index
            base = number * tile

            def special(x: Array, label_score: Array, at: Array, hit: Array) -> tuple[Array, ...]:
                """Take out the label, whose score is kept, and the rows that are no items."""
                column = plgpu.broadcasted_iota(
                    jnp.int32, x.shape, 1, layout=plgpu.Layout.WGMMA) + base
                label = across(load_with_layout(own_labels, BY_ROW), x.shape, 0)
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
            p = jnp.exp2(times(x, unit) - across(m, x.shape, 0))
            total = total * shrink + jnp.sum(p, axis=1)
            if expected is None:
                turn()
            else:
                expected = expected * across(shrink, expected.shape, 0)
                if slope is not None:
                    p = p * slope
                turn()
                expected = add_product(
                    expected, p, table, None if staging is None else staging.at[wg])
            plgpu.barrier_arrive(free.at[slot])
            return m, total, label_score, expected, hit_at, hit

        expected = None if expected_out is None else zeros(
            query_buffer.shape[1:], plgpu.Layout.WGMMA)
        start = starts[group]
        carry = (zeros((ROWS,), BY_ROW, FLOOR), zeros((ROWS,), BY_ROW), zeros((ROWS,), BY_ROW),
                 expected, start, next_hit(start))
        pl.when(wg == 1)(turn)
        m, total, label_score, expected, _, _ = lax.fori_loop(0, mine, step, carry)
        pl.when(wg == 0)(turn)

        if bias is None and softcap is None:
            label_score = label_score * factors[0]
        own_stats = stats.at[wg]
        for place, (value, out) in enumerate(
                ((m, m_out), (total, l_out), (label_score, label_out))):
            own_stats.at[place][...] = value
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(own_stats.at[place], out.at[split, own])
        if expected is not None and expected_out is not None:
            store_matrix(expected, out_staging.at[wg], expected_out.at[split, own])
        plgpu.wait_smem_to_gmem(0)
