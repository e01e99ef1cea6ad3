"""Where the rows of a step lie, of a table that keeps some of its rows on a device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.tables.unique import NO_ID

Array = jax.Array


class Places(NamedTuple):
    """The rows that a step reads, and the slots of a cache that hold them; of one device its own.

    rows: int32 `[K]`, numbers of rows of the whole table, ascending and distinct, then NO_ID.
    slots: int32 `[K]`, where in this device's arrays each of them is.
    """

    rows: Array
    slots: Array

    def find(self, rows: Array) -> Array:
        """Slots of `rows` int32 `[n]`, in any order; NO_ID for NO_ID, and for a row that is not
        among those of the step."""
        at = jnp.minimum(jnp.searchsorted(self.rows, rows), self.rows.size - 1)
        return jnp.where((self.rows[at] == rows) & (rows != NO_ID), self.slots[at], NO_ID)
