"""Ids of a batch, each once: rows are fetched once, and their gradients added in a fixed order.

The unique ids of M positions fill the front of M slots, so nothing can overflow here.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

NO_ID = jnp.iinfo(jnp.int32).max
"""Fills unused slots; greater than every id, so that it sorts behind them."""


class Unique(NamedTuple):
    """The distinct ids of M positions.

    ids: int32 `[M]`, ascending and distinct, then NO_ID.
    slot: int32 `[M]`, where in `ids` each position's id is; a position without a row (masked or
      bad) points at a NO_ID, of which there is one then.
    order: int32 `[M]`, positions in the order of their slots.
    bad: bool `[M]`, positions whose id is no row of the table.
    """

    ids: Array
    slot: Array
    order: Array
    bad: Array


def unique_ids(ids: Array, num_items: int, mask: Array | None = None) -> Unique:
    """The distinct ones of `ids` int32 `[M]`.

    mask: bool `[M]`; positions where it is False have no row: they read 0, and nothing of them
      is checked or updated. Every other id outside [0, num_items) is marked as bad.
    """
    ids = ids.astype(jnp.int32)
    wanted = jnp.ones(ids.shape, bool) if mask is None else mask
    known = (ids >= 0) & (ids < num_items)
    keys = jnp.where(wanted & known, ids, NO_ID)
    keys, order = jax.lax.sort((keys, jax.lax.iota(jnp.int32, ids.size)), num_keys=1,
                               is_stable=True)
    first = jnp.concatenate([jnp.ones(1, bool), keys[1:] != keys[:-1]])
    place = jnp.cumsum(first.astype(jnp.int32)) - 1
    distinct = jnp.full_like(ids, NO_ID).at[place].set(keys)
    slot = jnp.zeros_like(ids).at[order].set(place, unique_indices=True)
    return Unique(distinct, slot, order, wanted & ~known)


def expand(rows: Array, unique: Unique) -> Array:
    """Rows of the distinct ids `[M, d]` -> rows of the positions `[M, d]`, f32.

    Differentiable in `rows`: the gradients of a repeated id are added in the order of their
    positions, the same bits in every run on a platform. A masked position reads 0; a bad id
    reads NaN, so that a loss built on it cannot pass for a number.
    """
    return _expand(rows.astype(jnp.float32), unique)


@jax.custom_vjp
def _expand(rows: Array, unique: Unique) -> Array:
    empty = unique.ids[unique.slot] == NO_ID
    rows = jnp.where(empty[:, None], 0.0, rows[unique.slot])
    return jnp.where(unique.bad[:, None], jnp.nan, rows)


def _expand_fwd(rows: Array, unique: Unique) -> tuple[Array, Unique]:
    return _expand(rows, unique), unique


def _expand_bwd(unique: Unique, grads: Array) -> tuple[Array, None]:
    return add_duplicates(grads, unique), None


_expand.defvjp(_expand_fwd, _expand_bwd)


def add_duplicates(grads: Array, unique: Unique) -> Array:
    """Gradients of the positions `[M, d]` -> sums for the distinct ids `[M, d]`, 0 behind them.

    A scatter adds in index order on CPU and TPU. On a GPU it adds by atomics, in any order, so
    there the sorted gradients are summed by a segmented scan.
    """
    summed = jax.lax.platform_dependent(
        grads, unique, cpu=_by_scatter, tpu=_by_scatter, default=_by_scan)
    return jnp.where((unique.ids == NO_ID)[:, None], 0.0, summed)


def _by_scatter(grads: Array, unique: Unique) -> Array:
    return jnp.zeros_like(grads).at[unique.slot].add(grads)


def _by_scan(grads: Array, unique: Unique) -> Array:
    ends = unique.slot[unique.order]
    first = jnp.concatenate([jnp.ones(1, bool), ends[1:] != ends[:-1]])

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return (left[0] | right[0], jnp.where(right[0][:, None], right[1], left[1] + right[1]))

    _, sums = jax.lax.associative_scan(join, (first, grads[unique.order]))
    last = jnp.concatenate([ends[1:] != ends[:-1], jnp.ones(1, bool)])
    target = jnp.where(last, ends, grads.shape[0])
    return jnp.zeros_like(grads).at[target].set(sums, mode="drop")


@jax.custom_vjp
def looked_up(rows: Array, slots: Array, known: Array) -> Array:
    """Rows `[M, c]` at `slots` int32 `[n]`, 0 where they are not `known`.

    The gradients of a slot are added in the order of n, the same bits in every run on a platform.
    """
    return jnp.where(known[:, None], rows[slots], 0)


def _looked_up_fwd(rows: Array, slots: Array, known: Array
                   ) -> tuple[Array, tuple[Array, Array, Array]]:
    return looked_up(rows, slots, known), (slots, known, jnp.zeros_like(rows))


def _looked_up_bwd(kept: tuple[Array, Array, Array], gradient: Array
                   ) -> tuple[Array, None, None]:
    slots, known, zero = kept
    unique = unique_ids(slots, len(zero), known)
    return zero.at[unique.ids].set(add_duplicates(gradient, unique), mode="drop"), None, None


looked_up.defvjp(_looked_up_fwd, _looked_up_bwd)
