"""Sparse: a step touches the rows that it names; only those rows move.

They are fetched once, each distinct row once a device, differentiated as fetched, and updated in
place with their state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rec_jax.objectives.base import Ids
from rec_jax.tables import Table
from rec_jax.train.fetched import fetch_rows, rows_named, update_fetched
from rec_jax.train.mode import Answers, Array, Composed, Gradients, OpenTable, Request, Setting


class SparseCatalogue(Answers):
    """Answers from the rows that were fetched."""

    def __init__(self, setting: Setting, table: Table, shared: Mapping[str, Array],
                 each: Mapping[str, Array], ids: Mapping[str, Ids], composed: Composed) -> None:
        super().__init__(setting, table, composed)
        self._shared, self._each, self._ids = shared, each, ids

    def stored(self, name: str) -> Array:
        """See `TableCatalogue`."""
        ids = self._ids[name]
        rows = rows_named((self._shared if name in self._shared else self._each)[name], ids)
        return self._composed.in_step(rows, ids.ids)


def open_table(setting: Setting, name: str, table: Table, request: Request) -> OpenTable:
    """See `mode.Opener`."""
    fetched = fetch_rows(setting, name, table, request)

    def catalogue(shared: Any, each: Any, ids: Mapping[str, Ids],
                  composed: Composed) -> SparseCatalogue:
        return SparseCatalogue(setting, table, shared, each, {**ids, **request.shared}, composed)

    def close(gradients: Gradients) -> Table:
        to_rows = fetched.pull(gradients.parameters, gradients.slices)
        return update_fetched(setting, name, fetched, to_rows, gradients.hyper, gradients.seed)

    return OpenTable(fetched.shared, fetched.each, catalogue, close)
