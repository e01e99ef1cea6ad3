"""The gradient of an entropy, added in the pass that updates a streamed table.

The softmax's own gradient of a tile is the kernel's; that of the entropy needs the tile's rows and
what is added to their scores (`rec_jax.kernels.entropy`). The latter travels with the optimizer's
state as one more column, so that it is cut as the rows are, and the row optimizer's `update` gets
the sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from rec_jax.kernels.entropy import EntropySide, entropy_grad, offsets
from rec_jax.kernels.primitives import RowUpdate
from rec_jax.tables.table import Table

Array = jax.Array


class WithOffsets(NamedTuple):
    """Row state with what is added to scores. state: the row optimizer's; offset: f32
    `[V_padded]`, -inf where a row is no item."""

    state: Any
    offset: Array


def with_offsets(table: Table) -> Table:
    """The table as the update of `adding_entropy` takes it."""
    return table.replace(state=WithOffsets(
        table.state, offsets(table.rows, table.bias, table.num_items)))


def without_offsets(table: Table) -> Table:
    """The inverse of `with_offsets`."""
    return table.replace(state=table.state.state)


def adding_entropy(update: RowUpdate, logit_scale: float, softcap: float | None) -> RowUpdate:
    """A row optimizer's `update` whose gradients have that of the entropies added; its `hyper` is
    (that of `update`, an `EntropySide` of all queries)."""
    def both(rows: Array, grads: Array, state: WithOffsets, hyper: tuple[Any, EntropySide]
             ) -> tuple[Array, WithOffsets]:
        own, side = hyper
        grads = grads + entropy_grad(rows, state.offset, side, logit_scale, softcap)
        rows, kept = update(rows, grads, state.state, own)
        return rows, WithOffsets(kept, state.offset)

    return both
