"""The mode of a table that passes by a device in parts: streamed, cut where it reads the table.

What a step is given of the table's parts and what it leaves for their update travel with the rows
(`Table.passing`); `rec_jax.train.passing_step` makes the parts pass by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.kernels import loss_of_parts
from rec_jax.objectives.base import Ids
from rec_jax.tables import Hyper, Table
from rec_jax.tables.update_streamed import Scored
from rec_jax.train.fetched import fetch_rows
from rec_jax.train.mode import Array, Composed, Gradients, OpenTable, Request, Setting
from rec_jax.train.streamed import Asked, StreamedCatalogue, left


class Nothing(NamedTuple):
    """No part has passed by yet: the loss is traced for what it asks, and its value means
    nothing."""


class Left(NamedTuple):
    """What a step leaves for the update of all rows.

    joined: numbers of the rows that it named and their gradients, or None; scored: of all
    positions; hyper, seed: see `Gradients`; asked: how the loss scored.
    """

    joined: tuple[Array, Array] | None
    scored: Scored
    hyper: Hyper
    seed: Array
    asked: Asked


class PassingCatalogue(StreamedCatalogue):
    """Answers from what the parts gave, one `Folded` a micro-batch."""

    def __init__(self, setting: Setting, table: Table, parts: Mapping[str, Any],
                 shared: Mapping[str, Array], ids: Mapping[str, Ids], composed: Composed) -> None:
        super().__init__(setting, table, parts, shared, ids, composed)
        self._folded = parts["folded"]

    def _answers(self, names: tuple[str, ...], queries: Array, targets: Array, scale: float,
                 softcap: float | None, backend: str) -> tuple[Array, ...]:
        """See `StreamedCatalogue`."""
        if "entropy" in names:
            raise InputError("a table that passes by in parts gives no entropy; expected "
                             "table.placement = 'device'")
        if isinstance(self._folded, Nothing):
            zeros = jnp.zeros(targets.shape, jnp.float32)
            return zeros, zeros
        return loss_of_parts(queries, self._folded, logit_scale=scale, softcap=softcap)

    def top_k(self, queries: Array, k: int, exclude: Array | None = None) -> tuple[Array, Array]:
        """See `Catalogue`."""
        raise InputError("a table that passes by in parts is not searched in a step; expected "
                         "table.placement = 'device'")


def open_table(setting: Setting, name: str, table: Table, request: Request) -> OpenTable:
    """See `mode.Opener`; of a table whose `passing` is `Nothing`, or `Folded` of each micro-batch
    `[A, ...]`, in whose place it has `Left` when it is closed."""
    fetched = None if request.empty else fetch_rows(setting, name, table, request)
    zeros = jnp.zeros(request.positions, jnp.float32)
    slices = {"each": {} if fetched is None else fetched.each, "folded": table.passing,
              "zeros": {"loss": zeros, "lse": zeros}}

    def catalogue(shared: Any, parts: Any, ids: Mapping[str, Ids],
                  composed: Composed) -> PassingCatalogue:
        return PassingCatalogue(setting, table, parts, shared, {**ids, **request.shared}, composed)

    def close(gradients: Gradients) -> Table:
        joined, asked, scored = left(fetched, gradients)
        return table.replace(passing=Left(joined, scored, gradients.hyper, gradients.seed, asked))

    return OpenTable({} if fetched is None else fetched.shared, slices, catalogue, close)
