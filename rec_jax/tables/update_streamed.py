"""Update a large table under the full softmax: the gradient exists one tile at a time.

The kernel's second pass finishes the gradient of a tile of rows, adds what the tile's rows got
as inputs of the encoder (tied embeddings), and takes the optimizer step in place. Inside
`shard_map` every device updates its own rows; queries travel, N x d numbers, never rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rec_jax.kernels import RowUpdate, SparseRows, Updated, softmax_item_update
from rec_jax.mesh import BOTH
from rec_jax.tables.gather import Shards, gather_all

Array = jax.Array


class Scored(NamedTuple):
    """What the loss of N positions leaves for the table; this device's share of each array.

    queries `[N, d]`; targets int32 `[N]`; loss, lse f32 `[N]`: of `softmax_loss`; loss_grad,
    lse_grad f32 `[N]`: their cotangents, weights and the division by their sum included;
    of_entropy: the entropy and its cotangent, where `softmax_entropy` was asked.
    """

    queries: Array
    targets: Array
    loss: Array
    lse: Array
    loss_grad: Array
    lse_grad: Array
    of_entropy: tuple[Array, Array] | None = None


def update_streamed(rows: Array, state: Any, scored: Scored, inputs: tuple[Array, Array] | None,
                    shards: Shards, update: RowUpdate, hyper: Any, *, num_items: int,
                    seed: Array | None = None, bias: Array | None = None,
                    logit_scale: float = 1.0, softcap: float | None = None,
                    first: int | Array = 0, part: int | None = None,
                    backend: str = "auto") -> Updated:
    """One optimizer step of every row; donate rows and state.

    Args:
      rows, state: this device's share, `[V / shards.pieces, ...]`.
      inputs: (ids int32 `[M]`, grads `[M, d]`) of this device's distinct input ids, or None
        where another table feeds the encoder.
      update, hyper, seed: row optimizer, its scalars, stochastic rounding of bf16 rows.
      bias: f32 `[V / shards.pieces]`, this device's share, or None. It is not changed: its
        gradient is returned, that of all queries, so that replicas agree.
      num_items, logit_scale, softcap, backend: as for `softmax_loss`.
      first: number of row 0, where `rows` are a part of a table that passes by one device.
      part: change so many rows at a time, with the bits of a table that passes by in such parts;
        on one device, without a bias.
    """
    if not shards.alone:
        scored = jax.tree.map(lambda x: jax.lax.all_gather(x, BOTH, tiled=True), scored)
    sparse = None if inputs is None else SparseRows(*gather_all(*inputs, shards))
    *known, of_entropy = scored

    def one(rows: Array, state: Any, first: int | Array) -> Updated:
        return softmax_item_update(
            rows, state, *known, update=update, of_entropy=of_entropy, hyper=hyper, sparse=sparse,
            seed=seed, bias=bias, logit_scale=logit_scale, softcap=softcap, num_items=num_items,
            axis_name=shards.axis, first=first, backend=backend)

    return one(rows, state, first) if part is None else _in_parts(one, rows, state, part)


def _in_parts(one: Callable[[Array, Any, int | Array], Updated], rows: Array, state: Any,
              part: int) -> Updated:
    """`one` of each part of so many rows; the last one may have fewer."""
    def moved(carry: tuple[Array, Any], first: int | Array, count: int) -> tuple[Array, Any]:
        old, old_state = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, count), carry)
        new = one(old, old_state, first)[:2]
        return jax.tree.map(lambda leaf, values: jax.lax.dynamic_update_slice_in_dim(
            leaf, values, first, 0), carry, new)

    total = rows.shape[0]
    part = min(part, total)
    whole = total // part
    carry = jax.lax.fori_loop(
        0, whole, lambda index, carry: moved(carry, index * part, part), (rows, state))
    if total % part:
        carry = moved(carry, whole * part, total % part)
    return Updated(carry[0], carry[1], None)
