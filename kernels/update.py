"""The backward pass over the table with the optimizer step inside: no gradient of V x d exists."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from . import dispatch
from .compat import materialise
from .primitives import Array, AxisName, Backend, RowUpdate, SparseRows
from .shards import align, check_arrays, score_rule
from .softmax import second_pass


class Updated(NamedTuple):
    """items: `[V, d]`, updated rows; state: their new state; d_bias: f32 `[V]`, None without one.

    The bias is small, so its gradient is returned and not applied.
    """

    items: Array
    state: Any
    d_bias: Array | None


def softmax_item_update(items: Array, state: Any, queries: Array, targets: Array, loss: Array,
                        lse: Array, loss_grad: Array, lse_grad: Array, *, update: RowUpdate,
                        of_entropy: tuple[Array, Array] | None = None, hyper: Any = None,
                        sparse: SparseRows | None = None, seed: Array | None = None,
                        bias: Array | None = None, logit_scale: float | Array = 1.0,
                        softcap: float | None = None, num_items: int | Array | None = None,
                        axis_name: AxisName | None = None, first: int | Array = 0,
                        backend: str | Backend = "auto") -> Updated:
    """Gradient of `softmax_loss` with respect to the rows, consumed tile by tile by `update`.

    For a training step: compute `loss` and `lse` with `softmax_loss` on `stop_gradient(items)`;
    get their cotangents by adding zeros to both and differentiating in those zeros; then call
    this under `jit` with `items` and `state` donated, and they are updated in place:

        def objective(params, zeros):
            queries = encode(params)
            loss, lse = softmax_loss(queries, stop_gradient(items), targets)
            loss, lse = loss + zeros[0], lse + zeros[1]
            return sum(weight * loss), (queries, loss, lse)

    Micro-batches need no accumulator: concatenate what each of them gives along N. Rows
    that are no items get gradient 0, but `update` sees them (weight decay acts on them too).

    Args:
      items: `[V, d]`, f32 or bf16, the rows that `softmax_loss` saw.
      state: pytree of arrays `[V, ...]`, the per-row state of `update`.
      queries: `[N, d]`; targets: int `[N]`; loss, lse: f32 `[N]`: inputs and results of
        `softmax_loss`.
      loss_grad, lse_grad: f32 `[N]`, their cotangents.
      of_entropy: the entropy f32 `[N]` that `softmax_entropy` gave besides, and its cotangent.
      update: row-wise optimizer step, see `RowUpdate`.
      hyper: pytree of scalars for `update`.
      sparse: gradients of some rows from elsewhere, added before `update` (tied embeddings).
      seed: uint32 `[]` for stochastic rounding of bf16 rows; None rounds to nearest.
      bias, logit_scale, softcap, num_items, axis_name, backend: as for `softmax_loss`. Inside
        `shard_map` all arguments but items, state and bias are equal on all shards, and on all
        data replicas of a shard (gather them first).
      first: global id of row 0, where `items` are a part of a table (`num_items` is then that of
        the whole table); not with `axis_name`.

    Raises:
      ValueError: wrong shapes or types, or a backend that cannot run.
    """
    op = "softmax_item_update" if of_entropy is None else "softmax_entropy_update"
    check_arrays(op, queries, items, targets, bias, softcap)
    named = {"loss": loss, "lse": lse, "loss_grad": loss_grad, "lse_grad": lse_grad}
    if of_entropy is not None:
        named |= dict(zip(("entropy", "entropy_grad"), of_entropy, strict=True))
    for name, array in named.items():
        if array.shape != targets.shape:
            raise ValueError(f"{op}: {name} has shape {array.shape}; expected {targets.shape}")
    if sparse is not None and sparse.grads.shape != (*sparse.ids.shape, items.shape[1]):
        raise ValueError(f"{op}: sparse.grads have shape {sparse.grads.shape}; expected "
                         f"{(*sparse.ids.shape, items.shape[1])}")
    problem = dispatch.describe(op, queries, items, bias=bias, softcap=softcap)
    chosen = dispatch.choose(problem, backend)
    # Where a table is one tile, XLA would compute the factors of the labels inside of what reads
    # them, and there their sum is rounded in another way than where it stands alone.
    side = materialise(second_pass(queries, loss, lse, loss_grad, lse_grad, softcap, of_entropy),
                       targets[0])
    items, targets, queries, lse, weight, label_weight, log_weight, bias, scale, ids, grads = align(
        items, targets, *side, bias, jnp.asarray(logit_scale, jnp.float32),
        *(sparse or (None, None)))
    sparse = None if sparse is None else SparseRows(ids, grads)
    rule = score_rule(items, scale, bias, num_items, softcap, axis_name, first)
    known = (queries, items, state, targets, lse, weight, label_weight, rule)
    given: Any = {"update": update, "hyper": hyper, "sparse": sparse, "seed": seed}
    if of_entropy is None:
        assert chosen.item_update is not None
        return Updated(*chosen.item_update(*known, **given))
    assert chosen.entropy_update is not None
    return Updated(*chosen.entropy_update(*known, **given, log_weight=log_weight))
