"""Rows that do not lie on the devices of a model: what of them is asked for is brought there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from rec_jax.checkpoint import ArraySource, CheckpointReader
from rec_jax.errors import InputError
from rec_jax.tables import RowMap


@dataclass(frozen=True, eq=False)
class RowsApart:
    """Rows `[V_padded, w]` that lie elsewhere. take: numbers of rows int64 `[n]` -> `[n, w]`;
    owner: what must not go as long as rows are taken."""

    shape: tuple[int, int]
    dtype: Any
    take: Callable[[np.ndarray], np.ndarray]
    owner: Any = None


def left_there(opened: CheckpointReader, item: str, table: str, like: jax.ShapeDtypeStruct,
               row_map: RowMap) -> RowsApart:
    """The rows of a table as they lie in item `item` of a checkpoint, row r that of the item r.

    like: their shape; row_map: from an item's id to its row there.

    Raises:
      InputError: the checkpoint has no such rows.
    """
    source = opened.items.get(item, {}).get(_path(table))
    if source is None or source.shape != like.shape:
        raise InputError(f"checkpoint {opened.name} does not fit: {item}{_path(table)} is missing "
                         f"or not {list(like.shape)}")

    def take(numbers: np.ndarray) -> np.ndarray:
        return _rows(source, np.asarray(row_map.rows(numbers)))

    return RowsApart((source.shape[0], source.shape[1]), source.dtype, take, opened)


def without_rows(opened: CheckpointReader, item: str, tables: Iterable[str]) -> CheckpointReader:
    """The checkpoint without the rows of those tables."""
    paths = set(map(_path, tables))
    return replace(opened, items={**opened.items, item: {
        path: source for path, source in opened.items.get(item, {}).items()
        if path not in paths}})


def _path(table: str) -> str:
    """Of a table's rows in an item of a checkpoint."""
    return f"['tables']['{table}']"


def _rows(source: ArraySource, rows: np.ndarray) -> np.ndarray:
    """`[n, w]`: rows int64 `[n]` in any order; each of the file's blocks is read once."""
    if len(rows) > 1 and (np.diff(rows) == 1).all():
        return source.read(int(rows[0]), int(rows[-1]) + 1)
    found = np.empty((len(rows), *source.shape[1:]), source.dtype)
    order = np.argsort(rows, kind="stable")
    edges = np.flatnonzero(np.diff(rows[order] // source.block)) + 1
    for part in np.split(order, edges) if len(order) else []:
        low, high = int(rows[part].min()), int(rows[part].max()) + 1
        found[part] = source.read(low, high)[rows[part] - low]
    return found
