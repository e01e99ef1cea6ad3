"""The softmax over a table whose rows pass by in parts: what is carried from one to the next.

A table that does not lie on the device comes in parts, one after the other. Each of them is folded
as the shard of a mesh is (`softmax.py`), and joined to what those before it gave: O(N d) numbers
are carried, whatever V is. Parts are joined in their order and by one rule for all backends, so
that the result depends on how many rows a part has, and not on where the parts come from.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import dispatch
from .compat import materialise
from .primitives import Array, Backend, Partials
from .rows import gather_rows
from .shards import check_arrays, score_rule
from .softmax import expected_rows, finish, query_grad, second_pass

LOWEST = jnp.finfo(jnp.float32).min


class Folded(NamedTuple):
    """What is known of the softmax of N queries after some parts; all f32.

    sums: of `primitives.Partials`, with `o_minus`.
    label_rows: `[N, d]`, the row of each label; 0 where no part had it so far.
    """

    sums: Partials
    label_rows: Array


def no_part(queries: Array) -> Folded:
    """What is known of queries `[N, d]` before the first part."""
    count = queries.shape[0]
    zeros = jnp.zeros(queries.shape, jnp.float32)
    return Folded(Partials(jnp.full(count, LOWEST), jnp.zeros(count), zeros,
                           jnp.full(count, -jnp.inf)), zeros)


def fold_part(before: Folded, queries: Array, items: Array, targets: Array, *,
              first: int | Array, num_items: int | Array, logit_scale: float | Array = 1.0,
              softcap: float | None = None, backend: str | Backend = "auto") -> Folded:
    """`before`, and one more part of the table; not differentiable, see `loss_of_parts`.

    Args:
      before: of the parts in front of this one, see `no_part`.
      queries: `[N, d]`; targets: int `[N]`, global ids.
      items: `[T, d]`, the rows from the global id `first` on.
      num_items: of the whole table; the other arguments are those of `softmax_loss`.

    Raises:
      ValueError: wrong shapes or types, or a backend that cannot run.
    """
    check_arrays("softmax_loss", queries, items, targets, None, softcap)
    problem = dispatch.describe("softmax_loss", queries, items, bias=None, softcap=softcap)
    chosen = dispatch.choose(problem, backend)
    scale = jnp.asarray(logit_scale, jnp.float32)
    rule = score_rule(items, scale, None, num_items, softcap, None, first)
    assert chosen.forward is not None
    sums = chosen.forward(queries, items, targets, rule, with_expected=True)
    # What XLA fuses it may round in another way: a join is computed alone, wherever it stands.
    before, sums = materialise((before, sums), targets[0])
    local = targets - first
    here = (local >= 0) & (local < items.shape[0])
    rows = gather_rows(items, jnp.where(here, local, -1)).astype(jnp.float32)
    joined = Folded(_joined(before.sums, sums), jnp.where(here[:, None], rows, before.label_rows))
    return materialise(joined, targets[0])


def _joined(before: Partials, new: Partials) -> Partials:
    """Sums over the rows of both. A reference without candidates means nothing and must not hide
    the other one, as in `softmax.merge`."""
    assert before.o_minus is not None and new.o_minus is not None
    m = functools.reduce(jnp.maximum, (jnp.where(part.l_minus > 0, part.m, LOWEST)
                                       for part in (before, new)))
    old, add = (jnp.where(part.l_minus > 0, jnp.exp(part.m - m), 0.0) for part in (before, new))
    return Partials(m, before.l_minus * old + new.l_minus * add,
                    before.o_minus * old[:, None] + new.o_minus * add[:, None],
                    jnp.where(before.s_y != -jnp.inf, before.s_y, new.s_y))


def loss_of_parts(queries: Array, folded: Folded, *, logit_scale: float | Array = 1.0,
                  softcap: float | None = None) -> tuple[Array, Array]:
    """`softmax_loss` of queries whose table has passed by: loss and lse, f32 `[N]`.

    Differentiable in the queries, for any cotangents of both; `softmax_item_update` makes the
    gradient of the rows, part by part.
    """
    return _loss(softcap, queries, jax.lax.stop_gradient(folded),
                 jnp.asarray(logit_scale, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(softcap: float | None, queries: Array, folded: Folded, scale: Array
          ) -> tuple[Array, Array]:
    del queries, scale
    return finish(folded.sums)


def _loss_fwd(softcap: float | None, queries: Array, folded: Folded, scale: Array
              ) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    loss, lse = finish(folded.sums)
    expected = expected_rows(folded.sums, loss)
    return (loss, lse), (queries, folded.label_rows, scale, loss, lse, expected)


def _loss_bwd(softcap: float | None, kept: tuple[Array, ...], cotangents: tuple[Array, Array]
              ) -> tuple[Array, Folded, Array]:
    queries, label_rows, scale, loss, lse, expected = kept
    side = second_pass(queries, loss, lse, *cotangents, softcap)
    d_raw = query_grad(side, expected, label_rows)
    # Nobody differentiates in what was folded, nor in the scale.
    count = jnp.zeros_like(loss)
    zeros = jnp.zeros_like(label_rows)
    return ((scale * d_raw).astype(queries.dtype),
            Folded(Partials(count, count, zeros, count), zeros), jnp.zeros_like(scale))


_loss.defvjp(_loss_fwd, _loss_bwd)


def softmax_in_parts(queries: Array, items: Array, targets: Array, *, part: int,
                     num_items: int | Array, logit_scale: float | Array = 1.0,
                     softcap: float | None = None, backend: str | Backend = "auto"
                     ) -> tuple[Array, Array]:
    """`softmax_loss` over a table that is there, with the bits of one that passes by in parts of
    `part` rows. Differentiable in the queries alone."""
    held, total = jax.lax.stop_gradient((queries, items)), items.shape[0]
    fold = functools.partial(fold_part, targets=targets, num_items=num_items,
                             logit_scale=logit_scale, softcap=softcap, backend=backend)
    part = min(part, total)
    whole = total // part

    def one(index: Array, folded: Folded) -> Folded:
        rows = jax.lax.dynamic_slice_in_dim(held[1], index * part, part)
        return fold(folded, held[0], rows, first=index * part)

    folded = jax.lax.fori_loop(0, whole, one, no_part(queries))
    if total % part:
        folded = fold(folded, held[0], held[1][whole * part:], first=whole * part)
    return loss_of_parts(queries, folded, logit_scale=logit_scale, softcap=softcap)
