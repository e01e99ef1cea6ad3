"""A leaf of a state that is no array in memory, and is written and filled in ranges of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rec_jax.checkpoint.layout import row_nbytes


@dataclass(frozen=True, eq=False)
class RowRanges:
    """An array `[V, ...]` that somebody keeps elsewhere.

    read: (first, last) -> rows `[last - first, ...]` that are the caller's.
    fill: (first, rows) sets the rows from `first` on.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int, int], np.ndarray]
    fill: Callable[[int, np.ndarray], None]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.shape[0] * row_nbytes(self.shape, self.dtype)
