"""Full softmax over a table that lies in host memory or on a disk and passes by in parts.

    ask      queries and labels of the step, and how the loss scores them
    fold     part by part: what the softmax is, of these queries
    step     the step itself, whose loss is answered from that; the encoder moves
    update   part by part: the rows' gradient, and their optimizer's step

The step is that of `rec_jax.train.streamed`, cut where it passes over the table. What it is given
and what it leaves travel with the table's rows (`rec_jax.train.passing`). The encoder's forward
pass is computed twice, so that no step keeps more of it than one micro-batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from rec_jax.kernels import Folded, fold_part, no_part
from rec_jax.tables import ITEMS, row_optimizer
from rec_jax.tables.gather import Shards
from rec_jax.tables.places import Places
from rec_jax.tables.update_streamed import update_streamed
from rec_jax.tier.passing import PassingTable
from rec_jax.train.mode import Array, Batch, Setting
from rec_jax.train.passing import Left, Nothing
from rec_jax.train.state import TrainState
from rec_jax.train.step import step_program
from rec_jax.train.streamed import Asked


class PassingStep:
    """A `Step` whose table of items passes by; the other arguments are those of its parts."""

    def __init__(self, setting: Setting, optimizer: optax.GradientTransformation,
                 table: PassingTable, **settings: Any) -> None:
        """settings: see `rec_jax.train.step.step_program`."""
        self._table = table
        self._ask = jax.jit(step_program(setting, optimizer, asks=True, **settings))
        self._step = jax.jit(step_program(setting, optimizer, **settings), donate_argnums=0)
        own, num_items = row_optimizer(setting.tables[ITEMS].optimizer).update, table.num_items

        @functools.partial(jax.jit, donate_argnums=0)
        def fold(folded: Folded, rows: Array, first: Array, asked: Asked) -> Folded:
            return jax.lax.map(lambda each: fold_part(
                each[0], each[1], rows, each[2], first=first, num_items=num_items,
                **asked.scoring), (folded, asked.queries, asked.targets))

        @functools.partial(jax.jit, donate_argnums=0)
        def update(leaves: tuple[Array, Any], first: Array, left: Left) -> Any:
            return update_streamed(
                *leaves, left.scored, left.joined, Shards(), own, left.hyper,
                num_items=num_items, seed=left.seed, first=first, **left.asked.scoring)[:2]

        self._fold, self._update = fold, update

    def __call__(self, state: TrainState, batch: Batch, places: Mapping[str, Places] | None = None
                 ) -> tuple[TrainState, Any]:
        """See `Step`."""
        (asked,) = self._ask(_with(state, Nothing()), batch, places or {})[ITEMS]
        folded = jax.vmap(no_part)(asked.queries)
        for first, rows in self._table.parts():
            folded = jax.block_until_ready(folded)  # or parts pile up faster than they are folded
            folded = self._fold(folded, rows, first, asked)
        state, metrics = self._step(_with(state, folded), batch, places or {})
        rest, structure = state.items.passing, jax.tree.structure(state.items.state)
        state = _with(state, None)
        if isinstance(rest, Left):  # a frozen table leaves nothing

            def step(first: int, leaves: list[Array]) -> list[Array]:
                rows, *others = leaves
                return jax.tree.leaves(self._update(
                    (rows, jax.tree.unflatten(structure, others)), first, rest))

            self._table.update(step)
        return state, metrics


def _with(state: TrainState, passing: Any) -> TrainState:
    return state._replace(tables={**state.tables, ITEMS: state.items.replace(passing=passing)})
