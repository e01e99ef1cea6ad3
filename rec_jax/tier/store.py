"""Rows in host memory: a store of what a table has, where what was never written takes nothing."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rec_jax.compat import MAP_NORESERVE
from rec_jax.errors import InputError


class Leaf(NamedTuple):
    """One array of a table, row by row. shape: of a row; dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype


class RowStore(Protocol):
    """Some arrays `[V_padded, ...]` by number: the rows of a table, then its optimizer's state.

    A row that was never written has no value here, and whoever asks knows what it is at first. One
    thread may write some rows while another reads others.
    """

    @property
    def total(self) -> int:
        """V_padded."""
        ...

    @property
    def leaves(self) -> tuple[Leaf, ...]: ...

    def open(self, folder: Path) -> None:
        """Begin; files, where it makes some, are in `folder`."""
        ...

    def has(self, rows: np.ndarray) -> np.ndarray:
        """bool `[n]`: which of `rows` int64 `[n]` were written."""
        ...

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """A copy of `rows` int64 `[n]` of each leaf: `[n, ...]`; 0 where nothing was written."""
        ...

    def write(self, rows: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """Set the distinct `rows` int64 `[n]` of all leaves to `values` `[n, ...]`."""
        ...

    def get(self, leaf: int, rows: np.ndarray) -> np.ndarray:
        """As `read`, of one leaf."""
        ...

    def set(self, leaf: int, rows: np.ndarray, values: np.ndarray) -> None:
        """As `write`, of one leaf of rows that were written before."""
        ...

    def clear(self) -> None:
        """Forget all rows."""
        ...

    def close(self) -> None:
        """Give back what it holds; nothing is asked of it afterwards."""
        ...


class HostStore:
    """A `RowStore` in plain memory of this process."""

    def __init__(self, total: int, leaves: Sequence[Leaf]) -> None:
        self.total, self.leaves = total, tuple(leaves)
        self.clear()

    def open(self, folder: Path) -> None:
        """See `RowStore`."""
        del folder

    def has(self, rows: np.ndarray) -> np.ndarray:
        """See `RowStore`."""
        return self._written[rows]

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """See `RowStore`."""
        return [array[rows] for array in self._arrays]

    def write(self, rows: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """See `RowStore`."""
        for array, part in zip(self._arrays, values, strict=True):
            array[rows] = part
        self._written[rows] = True

    def get(self, leaf: int, rows: np.ndarray) -> np.ndarray:
        """See `RowStore`."""
        return self._arrays[leaf][rows]

    def set(self, leaf: int, rows: np.ndarray, values: np.ndarray) -> None:
        """See `RowStore`."""
        self._arrays[leaf][rows] = values

    def clear(self) -> None:
        """See `RowStore`."""
        self._written = lazy_zeros((self.total,), np.dtype(bool))
        self._arrays = [lazy_zeros((self.total, *leaf.shape), leaf.dtype) for leaf in self.leaves]

    def close(self) -> None:
        """See `RowStore`."""
        self._arrays = []


def lazy_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros whose pages take no memory until they are written, in small pages: a row here and
    there should not cost the 2 MiB of a huge one."""
    count = int(np.prod(shape, dtype=np.int64))
    size = count * dtype.itemsize
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    try:
        memory = mmap.mmap(-1, max(1, size), flags=kind)
    except OSError as error:
        raise InputError(f"the system gives no {size / 2**30:.3g} GiB of addresses for the rows of "
                         f"a table in host memory: {error.strerror}") from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8, size).view(dtype).reshape(shape)
