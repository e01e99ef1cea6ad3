"""K2 on TPU with the row optimizer as epilogue: each tile of rows is rewritten where it lies.

A tile's gradient lives in VMEM only. When its last query has passed, the sparse rows that fall
into the tile are added, the optimizer turns rows, gradient and state into new rows and state,
and those are written over the old ones (`input_output_aliases`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..primitives import Array, RowUpdate, Scores, SparseRows
from ..rounding import store_rows
from .grad import GradOut, Known, accumulate, known, tiling_of
from .tiles import LANES, Head, Tiling, cost, head, matmul, round_up, row_bytes, stream
from .tiles import stored_features_first as features_first

CHUNK = LANES
"""Sparse rows that are added at once."""
PER_BLOCK = LANES // 2
"""Tiles whose spans of chunks share a block of scalar memory."""
TEMPORARIES = 5
"""Rows of a tile that the epilogue holds: old and new rows, gradient, step, random bits."""


class _Extra(NamedTuple):
    """Operands of the epilogue, and in the kernel the refs to their blocks."""

    state: list[Any]  # leaves, [1, V] or [V, w] or [w, V]
    hyper: list[Any]  # leaves, [1]
    offset: Any  # int32 [1], global id of row 0
    seed: Any  # uint32 [1] or None
    sparse: Any  # _Sparse or None


class _Sparse(NamedTuple):
    """Sorted sparse rows in whole chunks."""

    spans: Any  # int32 [S, 1, LANES]: first chunks of PER_BLOCK tiles, then one past their last
    ids: Any  # int32 [C, 1, CHUNK], local rows
    grads: Any  # f32 [C, CHUNK, d], or [C, d, CHUNK] if features come first


class _Out(NamedTuple):
    items: Any
    state: list[Any]
    bias: Any


@dataclasses.dataclass(frozen=True)
class _Epilogue:
    """What the kernel knows when it is traced."""

    tiling: Tiling
    softcap: float | None
    update: RowUpdate
    tree: Any
    hyper_tree: Any
    columns: tuple[bool, ...]  # whether each leaf of the state is `[V]`
    transposed: tuple[bool, ...]  # whether each leaf is taken as `[w, V]`


def item_update(queries: Array, items: Array, state: Any, targets: Array, lse: Array,
                weight: Array, label_weight: Array, scores: Scores, *, update: RowUpdate,
                hyper: Any, sparse: SparseRows | None, seed: Array | None, budget: int,
                interpret: Any) -> tuple[Array, Any, Array | None]:
    """See `primitives.ItemUpdate`.

    Raises:
      ValueError: a leaf of the state is neither `[V]` nor `[V, w]`.
    """
    rows, dim = items.shape
    leaves, tree = jax.tree.flatten(state)
    for leaf in leaves:
        if leaf.ndim not in (1, 2) or leaf.shape[0] != rows:
            raise ValueError(f"state has a leaf of shape {leaf.shape}; mosaic_tpu expects "
                             f"({rows},) or ({rows}, width)")
    hyper_leaves, hyper_tree = jax.tree.flatten(hyper)
    tiling = tiling_of(
        queries.shape[0], rows, dim, queries.dtype.itemsize, items.dtype.itemsize, budget,
        turned=TEMPORARIES,
        state=sum(row_bytes(rows, leaf.size // rows, 4, 4, turned=2) for leaf in leaves))
    plan = _Epilogue(
        tiling, scores.softcap, update, tree, hyper_tree,
        tuple(leaf.ndim == 1 for leaf in leaves),
        tuple(leaf.ndim == 2 and features_first(rows, leaf.shape[1]) for leaf in leaves))
    common, specs = head(queries, items, scores, tiling)
    second, second_specs = known(targets, lse, weight, label_weight, rows, scores, tiling)
    with_bias = scores.bias is not None
    grid = tiling.grid(second.targets.shape[0], rows)
    extra, extra_specs = _extra(plan, leaves, hyper_leaves, scores, seed, sparse, grid[0], dim)
    out_shape = _Out(common.items, extra.state,
                     jax.ShapeDtypeStruct((1, rows), jnp.float32) if with_bias else None)
    out_specs = _Out(specs.items, extra_specs.state, tiling.lane_spec() if with_bias else None)
    # Flat operand -> flat result: the rows and the leaves of their state.
    before = len(jax.tree.leaves((common, second)))
    aliases = {Head._fields.index("items"): 0} | {
        before + number: 1 + number for number in range(len(leaves))}
    scratch: dict[str, Any] = {
        "tile": pltpu.VMEM((tiling.n, tiling.v), jnp.float32),
        "grad": pltpu.VMEM(specs.items.block_shape, jnp.float32)}
    if sparse is not None:
        scratch |= {"id_chunk": pltpu.VMEM((1, CHUNK), jnp.int32),
                    "grad_chunk": pltpu.VMEM(extra.sparse.grads.shape[1:], jnp.float32),
                    "arrived": pltpu.SemaphoreType.DMA((2,))}
    (out,) = stream(
        functools.partial(_kernel, plan=plan),
        (common, second, extra), (specs, second_specs, extra_specs),
        (out_shape,), (out_specs,), grid=grid, scratch=scratch,
        name="catalogue_softmax_item_update", interpret=interpret,
        cost=cost(queries, items, 2, 1, 2), aliases=aliases)
    new_leaves = [new[0] if leaf.ndim == 1 else new.T if flip else new
                  for new, leaf, flip in zip(out.state, leaves, plan.transposed, strict=True)]
    return (tiling.stored(out.items), jax.tree.unflatten(tree, new_leaves),
            out.bias[0] if with_bias else None)


def _extra(plan: _Epilogue, leaves: list[Array], hyper: list[Any], scores: Scores,
           seed: Array | None, sparse: SparseRows | None, tiles: int, dim: int
           ) -> tuple[_Extra, _Extra]:
    """Operands and specs of `_Extra`."""
    tiling = plan.tiling
    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    state, specs = [], []
    for leaf, column, flip in zip(leaves, plan.columns, plan.transposed, strict=True):
        state.append(leaf[None, :] if column else leaf.T if flip else leaf)
        own = dataclasses.replace(tiling, features_first=flip)
        specs.append(tiling.lane_spec() if column else own.table_spec(leaf.shape[1]))
    numbers = [jnp.reshape(jnp.asarray(x), (1,)) for x in hyper]
    offset = jnp.reshape(jnp.asarray(scores.row_offset, jnp.int32), (1,))
    key = None if seed is None else jnp.reshape(jnp.asarray(seed, jnp.uint32), (1,))
    rows, rows_spec = (None, None) if sparse is None else _sparse(
        sparse, scores, tiling, tiles, dim)
    return (_Extra(state, numbers, offset, key, rows),
            _Extra(specs, [scalar] * len(numbers), scalar, None if key is None else scalar,
                   rows_spec))


def _sparse(sparse: SparseRows, scores: Scores, tiling: Tiling, tiles: int, dim: int
            ) -> tuple[_Sparse, _Sparse]:
    """Sparse rows in chunks, and for every tile the chunks that may hold its rows."""
    missing = round_up(max(sparse.ids.shape[0], 1), CHUNK) - sparse.ids.shape[0]
    ids = jnp.pad(sparse.ids.astype(jnp.int32) - scores.row_offset, (0, missing),
                  constant_values=jnp.iinfo(jnp.int32).max)
    grads = jnp.pad(sparse.grads.astype(jnp.float32), ((0, missing), (0, 0)))
    grads = grads.reshape(-1, CHUNK, dim)
    bounds = jnp.searchsorted(ids, jnp.arange(tiles + 1, dtype=jnp.int32) * tiling.v)
    first = bounds[:-1] // CHUNK
    # A tile without rows gets an empty span.
    last = jnp.where(bounds[1:] > bounds[:-1], -(-bounds[1:] // CHUNK), first)
    # No [tiles, 2]: an axis of 2 takes 128 lanes.
    spans = [jnp.pad(x.astype(jnp.int32), (0, round_up(tiles, PER_BLOCK) - tiles)).reshape(
        -1, 1, PER_BLOCK) for x in (first, last)]
    operands = _Sparse(
        jnp.concatenate(spans, axis=2), ids.reshape(-1, 1, CHUNK),
        jnp.swapaxes(grads, 1, 2) if tiling.features_first else grads)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return operands, _Sparse(
        pl.BlockSpec((1, 1, LANES), lambda j, i: (jax.lax.div(j, PER_BLOCK), 0, 0),
                     memory_space=pltpu.SMEM),
        anywhere, anywhere)


def _kernel(refs: Head, second: Known, extra: _Extra, out: _Out, *, plan: _Epilogue,
            tile: Any, grad: Any, **chunks: Any) -> None:
    tiling, base = plan.tiling, plan.tiling.row_base()
    place = jax.lax.rem(pl.program_id(0), PER_BLOCK)
    accumulate(refs, second, GradOut(grad, out.bias), tile, tiling, plan.softcap)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _finish() -> None:
        if extra.sparse is not None:
            _add_sparse(grad, extra.sparse, tiling, base, place, **chunks)
        state = [_column(ref[...]) if column else _turned(ref[...], flip)
                 for ref, column, flip in zip(extra.state, plan.columns, plan.transposed,
                                              strict=True)]
        rows, new_state = plan.update(
            _turned(refs.items[...].astype(jnp.float32), tiling.features_first),
            _turned(grad[...], tiling.features_first),
            jax.tree.unflatten(plan.tree, state),
            jax.tree.unflatten(plan.hyper_tree, [ref[0] for ref in extra.hyper]))
        ids = jax.lax.broadcasted_iota(jnp.int32, (tiling.v,), 0) + (extra.offset[0] + base)
        stored = store_rows(rows, out.items.dtype, ids,
                            None if extra.seed is None else extra.seed[0])
        out.items[...] = _turned(stored, tiling.features_first)
        for ref, new, column, flip in zip(out.state, jax.tree.leaves(new_state), plan.columns,
                                          plan.transposed, strict=True):
            ref[...] = (_lanes(new) if column else _turned(new, flip)).astype(ref.dtype)


def _turned(tile: Array, flip: bool) -> Array:
    """A tile between `[w, T]`, as stored, and `[T, w]`, as the optimizer sees it."""
    return tile.T if flip else tile


def _column(lanes: Array) -> Array:
    """`[1, T]`, an entry a lane -> `[T]`, an entry a sublane: the layout of a sum over d."""
    return jnp.broadcast_to(lanes, (8, lanes.shape[1])).T[:, 0]


def _lanes(column: Array) -> Array:
    """`[T]`, an entry a sublane -> `[1, T]`, an entry a lane."""
    return jnp.broadcast_to(column[:, None], (column.shape[0], LANES)).T[:1, :]


def _add_sparse(grad: Any, sparse: _Sparse, tiling: Tiling, base: Array, place: Array, *,
                id_chunk: Any, grad_chunk: Any, arrived: Any) -> None:
    """Add the sparse rows of this tile: a one-hot product for each chunk, exact in f32.

    place: where the tile's span stands in its block.
    """

    def one_chunk(chunk: Array, carry: None) -> None:
        copies = [pltpu.make_async_copy(source.at[chunk], target, arrived.at[number])
                  for number, (source, target) in enumerate(
                      ((sparse.ids, id_chunk), (sparse.grads, grad_chunk)))]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()
        row = jax.lax.broadcasted_iota(jnp.int32, (tiling.v, CHUNK), 0) + base
        picks = jnp.where(row == id_chunk[...], 1.0, 0.0)
        if tiling.features_first:
            grad[...] += matmul(grad_chunk[...], picks, (1, 1))
        else:
            grad[...] += matmul(picks, grad_chunk[...], (1, 0))
        return carry

    first, last = sparse.spans[0, 0, place], sparse.spans[0, 0, place + PER_BLOCK]
    jax.lax.fori_loop(first, last, one_chunk, None)
