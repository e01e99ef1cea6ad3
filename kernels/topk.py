"""The best items of each query, streamed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from . import dispatch
from .exclusion import Exclude, excluded_pairs
from .primitives import Array, AxisName, Backend, Excluded, ordered
from .shards import align, check_arrays, score_rule


def top_k(queries: Array, items: Array, k: int, *, exclude: Exclude | None = None,
          bias: Array | None = None, logit_scale: float | Array = 1.0,
          softcap: float | None = None, num_items: int | Array | None = None,
          first: int | Array = 0, axis_name: AxisName | None = None,
          backend: str | Backend = "auto") -> tuple[Array, Array]:
    """The k best items of each query that are not excluded.

    Args:
      queries: `[N, d]`; items: `[V, d]`; f32 or bf16.
      k: at least 1; may exceed the number of items.
      exclude: items that are no candidates, see `Exclude`.
      first: id of the first row of `items`, of all shards together, where they are a part of a
        table.
      bias, logit_scale, softcap, num_items, axis_name, backend: as for `softmax_loss`.

    Returns:
      scores f32 `[N, k]`, descending, and global ids int32 `[N, k]`. Of equal scores the lower
      id comes first. An item whose score is NaN or -inf is no candidate. Where fewer than k
      candidates exist the id is -1 and the score -inf.

    Raises:
      ValueError: wrong shapes or types, k < 1, or a backend that cannot run.
    """
    check_arrays("top_k", queries, items, None, bias, softcap)
    if k < 1:
        raise ValueError(f"top_k: k is {k}; expected at least 1")
    problem = dispatch.describe("top_k", queries, items, bias=bias, softcap=softcap)
    chosen = dispatch.choose(problem, backend)
    pairs = None
    if exclude is not None:
        pairs = excluded_pairs(exclude, None, queries.shape[0])
    items, queries, bias, scale, query, item = align(
        items, queries, bias, jnp.asarray(logit_scale, jnp.float32), *(pairs or (None, None)))
    pairs = None if pairs is None else Excluded(query, item)
    rule = score_rule(items, scale, bias, num_items, softcap, axis_name, first)
    assert chosen.top_k is not None
    scores, ids = chosen.top_k(queries, items, k, pairs, rule)
    return (scores, ids) if axis_name is None else merge_top_k(scores, ids, k, axis_name)


def merge_top_k(scores: Array, ids: Array, k: int, axis_name: AxisName) -> tuple[Array, Array]:
    """The best k of all shards: O(N k) from each shard. Equal on all shards."""
    count = scores.shape[0]
    shards, index = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    # Gathered as a sum into disjoint slots, because its result is known to be the same on all
    # shards; the order of shards is that of their ids, so stable top-k keeps the lower id first.
    slots = jnp.zeros((shards, count, k), scores.dtype).at[index].set(
        jnp.where(ids < 0, 0.0, scores))
    id_slots = jnp.zeros((shards, count, k), ids.dtype).at[index].set(ids + 1)
    all_scores, all_ids = jax.lax.psum((slots, id_slots), axis_name)
    all_ids = jnp.moveaxis(all_ids, 0, 1).reshape(count, -1) - 1
    all_scores = jnp.moveaxis(all_scores, 0, 1).reshape(count, -1)
    all_scores = jnp.where(all_ids < 0, -jnp.inf, ordered(all_scores))
    best, where = jax.lax.top_k(all_scores, k)
    return best, jnp.take_along_axis(all_ids, where, axis=1)


def join_top_k(before: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, Array]:
    """The best k, `[N, k]`, of two answers of `top_k` for parts of a table; `before` is of the rows
    with lower ids, which come first among equals."""
    scores, ids = (jnp.concatenate(each, axis=1) for each in zip(before, new, strict=True))
    best, where = jax.lax.top_k(ordered(scores), before[0].shape[1])
    return best, jnp.take_along_axis(ids, where, axis=1)
