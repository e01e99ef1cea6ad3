"""Exact rank of each target among all items, without logits and without sorting."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from . import dispatch
from .exclusion import Exclude, excluded_pairs
from .primitives import Array, AxisName, Backend, Excluded, Scores
from .shards import align, check_arrays, score_rule

LOWEST = jnp.finfo(jnp.float32).min


def target_rank(queries: Array, items: Array, targets: Array, *, exclude: Exclude | None = None,
                bias: Array | None = None, logit_scale: float | Array = 1.0,
                softcap: float | None = None, num_items: int | Array | None = None,
                axis_name: AxisName | None = None, backend: str | Backend = "auto") -> Array:
    """Rank of each query's target among the items that are not excluded; 1 is best.

    rank_i = 1 + number of candidates j other than the target with not s_ij < s_i(target).
    Ties count against the target, and so does a score that is NaN: a model that scores all
    items alike ranks last, never first. The target itself is never excluded. The score of the
    target has the bits that the count sees for that row, so that the result does not depend on
    tiles. A query's rank depends on the batch it stands in only where the backend's matrix
    product rounds differently with another N: use one N for results that must be equal.

    Args:
      queries: `[N, d]`; items: `[V, d]`; f32 or bf16.
      targets: int `[N]`, global ids. An id that is no item ranks behind every candidate.
      exclude: items that are no candidates (seen in training), see `Exclude`.
      bias, logit_scale, softcap, num_items, axis_name, backend: as for `softmax_loss`.

    Returns:
      int32 `[N]`.

    Raises:
      ValueError: wrong shapes or types, or a backend that cannot run.
    """
    how: dict[str, Any] = {"bias": bias, "logit_scale": logit_scale, "softcap": softcap,
                           "num_items": num_items, "axis_name": axis_name, "backend": backend}
    s_y = target_scores(queries, items, targets, **how)
    return 1 + count_ahead(queries, items, targets, s_y, exclude=exclude, **how)


def target_scores(queries: Array, items: Array, targets: Array, *, first: int | Array = 0,
                  bias: Array | None = None, logit_scale: float | Array = 1.0,
                  softcap: float | None = None, num_items: int | Array | None = None,
                  axis_name: AxisName | None = None, backend: str | Backend = "auto") -> Array:
    """f32 `[N]`: the score of each target, -inf where it is no row of `items`.

    For `count_ahead` over a table in parts: the largest over all parts of one size has the bits
    that the counts see.

    first: id of the first row of `items`, of all shards together; the others are those of
      `target_rank`, and of this part of the table.
    """
    chosen, rule, aligned = _prepared(queries, items, targets, first, bias, logit_scale, softcap,
                                      num_items, axis_name, backend)
    items, queries, targets, *_ = aligned
    assert chosen.label_scores is not None
    s_y = chosen.label_scores(queries, items, targets, rule)
    if axis_name is not None:
        s_y, _ = align(jax.lax.pmax(s_y, axis_name), items)
    return s_y


def count_ahead(queries: Array, items: Array, targets: Array, scores: Array, *,
                first: int | Array = 0, exclude: Exclude | None = None, bias: Array | None = None,
                logit_scale: float | Array = 1.0, softcap: float | None = None,
                num_items: int | Array | None = None, axis_name: AxisName | None = None,
                backend: str | Backend = "auto") -> Array:
    """int32 `[N]`: rows of `items` that stand before each target; of all parts of a table together
    they are its rank less 1.

    scores: f32 `[N]` of `target_scores`; the others as there, and as for `target_rank`.
    """
    pairs = excluded_pairs(exclude, targets, queries.shape[0])
    chosen, rule, aligned = _prepared(queries, items, targets, first, bias, logit_scale, softcap,
                                      num_items, axis_name, backend, scores, *pairs)
    items, queries, _, scores, query, item = aligned
    # What an exclusion or a bias takes out scores -inf, and is behind even a target that is no
    # item or whose score is NaN.
    s_y = jnp.where(jnp.isnan(scores), LOWEST, jnp.maximum(scores, LOWEST))
    assert chosen.rank_count is not None
    ahead = chosen.rank_count(queries, items, s_y, Excluded(query, item), rule)
    return ahead if axis_name is None else jax.lax.psum(ahead, axis_name)


def _prepared(queries: Array, items: Array, targets: Array, first: int | Array,
              bias: Array | None, logit_scale: float | Array, softcap: float | None,
              num_items: int | Array | None, axis_name: AxisName | None,
              backend: str | Backend, *others: Array) -> tuple[Backend, Scores, Any]:
    """The backend, how it scores, and (items, queries, targets, *others) aligned."""
    check_arrays("target_rank", queries, items, targets, bias, softcap)
    problem = dispatch.describe("target_rank", queries, items, bias=bias, softcap=softcap)
    chosen = dispatch.choose(problem, backend)
    items, queries, targets, bias, scale, *others = align(
        items, queries, targets, bias, jnp.asarray(logit_scale, jnp.float32), *others)
    rule = score_rule(items, scale, bias, num_items, softcap, axis_name, first)
    return chosen, rule, (items, queries, targets, *others)
