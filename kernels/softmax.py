"""Exact softmax loss over a whole catalogue, streamed: no N x V array, forward or backward.

For one query h with label y and scores s_j, the gradient of lse with respect to h is
sum_j p_j w_j: the forward output of attention with query h and keys = values = the table. So
the forward fold also yields the gradient of the queries, and the backward pass is one fold
that finishes the gradient of each tile of rows in turn. See `docs/kernels.md`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import dispatch, entropy
from .compat import vary, varying_axes
from .primitives import LEAST, Array, AxisName, Backend, Partials
from .shards import align, check_arrays, pick_rows, place, score_rule


@dataclass(frozen=True)
class _Static:
    """What a trace depends on besides the arrays. num_items is None where it is traced; entropy:
    it is asked for as well."""

    backend: Backend
    softcap: float | None
    num_items: int | None
    axis_name: AxisName | None
    entropy: bool


class _Residuals(NamedTuple):
    """expected: f32 `[N, d]`, sum over j != y of p_j c'_j w_j; entropy: f32 `[N]`, and its_rows:
    f32 `[N, d]`, the same sum with the factor d H / d s_j in the place of p_j."""

    queries: Array
    items: Array
    targets: Array
    bias: Array | None
    scale: Array
    num_items: Array | None
    lse: Array
    loss: Array
    expected: Array
    entropy: Array | None
    its_rows: Array | None


def softmax_loss(queries: Array, items: Array, targets: Array, *, bias: Array | None = None,
                 logit_scale: float | Array = 1.0, softcap: float | None = None,
                 num_items: int | Array | None = None, axis_name: AxisName | None = None,
                 backend: str | Backend = "auto") -> tuple[Array, Array]:
    """Cross-entropy of each query against every item, and the log-normaliser.

        s_ij   = logit_scale * (queries_i . items_j) + bias_j, then softcap if there is one
        lse_i  = log sum_j exp(s_ij)
        loss_i = lse_i - s_i(targets_i)

    Differentiable in queries, items, bias and logit_scale, for any cotangents of both results.
    Nothing is reduced here: weights and ignored positions are the cotangent of `loss` (multiply
    by a weight and sum), z-loss is the cotangent of `lse`. Products are accumulated in f32; the
    label is carried apart from the sums, so that small losses and their gradients are exact.

    Inside `shard_map`, with the rows sharded over the mesh axis `axis_name`: queries and
    targets are equal on all shards of that axis (they may be sharded over others), results are
    those of the whole table, and communication is O(N d), whatever V is. Gradients inside
    follow the types of `shard_map(check_vma=True)`, which sums those of replicated arguments;
    with `check_vma=False`, differentiate inside, and sum over the other axes yourself.

    Args:
      queries: `[N, d]`, f32 or bf16.
      items: `[V, d]`, f32 or bf16; this shard's rows with `axis_name`.
      targets: int `[N]`, global ids. The loss of an id that is no item is inf.
      bias: `[V]` or None; -inf takes an item out, with softcap too.
      logit_scale: a number or a traced f32 scalar.
      softcap: scores become softcap * tanh(score / softcap).
      num_items: rows from here on (global id) pad the table and are no items. Default: all are.
        `primitives.py` says what such rows, NaN and inf do.
      axis_name: mesh axis, or axes, over which the rows are sharded, inside `shard_map`.
      backend: "auto", a name of `dispatch.BACKENDS`, or a `Backend`.

    Returns:
      loss and lse, f32 `[N]`.

    Raises:
      ValueError: wrong shapes or types, or a backend that cannot run.
    """
    loss, lse, _ = _asked("softmax_loss", queries, items, targets, bias, logit_scale, softcap,
                          num_items, axis_name, backend)
    return loss, lse


def softmax_entropy(queries: Array, items: Array, targets: Array, *, bias: Array | None = None,
                    logit_scale: float | Array = 1.0, softcap: float | None = None,
                    num_items: int | Array | None = None, axis_name: AxisName | None = None,
                    backend: str | Backend = "auto") -> tuple[Array, Array, Array]:
    """`softmax_loss`, and the entropy f32 `[N]` of each query's softmax, in the same two passes.

    Arguments, results and gradients are as there; `entropy.py` has the formulas. A query without
    any item has the entropy 0.
    """
    loss, lse, found = _asked("softmax_entropy", queries, items, targets, bias, logit_scale,
                              softcap, num_items, axis_name, backend)
    assert found is not None
    return loss, lse, found


def _asked(op: str, queries: Array, items: Array, targets: Array, bias: Array | None,
           logit_scale: float | Array, softcap: float | None, num_items: int | Array | None,
           axis_name: AxisName | None, backend: str | Backend
           ) -> tuple[Array, Array, Array | None]:
    """Loss, lse and, where `op` asks for it, the entropy."""
    check_arrays(op, queries, items, targets, bias, softcap)
    problem = dispatch.describe(op, queries, items, bias=bias, softcap=softcap)
    total, _ = place(items, num_items, axis_name)
    fixed = total if isinstance(total, int) else None
    counted = None if isinstance(total, int) else total
    static = _Static(dispatch.choose(problem, backend), softcap, fixed, axis_name,
                     op == "softmax_entropy")
    scale = jnp.asarray(logit_scale, jnp.float32)
    # Replicated arguments are typed as varying where the queries are: the transpose of that
    # step sums their gradients over the data axes.
    axes = varying_axes(queries, targets)
    rows_axes = axes | varying_axes(items)
    return _loss(static, vary(queries, axes), vary(items, rows_axes), vary(targets, axes),
                 None if bias is None else vary(bias, rows_axes), vary(scale, axes),
                 counted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(static: _Static, queries: Array, items: Array, targets: Array, bias: Array | None,
          scale: Array, num_items: Array | None) -> tuple[Array, Array, Array | None]:
    merged = _fold(static, queries, items, targets, bias, scale, num_items, False)
    loss, lse = finish(merged)
    return loss, lse, entropy.value(merged, loss, lse) if static.entropy else None


def _fold(static: _Static, queries: Array, items: Array, targets: Array, bias: Array | None,
          scale: Array, num_items: Array | None, with_expected: bool) -> Partials:
    count = static.num_items if num_items is None else num_items
    items, queries, targets, bias, scale = align(items, queries, targets, bias, scale)
    rule = score_rule(items, scale, bias, count, static.softcap, static.axis_name)
    fold = static.backend.entropy_forward if static.entropy else static.backend.forward
    assert fold is not None
    parts = fold(queries, items, targets, rule, with_expected=with_expected)
    return merge(parts, static.axis_name)


def merge(parts: Partials, axis_name: AxisName | None) -> Partials:
    """Partial sums of all shards of `axis_name` brought to one reference and added: O(N d)."""
    if axis_name is None:
        return parts
    lowest = jnp.finfo(jnp.float32).min
    # The reference of a shard without candidates means nothing and must not hide the others'.
    m = jax.lax.pmax(jnp.where(parts.l_minus > 0, parts.m, lowest), axis_name)
    factor = jnp.where(parts.l_minus > 0, jnp.exp(parts.m - m), 0.0)

    def added(sums: Array | None) -> Array | None:
        return None if sums is None else jax.lax.psum(
            sums * factor.reshape(-1, *[1] * (sums.ndim - 1)), axis_name)

    # A moment counts from the reference, which moves by so much.
    by = jnp.maximum(parts.m - m, LEAST)
    l_moment = None if parts.l_moment is None else parts.l_moment + by * parts.l_minus
    o_moment = None if parts.o_moment is None or parts.o_minus is None else (
        parts.o_moment + by[:, None] * parts.o_minus)
    l_minus = added(parts.l_minus)
    assert l_minus is not None
    # One shard at most has the label. A maximum might lose its score if that is NaN, a sum cannot.
    here = parts.s_y != -jnp.inf
    s_y, found = jax.lax.psum((jnp.where(here, parts.s_y, 0.0), here.astype(jnp.float32)),
                              axis_name)
    return Partials(m, l_minus, added(parts.o_minus), jnp.where(found > 0, s_y, -jnp.inf),
                    added(l_moment), added(o_moment))


def finish(merged: Partials) -> tuple[Array, Array]:
    """Loss and lse, f32 `[N]`, of the sums over the whole table."""
    s_y = merged.s_y
    # lse of all items but the label; there may be none, and `m` then means nothing.
    others = jnp.where(merged.l_minus == 0, -jnp.inf, jnp.log(merged.l_minus) + merged.m)
    loss = jnp.where(s_y == -jnp.inf, jnp.inf, jax.nn.softplus(others - s_y))
    lost = jnp.isnan(others) | jnp.isnan(s_y) | (s_y == jnp.inf)
    return (jnp.where(lost, jnp.nan, loss),
            jnp.where(lost, jnp.nan, jnp.logaddexp(others, s_y)))


class Side(NamedTuple):
    """What the gradient of the rows needs of the queries; see `primitives.ItemGrad`. log_weight:
    None without an entropy."""

    queries: Array
    lse: Array
    weight: Array
    label_weight: Array
    log_weight: Array | None


def second_pass(queries: Array, loss: Array, lse: Array, g: Array, z: Array,
                softcap: float | None, of_entropy: tuple[Array, Array] | None = None) -> Side:
    """The queries as the second pass takes them: those without a cotangent hold no NaN, and
    exp(s - lse) is 0 for them, and for those that have no item.

    of_entropy: the entropy f32 `[N]` and its cotangent, where there is one.
    """
    live = (g != 0) | (z != 0)
    label, weight, log_weight = _label_factors(loss, g, z), g + z, None
    if of_entropy is not None:
        found, e = of_entropy
        live |= e != 0
        label += entropy.label_factors(loss, found, e)
        weight -= e * found
        log_weight = jnp.where(live, -e, 0.0)
    return Side(jnp.where(live[:, None], queries, 0),
                jnp.where(live & (lse != -jnp.inf), lse, jnp.inf),
                jnp.where(live, weight, 0.0),
                jnp.where(live, label * _slope(loss, lse, softcap), 0.0), log_weight)


def _label_factors(loss: Array, g: Array, z: Array) -> Array:
    """d / d score of the label: -g (1 - p_y) + z p_y, exact as p_y -> 1. f32 `[N]`.

    0 for a label that is no item.
    """
    return jnp.where(loss == jnp.inf, 0.0, g * jnp.expm1(-loss) + z * jnp.exp(-loss))


def _slope(loss: Array, lse: Array, softcap: float | None) -> Array | float:
    """c' of the labels."""
    if softcap is None:
        return 1.0
    s_y = jnp.where(jnp.isfinite(loss), lse - loss, 0.0)
    return 1 - jnp.square(s_y / softcap)


def _loss_fwd(static: _Static, queries: Array, items: Array, targets: Array, bias: Array | None,
              scale: Array, num_items: Array | None) -> Any:
    merged = _fold(static, queries, items, targets, bias, scale, num_items, True)
    loss, lse = finish(merged)
    found = its_rows = None
    if static.entropy:
        found = entropy.value(merged, loss, lse)
        its_rows = _share(merged, loss) * entropy.rows(merged, found)
    residuals = _Residuals(queries, items, targets, bias, scale, num_items, lse, loss,
                           expected_rows(merged, loss), found, its_rows)
    return (loss, lse, found), residuals


def _loss_bwd(static: _Static, kept: _Residuals,
              cotangents: tuple[Array, Array, Array | None]) -> Any:
    g, z, e = cotangents
    of_entropy = None if kept.entropy is None or e is None else (kept.entropy, e)
    side = second_pass(kept.queries, kept.loss, kept.lse, g, z, static.softcap, of_entropy)
    count = static.num_items if kept.num_items is None else kept.num_items
    items, queries, targets, bias, scale, lse, weight, label_weight, log_weight = align(
        kept.items, side.queries, kept.targets, kept.bias, kept.scale, *side[1:])
    rule = score_rule(items, scale, bias, count, static.softcap, static.axis_name)
    label_rows = pick_rows(items, targets, rule.row_offset, static.axis_name)
    d_raw = query_grad(side._replace(weight=g + z), kept.expected, label_rows)
    if e is not None and kept.its_rows is not None:
        d_raw += _weighted(e, kept.its_rows)
    d_scale = jnp.sum(side.queries.astype(jnp.float32) * d_raw)
    d_queries = (kept.scale * d_raw).astype(kept.queries.dtype)
    known = (queries, items, targets, lse, weight, label_weight, rule)
    if static.entropy:
        assert static.backend.entropy_grad is not None
        d_items, d_bias = static.backend.entropy_grad(*known, log_weight=log_weight)
    else:
        assert static.backend.item_grad is not None
        d_items, d_bias = static.backend.item_grad(*known)
    if kept.bias is not None and d_bias is not None:
        d_bias = d_bias.astype(kept.bias.dtype)
    return d_queries, d_items.astype(kept.items.dtype), None, d_bias, d_scale, None


def expected_rows(merged: Partials, loss: Array) -> Array:
    """f32 `[N, d]`: sum over j != y of p_j c'_j w_j."""
    assert merged.o_minus is not None
    return merged.o_minus * _share(merged, loss)


def _share(merged: Partials, loss: Array) -> Array:
    """f32 `[N, 1]`: what makes probabilities of sums over j != y of exp(s_j - m)."""
    return (-jnp.expm1(-loss) / jnp.where(merged.l_minus > 0, merged.l_minus, 1.0))[:, None]


def query_grad(side: Side, expected: Array, label_rows: Array) -> Array:
    """f32 `[N, d]`: gradient of the queries, but for the factor `scale`.

    expected: of `expected_rows`; label_rows: f32 `[N, d]`, 0 where a label is no row.
    """
    return _weighted(side.weight, expected) + _weighted(side.label_weight, label_rows)


def _weighted(weights: Array, rows: Array) -> Array:
    """Rows `[N, d]` times weights `[N]`; 0 where the weight is, whatever the row holds."""
    return jnp.where(weights[:, None] == 0, 0.0, weights[:, None] * rows)


_loss.defvjp(_loss_fwd, _loss_bwd)
