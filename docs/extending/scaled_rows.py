"""A row source in one file: an item's vector is its row times a trained factor for each column.

    vector(i) = g * e_i,     score = h . (g * e_i) = (g * h) . e_i

A row source says how a stored row becomes a vector, and how a query is turned so that its product
with the stored row is that with the vector. It has its parameters among the encoder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

PATH = "rows/factor"


class ScaledRows(NamedTuple):
    """Fills what `rec_jax.model.rows.RowSource` offers. dim: d."""

    dim: int
    columns: int = 0  # fixed columns behind the trained ones

    @property
    def width(self) -> int:
        """Columns of a stored row."""
        return self.dim

    def compose(self, params: Mapping[str, Array], rows: Array) -> Array:
        """Stored rows `[..., d]` -> vectors `[..., d]`."""
        return rows * params[PATH].astype(rows.dtype)

    def expand(self, params: Mapping[str, Array], queries: Array) -> Array:
        """Queries `[..., d]` as stored rows are scored by."""
        return queries * params[PATH].astype(queries.dtype)

    def init_parameters(self, seed: int, scale: float) -> dict[str, Array]:
        """Factors of 1."""
        del seed, scale
        return {PATH: jnp.ones(self.dim)}
