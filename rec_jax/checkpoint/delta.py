"""Deltas: of large arrays, only the rows that changed since the checkpoint before.

The plan is that of Check-N-Run (Eisenman et al., NSDI 2022): a full checkpoint now and then,
and between them the rows that training touched, with their optimizer state; quantised if asked.
A chain of exact deltas restores exactly. `stored` of a quantised one says what it loses: bf16
keeps 8 bits of each value, int8 has steps of 1/127 of the largest value of the row.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.checkpoint.layout import BLOCK_BYTES
from rec_jax.sizes import power_of_two

StoredAs = Literal["exact", "bfloat16", "int8"]


class UpdatedRows(NamedTuple):
    """Rows of an array `[V, ...]` that changed: a leaf of a delta.

    ids: int `[T]`, ascending; rows: `[T, ...]`; shape: of the whole array; scale: f32 `[T]` where
    the rows are int8 to be multiplied by it, else None; dtype: of the whole array.
    """

    ids: np.ndarray
    rows: np.ndarray
    shape: tuple[int, ...]
    dtype: str
    scale: np.ndarray | None = None


def updated_rows(array: Any, ids: np.ndarray, stored: StoredAs = "exact") -> UpdatedRows:
    """Rows `ids` of an array `[V, ...]` as a leaf of a delta; host memory: these rows.

    ids: int64 `[T]`, ascending. stored: applies to f32 matrices; other arrays stay exact.
    """
    shape, dtype = tuple(array.shape), np.dtype(array.dtype).name
    row_bytes = max(1, array.nbytes // shape[0])
    size = max(1, BLOCK_BYTES // row_bytes)
    rows = np.empty((len(ids), *shape[1:]), array.dtype)
    for first in range(0, len(ids), size):
        part = ids[first:first + size]
        # One shape of index for all blocks, so that the gather is compiled once.
        padded = np.pad(part, (0, min(size, power_of_two(len(ids))) - len(part)), mode="edge")
        rows[first:first + size] = np.asarray(_gather(array, padded))[:len(part)]
    if stored == "exact" or dtype != "float32" or len(shape) != 2:
        return UpdatedRows(ids, rows, shape, dtype)
    if stored == "bfloat16":
        return UpdatedRows(ids, rows.astype(jnp.bfloat16), shape, dtype)
    scale = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny) / np.float32(127)
    return UpdatedRows(ids, np.rint(rows / scale[:, None]).astype(np.int8), shape, dtype, scale)


@partial(jax.jit)
def _gather(array: jax.Array, ids: Any) -> jax.Array:
    return jnp.take(array, ids, axis=0)
