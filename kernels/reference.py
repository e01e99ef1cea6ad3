"""The oracle: every fold written with the whole N x V score matrix. For tests and small tables."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .primitives import (
    LEAST,
    Array,
    Backend,
    Excluded,
    Partials,
    Problem,
    RowUpdate,
    Scores,
    SparseRows,
    ordered,
)
from .rounding import store_rows


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST,
                      preferred_element_type=jnp.float32)


def _scores(queries: Array, items: Array, rule: Scores) -> tuple[Array, Array]:
    """s and c', f32 `[N, V]`; see `primitives`."""
    s = _matmul(queries.astype(jnp.float32), _present(items, rule).T) * rule.scale
    there = _are_items(items, rule)
    if rule.bias is not None:
        s = s + jnp.where(there, rule.bias, 0.0)
    slope = jnp.ones_like(s)
    if rule.softcap is not None:
        bent = jnp.tanh(s / rule.softcap)
        s, slope = rule.softcap * bent, 1 - jnp.square(bent)
    return jnp.where(there, s, -jnp.inf), slope


def _are_items(items: Array, rule: Scores) -> Array:
    """bool `[V]`."""
    return rule.is_item(jnp.arange(items.shape[0], dtype=jnp.int32))


def _present(items: Array, rule: Scores) -> Array:
    """f32 `[V, d]`; rows that are no items are 0, because they may hold NaN and 0 * NaN is NaN."""
    return jnp.where(_are_items(items, rule)[:, None], items.astype(jnp.float32), 0.0)


def _ids(items: Array, rule: Scores) -> Array:
    """Global id of each row, int32 `[V]`."""
    return rule.row_offset + jnp.arange(items.shape[0], dtype=jnp.int32)


def forward(queries: Array, items: Array, targets: Array, scores: Scores, *,
            with_expected: bool, with_moment: bool = False) -> Partials:
    """See `primitives.Forward`."""
    s, slope = _scores(queries, items, scores)
    label = _ids(items, scores) == targets[:, None]
    s_y = jnp.max(jnp.where(label, s, -jnp.inf), axis=1)
    s = jnp.where(label, -jnp.inf, s)
    m = jnp.maximum(jnp.max(s, axis=1), jnp.finfo(jnp.float32).min)
    p = jnp.exp(s - m[:, None])
    # The slope of what is no item is NaN where the query is.
    bent = jnp.where(p == 0, 0.0, p * slope)
    o_minus = _matmul(bent, _present(items, scores)) if with_expected else None
    parts = Partials(m, jnp.sum(p, axis=1), o_minus, s_y)
    if not with_moment:
        return parts
    x = jnp.maximum(s - m[:, None], LEAST)
    o_moment = _matmul(bent * x, _present(items, scores)) if with_expected else None
    return parts._replace(l_moment=jnp.sum(p * x, axis=1), o_moment=o_moment)


def item_grad(queries: Array, items: Array, targets: Array, lse: Array, weight: Array,
              label_weight: Array, scores: Scores, *, log_weight: Array | None = None
              ) -> tuple[Array, Array | None]:
    """See `primitives.ItemGrad` and `primitives.EntropyGrad`."""
    s, slope = _scores(queries, items, scores)
    x, factor = s - lse[:, None], weight[:, None]
    if log_weight is not None:
        x = jnp.maximum(x, LEAST)
        factor = factor + log_weight[:, None] * x
    c = jnp.where(_ids(items, scores) == targets[:, None], label_weight[:, None],
                  factor * jnp.exp(x) * slope)
    there = _are_items(items, scores)
    d_items = scores.scale * _matmul(c.T, queries.astype(jnp.float32))
    d_items = jnp.where(there[:, None], d_items, 0.0)
    return d_items, None if scores.bias is None else jnp.where(there, jnp.sum(c, axis=0), 0.0)


def item_update(queries: Array, items: Array, state: Any, targets: Array, lse: Array,
                weight: Array, label_weight: Array, scores: Scores, *, update: RowUpdate,
                hyper: Any, sparse: SparseRows | None, seed: Array | None,
                log_weight: Array | None = None) -> tuple[Array, Any, Array | None]:
    """See `primitives.ItemUpdate` and `primitives.EntropyUpdate`."""
    grads, d_bias = item_grad(queries, items, targets, lse, weight, label_weight, scores,
                              log_weight=log_weight)
    if sparse is not None:
        local = sparse.ids - scores.row_offset
        here = (local >= 0) & (local < items.shape[0])
        grads = grads.at[jnp.where(here, local, items.shape[0])].add(
            sparse.grads.astype(jnp.float32), mode="drop")
    rows, state = update(items.astype(jnp.float32), grads, state, hyper)
    return store_rows(rows, items.dtype, _ids(items, scores), seed), state, d_bias


def label_scores(queries: Array, items: Array, targets: Array, scores: Scores) -> Array:
    """See `primitives.LabelScores`."""
    s, _ = _scores(queries, items, scores)
    return jnp.max(jnp.where(_ids(items, scores) == targets[:, None], s, -jnp.inf), axis=1)


def _candidates(items: Array, excluded: Excluded | None, scores: Scores, count: int) -> Array:
    """Whether a row may be counted or returned, bool `[N, V]`."""
    allowed = jnp.broadcast_to(_are_items(items, scores), (count, items.shape[0]))
    if excluded is None:
        return allowed
    local = excluded.item - scores.row_offset
    here = (local >= 0) & (local < items.shape[0])
    return allowed.at[excluded.query, jnp.where(here, local, items.shape[0])].set(
        False, mode="drop")


def rank_count(queries: Array, items: Array, s_y: Array, excluded: Excluded,
               scores: Scores) -> Array:
    """See `primitives.RankCount`."""
    s, _ = _scores(queries, items, scores)
    ahead = ~(s < s_y[:, None]) & _candidates(items, excluded, scores, queries.shape[0])
    return jnp.sum(ahead, axis=1, dtype=jnp.int32)


def top_k(queries: Array, items: Array, k: int, excluded: Excluded | None,
          scores: Scores) -> tuple[Array, Array]:
    """See `primitives.TopK`."""
    s, _ = _scores(queries, items, scores)
    s = jnp.where(_candidates(items, excluded, scores, queries.shape[0]), ordered(s), -jnp.inf)
    missing = max(0, k - items.shape[0])
    s = jnp.pad(s, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    best, where = jax.lax.top_k(s, k)
    ids = (where + scores.row_offset).astype(jnp.int32)
    return best, jnp.where(best == -jnp.inf, -1, ids)


def refuses(problem: Problem) -> str | None:
    """Never: whether the score matrix fits is the caller's affair."""
    del problem
    return None


BACKEND = Backend("reference", refuses, forward, item_grad, item_update, label_scores,
                  rank_count, top_k, partial(forward, with_moment=True), item_grad, item_update)
