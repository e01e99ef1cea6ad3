"""Optimizer step of a table on Hopper, in place: K2 over some blocks of rows, then their update.

The gradient of a few blocks of rows exists at a time, never that of the table. The update is
not an epilogue inside the kernel: row optimizers are JAX functions of any kind, and the
gradient block (some 10 MB) stays mostly in the L2 cache. Under `jit` with donated rows and
state each block is written back where it was.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..primitives import RowUpdate, Scores, SparseRows
from ..rounding import store_rows
from .grad import prepare, rows_grad
from .tiles import BLOCK, Array, Tiles, choose_tiles

GRADIENT_BYTES = 16 * 2**20
"""Of the rows of a step: a third of the L2 cache of a Hopper GPU, so that they stay in it."""


def item_update(queries: Array, items: Array, state: Any, targets: Array, lse: Array,
                weight: Array, label_weight: Array, scores: Scores, *, update: RowUpdate,
                hyper: Any, sparse: SparseRows | None, seed: Array | None,
                tiles: Tiles | None = None, rows_at_a_time: int | None = None,
                interpret: Any = None) -> tuple[Array, Any, Array | None]:
    """`primitives.ItemUpdate`. queries `[N, d]`, items `[V, d]`, both bf16; see `refuses`.

    rows_at_a_time: a multiple of 128; by default what fills the processors a few times.
    """
    total, dim = items.shape
    tiles = tiles or choose_tiles(dim)
    chunk = rows_at_a_time or rows_of_a_step(dim, tiles.processors)
    prepared = prepare(queries, items, targets, lse, weight, label_weight, scores, tiles)
    combined = None if sparse is None or not sparse.ids.size else _combine(sparse)

    def step(items: Array, state: Any, start: Array, rows: int) -> tuple[Array, Any, Any]:
        grads, d_bias = rows_grad(items, prepared, start // BLOCK, rows, tiles, interpret)
        ids = jnp.asarray(scores.row_offset, jnp.int32) + start + lax.iota(jnp.int32, rows)
        if combined is not None:
            grads = _add_rows(grads, combined, ids[0])

        def part(leaf: Array) -> Array:
            return lax.dynamic_slice_in_dim(leaf, start, rows)

        def put(leaf: Array, new: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(leaf, new.astype(leaf.dtype), start, 0)

        new, new_state = update(
            part(items).astype(jnp.float32), grads, jax.tree.map(part, state), hyper)
        # Finished before they are written: a write fused with the read of the old rows would
        # not be in place, and copy the table.
        new, new_state = lax.optimization_barrier(
            (store_rows(new, items.dtype, ids, seed), new_state))
        return put(items, new), jax.tree.map(put, state, new_state), d_bias

    # The last step takes the remainder too: no step is smaller than a tile.
    whole = max(total // chunk - 1, 0)
    starts = jnp.arange(whole, dtype=jnp.int32) * chunk

    def body(carry: tuple[Array, Any], start: Array) -> tuple[tuple[Array, Any], Any]:
        items, state, d_bias = step(*carry, start, chunk)
        return (items, state), d_bias

    d_biases = None
    if whole:  # a table may be smaller than a step
        (items, state), d_biases = lax.scan(body, (items, state), starts)
    done = whole * chunk
    items, state, d_bias = step(items, state, jnp.int32(done), total - done)
    if d_biases is not None:
        d_bias = jnp.concatenate([d_biases.reshape(-1), d_bias])
    return items, state, d_bias


def rows_of_a_step(dim: int, processors: int) -> int:
    """Whole waves of blocks, one for each processor, whose gradient takes `GRADIENT_BYTES`."""
    wave = processors * BLOCK
    return max(1, GRADIENT_BYTES // (4 * dim * wave)) * wave


def _combine(sparse: SparseRows) -> SparseRows:
    """Add up duplicates, in order: the last of a run holds the sum, the others get the id -1.

    A scatter that adds duplicates would do it in any order, and not twice the same.
    """
    ids = sparse.ids.astype(jnp.int32)
    edge = ids[1:] != ids[:-1]
    first = jnp.concatenate([jnp.ones(1, bool), edge])
    last = jnp.concatenate([edge, jnp.ones(1, bool)])

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return (left[0] | right[0],
                jnp.where(right[0], right[1], left[1] + right[1]))

    _, sums = lax.associative_scan(join, (first[:, None], sparse.grads.astype(jnp.float32)))
    return SparseRows(jnp.where(last, ids, -1), sums)


def _add_rows(grads: Array, sparse: SparseRows, first: Array) -> Array:
    """Add the rows of `sparse` whose ids are in [first, first + rows) to `grads` `[rows, d]`."""
    rows = grads.shape[0]
    local = sparse.ids - first
    inside = (sparse.ids >= 0) & (local >= 0) & (local < rows)
    # Each row out of the block gets a place of its own past the end: all indices are distinct.
    place = jnp.where(inside, local, rows + lax.iota(jnp.int32, local.shape[0]))
    return grads.at[place].add(sparse.grads, mode="drop", unique_indices=True)
