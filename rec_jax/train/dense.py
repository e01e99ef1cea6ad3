"""Dense: the rows are a parameter like the encoder's, with a gradient and optax's moments.

Rows that are stored in bf16 are a parameter in f32 as long as the step lasts: their gradient, and
what optax keeps of it, is f32, and only what is written back is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from rec_jax.objectives.base import Ids
from rec_jax.objectives.full_softmax import mean_of_rows
from rec_jax.tables import Table
from rec_jax.tables.on_mesh import full_entropy, full_softmax
from rec_jax.tables.update_dense import update_dense
from rec_jax.train.mode import (
    STORED,
    Answers,
    Array,
    Composed,
    Gradients,
    OpenTable,
    Request,
    Setting,
)


class DenseCatalogue(Answers):
    """Answers from all rows, which are differentiated."""

    def __init__(self, setting: Setting, table: Table, parameters: Any, ids: Mapping[str, Ids],
                 composed: Composed = STORED) -> None:
        """parameters: as `Table.parameters`."""
        super().__init__(setting, table, composed)
        trained = parameters["rows"] if table.trains_bias else parameters
        self._bias = parameters["bias"] if table.trains_bias else table.bias
        fixed = table.rows[:, trained.shape[1]:].astype(jnp.float32)
        stored = jnp.concatenate([trained, fixed], axis=1) if table.fixed else trained
        self._stored = composed.in_step(stored, table.row_map.ids(jnp.arange(len(stored))))
        self._compute, self._ids = setting.compute, ids

    def softmax(self, queries: Array, targets: Array, *, scale: float = 1.0,
                softcap: float | None = None, backend: str = "auto"
                ) -> tuple[Array, Array]:
        """See `Catalogue`."""
        table = self._table
        return full_softmax(
            self._mesh, queries, self._vectors.astype(self._compute), table.row_map.rows(targets),
            num_items=table.num_items, over=table.over, bias=self._bias, logit_scale=scale,
            softcap=softcap, backend=backend)

    def entropy(self, queries: Array, targets: Array, *, scale: float = 1.0,
                softcap: float | None = None, backend: str = "auto"
                ) -> tuple[Array, Array, Array]:
        """See `Catalogue`."""
        table = self._table
        return full_entropy(
            self._mesh, queries, self._vectors.astype(self._compute), table.row_map.rows(targets),
            num_items=table.num_items, over=table.over, bias=self._bias, logit_scale=scale,
            softcap=softcap, backend=backend)

    @property
    def _vectors(self) -> Array:
        """Those of all rows, `[V_padded, d]`."""
        return self._composed.vectors(self._stored)

    def stored(self, name: str) -> Array:
        """See `TableCatalogue`."""
        return take_rows(self._stored, self._table.row_map.rows(self._ids[name].ids))

    def bias(self, name: str) -> Array | None:
        """See `Catalogue`."""
        if self._bias is None:
            return None
        return take_rows(self._bias, self._table.row_map.rows(self._ids[name].ids))

    def mean_row(self) -> Array:
        """See `Catalogue`."""
        return mean_of_rows(self._vectors, self._table.num_items)


def open_table(setting: Setting, name: str, table: Table, request: Request) -> OpenTable:
    """See `mode.Opener`."""
    del name

    def catalogue(parameters: Any, nothing: Any, each: Mapping[str, Ids],
                  composed: Composed) -> DenseCatalogue:
        del nothing
        return DenseCatalogue(setting, table, parameters, {**each, **request.shared}, composed)

    def close(gradients: Gradients) -> Table:
        updates, bias = gradients.updates, table.bias
        if table.trains_bias:
            updates, bias = updates["rows"], optax.apply_updates(table.bias, updates["bias"])
        updates = jnp.pad(updates, ((0, 0), (0, table.fixed)))
        return table.replace(bias=bias, rows=update_dense(
            table.rows, updates, seed=gradients.seed, row_map=table.row_map))

    return OpenTable(table.parameters, (), catalogue, close)


def take_rows(rows: Array, numbers: Array) -> Array:
    """Rows of all `numbers`, `[..., d]`; NaN where there is no such row."""
    # A negative one would count from the end; past the end it gives NaN, as all bad ids do.
    return jnp.take(rows, jnp.where(numbers < 0, rows.shape[0], numbers), axis=0)
