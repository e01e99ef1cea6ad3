"""What a loss asks of a table whose vectors are made of more rows than their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rec_jax.objectives.base import Ids
from rec_jax.tables import Table
from rec_jax.train.mode import STORED, Answers, Array, Setting, TableCatalogue

Named = dict[str, dict[str, Ids]]
"""By table and name."""


class NodeCatalogue(Answers):
    """Answers from vectors that are made of rows which were fetched. vectors: those of a name."""

    def __init__(self, setting: Setting, table: Table, rows: TableCatalogue,
                 vectors: Callable[[str], Array]) -> None:
        super().__init__(setting, table, STORED)
        self._rows, self._vectors = rows, vectors

    @property
    def asked(self) -> Any:
        """See `TableCatalogue`."""
        return self._rows.asked

    def stored(self, name: str) -> Array:
        """See `TableCatalogue`."""
        return self._vectors(name)
