"""A table that does not train: it answers as ever, and stays as it is.

What it answers is a constant of the loss. How it is opened is that of its own mode, so a frozen
table is scored, read and cut over the mesh as it would be if it trained; what the step then makes
of its gradients is not computed, since nothing asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from rec_jax.objectives.base import Ids
from rec_jax.tables import Table
from rec_jax.train.mode import Composed, Gradients, OpenTable, TableCatalogue


def held(opened: OpenTable, table: Table) -> OpenTable:
    """`opened` of `table`, for a step that leaves the table's bits."""
    def catalogue(nothing: Any, part: Any, ids: Mapping[str, Ids], composed: Composed
                  ) -> TableCatalogue:
        del nothing
        constant = jax.lax.stop_gradient((opened.parameters, part))
        return opened.catalogue(*constant, ids, composed)

    def close(gradients: Gradients) -> Table:
        del gradients
        return table

    return OpenTable((), opened.slices, catalogue, close)
