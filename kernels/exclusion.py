"""Ragged lists of items that are no candidates for a query, as sorted pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from . import auto
from .compat import result_like
from .native import build as native_build
from .primitives import Array, Excluded
from .shards import align

Exclude = tuple[Array, Array] | Array
"""Items that each query has seen, one of

- `(offsets int32 [N + 1], items int32 [E])`: query i excludes items[offsets[i]:offsets[i+1]];
  entries from offsets[N] on are unused;
- `[N, S]` int32, padded with -1.

Duplicates are harmless.
"""

UNUSED = jnp.iinfo(jnp.int32).max


def excluded_pairs(exclude: Exclude | None, also: Array | None, num_queries: int) -> Excluded:
    """Pairs of `exclude`, and (i, also[i]) for each query if given, sorted and distinct.

    Raises:
      ValueError: wrong shapes.
    """
    queries, items = _pairs(exclude, num_queries)
    if also is not None:
        queries = jnp.concatenate([queries, jnp.arange(num_queries, dtype=jnp.int32)])
        items = jnp.concatenate([items, also.astype(jnp.int32)])
    items = jnp.where(items < 0, UNUSED, items)
    if auto.takes_native("target_rank"):
        return Excluded(*jax.lax.platform_dependent(
            queries, items, cpu=_sorted_natively, default=_sorted))
    return Excluded(*_sorted(queries, items))


def _sorted(queries: Array, items: Array) -> tuple[Array, Array]:
    items, queries = jax.lax.sort((items, queries), num_keys=2)
    repeated = (items[1:] == items[:-1]) & (queries[1:] == queries[:-1])
    items = items.at[1:].set(jnp.where(repeated, UNUSED, items[1:]))
    items, queries = jax.lax.sort((items, queries), num_keys=2)
    return queries, items


def _sorted_natively(queries: Array, items: Array) -> tuple[Array, Array]:
    """The same by digits; XLA's sort takes a seventh of an evaluation on a CPU."""
    queries, items = align(queries, items)
    results = [result_like(x, x.shape, jnp.int32) for x in (queries, items)]
    queries, items = native_build.function("sorted_pairs", results)(
        queries, items, unused=np.int32(UNUSED))
    return queries, items


def _pairs(exclude: Exclude | None, num_queries: int) -> tuple[Array, Array]:
    """(query, item) int32 `[E]`, in any order; a negative item is unused."""
    if exclude is None:
        empty = jnp.zeros((0,), jnp.int32)
        return empty, empty
    if isinstance(exclude, tuple):
        offsets, items = exclude
        if offsets.shape != (num_queries + 1,) or items.ndim != 1:
            raise ValueError(f"exclude has offsets {offsets.shape} and items {items.shape}; "
                             f"expected ({num_queries + 1},) and [E]")
        position = jnp.arange(items.shape[0], dtype=jnp.int32)
        queries = jnp.searchsorted(offsets[1:].astype(jnp.int32), position, side="right")
        used = queries < num_queries
        return (jnp.where(used, queries, 0).astype(jnp.int32),
                jnp.where(used, items.astype(jnp.int32), -1))
    if exclude.ndim != 2 or exclude.shape[0] != num_queries:
        raise ValueError(f"exclude has shape {exclude.shape}; expected [{num_queries}, S], or a "
                         "pair (offsets, items)")
    queries = jnp.repeat(jnp.arange(num_queries, dtype=jnp.int32), exclude.shape[1])
    return queries, exclude.reshape(-1).astype(jnp.int32)
