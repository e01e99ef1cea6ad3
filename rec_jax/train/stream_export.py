"""Rows of a stream's tables as an export, in the formats of `rec_jax.inference.export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from rec_jax import files
from rec_jax.data.arrays import chunks
from rec_jax.inference.blocks import BLOCK
from rec_jax.inference.export import ABOUT
from rec_jax.inference.export_formats import WRITERS
from rec_jax.jsons import dumps
from rec_jax.tables import Table
from rec_jax.tables.new_rows import rows_at


def write_rows(out: Path | str, ids: pl.Series, table: Table, rows: np.ndarray, *, run: str,
               step: int, what: str = "items", format: str = "npy") -> None:
    """Write the rows int64 `[n]` of a table, whose ids are text `[n]`, as a new export.

    Raises:
      InputError: `out` exists.
    """
    dim = table.rows.shape[1]
    blocks = (rows_at(table, rows[first:last]) for first, last in chunks(len(rows), BLOCK))
    with files.atomic_folder(out) as folder:
        WRITERS[format](folder, ids.alias("id"), blocks, dim, None)
        (folder / ABOUT).write_text(dumps({
            "what": what, "format": format, "count": len(ids), "dim": dim, "dtype": "f32",
            "run": run, "step": step, "dataset": "stream"}, indent=1) + "\n")
