"""Arrays on the disk, read a range of rows at a time, through a chain of deltas where there is one.

A `PackedSource` is a small leaf in a file with others, a `BlockSource` an array in blocks, and a
`DeltaSource` an array with the rows of deltas over it.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from rec_jax.checkpoint.blocks import CHECKSUM_BYTES, block_path, read_block
from rec_jax.checkpoint.errors import Damaged, describe_cause
from rec_jax.checkpoint.index import Leaf, read_leaves
from rec_jax.checkpoint.layout import (
    ARRAY_DTYPES,
    ARRAYS,
    BLOCK_BYTES,
    PACKED,
    array_spec,
    row_nbytes,
)

READ_AHEAD = 2
"""Blocks that are read while another one is used."""


class ArraySource(Protocol):
    """An array on disk. shape; dtype; block: rows that are cheap to read together."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def block(self) -> int: ...

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows `[last - first, ...]` from `first` to `last`; raises `Damaged`."""
        ...

    def read_into(self, rows: np.ndarray, first: int) -> None:
        """The same from `first` on into `rows`, an array of this dtype; raises `Damaged`."""
        ...


@dataclass(frozen=True)
class PackedSource:
    """A small leaf in `packed.bin`; a scalar has no rows and is read at once."""

    file: Path
    leaf: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return ARRAY_DTYPES[self.leaf.dtype]

    @property
    def block(self) -> int:
        return max(1, self.shape[0]) if self.shape else 1

    def read(self, first: int, last: int) -> np.ndarray:
        with _reading(self.file), self.file.open("rb") as file:
            # Before memory is taken for it.
            if self.leaf.offset + self.leaf.nbytes > self.file.stat().st_size:
                raise ValueError(f"{self.leaf.path} ends behind the end of the file")
            file.seek(self.leaf.offset)
            data = file.read(self.leaf.nbytes)
            whole = np.frombuffer(data, self.dtype).reshape(self.shape)
        return whole[first:last] if self.shape else whole

    def read_into(self, rows: np.ndarray, first: int) -> None:
        rows[...] = self.read(first, first + len(rows))


class BlockSource:
    """An array in blocks; each block's CRC-32C is checked when it is read."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str, block: int) -> None:
        self.shape, self.dtype, self.block = shape, ARRAY_DTYPES[dtype], block
        self._folder = folder
        with _reading(folder):
            # tensorstore would read zeros for a missing block, and a hostile shape for ever.
            expected, found = -(-shape[0] // block), len(os.listdir(folder / "c"))
            if found != expected:
                raise ValueError(f"it has {found} blocks, expected {expected}")
            size = block * math.prod(shape[1:]) * self.dtype.itemsize + CHECKSUM_BYTES
            found = block_path(folder, 0, len(shape)).stat().st_size
            if found != size:  # before memory is taken for it
                raise ValueError(f"its first block has {found} bytes, expected {size}")
            self._store = ts.open(array_spec(folder, shape, dtype, block), open=True).result()

    def read(self, first: int, last: int) -> np.ndarray:
        rows = np.empty((last - first, *self.shape[1:]), self.dtype)
        self.read_into(rows, first)
        return rows

    def read_into(self, rows: np.ndarray, first: int) -> None:
        with _reading(self._folder):
            if first % self.block or len(rows) % self.block or not rows.flags.c_contiguous:
                ts.array(rows).write(self._store[first:first + len(rows)]).result()
                return
            for begin in range(0, len(rows), self.block):
                file = block_path(self._folder, (first + begin) // self.block, rows.ndim)
                read_block(file, rows[begin:begin + self.block])


@dataclass(frozen=True)
class RowDelta:
    """The rows that one delta changes. ids: `[T]`, ascending; scale: of quantised rows, or None."""

    ids: np.ndarray
    rows: ArraySource
    scale: ArraySource | None = None

    def apply(self, rows: np.ndarray, first: int) -> None:
        """Write those of the rows from `first` on that changed over `rows`."""
        low, high = (int(x) for x in np.searchsorted(self.ids, [first, first + len(rows)]))
        if low == high:
            return
        changed = self.rows.read(low, high)
        if self.scale is not None:
            scale = self.scale.read(low, high).reshape(-1, *(1,) * (changed.ndim - 1))
            changed = changed.astype(np.float32) * scale
        rows[self.ids[low:high] - first] = changed.astype(rows.dtype)


class DeltaSource:
    """The rows of a full array, with the rows of a chain of deltas over them."""

    def __init__(self, base: ArraySource, delta: RowDelta) -> None:
        self.shape, self.dtype, self.block = base.shape, base.dtype, base.block
        # A flat list: a chain may be longer than functions may be nested.
        self._base: ArraySource = base._base if isinstance(base, DeltaSource) else base
        self._deltas: tuple[RowDelta, ...] = (
            *(base._deltas if isinstance(base, DeltaSource) else ()), delta)

    def read(self, first: int, last: int) -> np.ndarray:
        found = np.empty((last - first, *self.shape[1:]), self.dtype)
        self.read_into(found, first)
        return found

    def read_into(self, rows: np.ndarray, first: int) -> None:
        self._base.read_into(rows, first)
        for delta in self._deltas:
            delta.apply(rows, first)


def open_item(folder: Path, base: Mapping[str, ArraySource] | None) -> dict[str, ArraySource]:
    """The leaves of item folder `folder` by path.

    base: those of the checkpoint that a delta changes.

    Raises:
      Damaged: the index or an array is not as it was written.
    """
    found: dict[str, ArraySource] = {}
    for number, leaf in enumerate(read_leaves(folder)):
        array = folder / ARRAYS / str(number)
        if leaf.store == "packed":
            found[leaf.path] = PackedSource(folder / PACKED, leaf)
        elif leaf.store == "array":
            found[leaf.path] = BlockSource(array, leaf.shape, leaf.dtype, leaf.block)
        else:
            found[leaf.path] = _open_updated(array, leaf, base)
    return found


def _open_updated(array: Path, leaf: Leaf, base: Mapping[str, ArraySource] | None) -> ArraySource:
    under = (base or {}).get(leaf.path)
    if under is None or under.shape != leaf.shape or under.dtype != ARRAY_DTYPES[leaf.dtype]:
        raise Damaged(f"checkpoint {array.parts[-4]} changes rows of {leaf.path}, which its base "
                      f"does not hold in that shape and type")
    if not leaf.count:
        return under

    def part(suffix: str, shape: tuple[int, ...], dtype: str) -> BlockSource:
        return BlockSource(array.with_name(array.name + suffix), shape, dtype, leaf.block)

    ids = part(".rows", (leaf.count,), "int64").read(0, leaf.count)
    if ids[0] < 0 or ids[-1] >= leaf.shape[0] or np.any(np.diff(ids) <= 0):
        raise Damaged(f"checkpoint {array.parts[-4]} names rows that {leaf.path} does not have")
    rows = part("", (leaf.count, *leaf.shape[1:]), leaf.stored)
    scale = part(".scale", (leaf.count,), "float32") if leaf.stored == "int8" \
        and leaf.dtype != "int8" else None
    return DeltaSource(under, RowDelta(ids, rows, scale))


def read_blocks(source: ArraySource, first: int = 0, last: int | None = None) -> Iterator[
        tuple[int, np.ndarray]]:
    """(first row, rows) over a range, in blocks of `BLOCK_BYTES`; the next ones are read ahead."""
    pairs = block_ranges(source, first, source.shape[0] if last is None else last)
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        ahead = deque(pool.submit(source.read, *pair) for pair in pairs[:READ_AHEAD])
        for number, (begin, _) in enumerate(pairs):
            values = ahead.popleft().result()
            if number + READ_AHEAD < len(pairs):
                ahead.append(pool.submit(source.read, *pairs[number + READ_AHEAD]))
            yield begin, values


def block_ranges(source: ArraySource, first: int, last: int) -> list[tuple[int, int]]:
    """Ranges of rows of about `BLOCK_BYTES`: whole blocks of the file, each read once."""
    size = max(1, BLOCK_BYTES // row_nbytes(source.shape, source.dtype))
    size = max(source.block, size // source.block * source.block) if source.block <= size else size
    edges = [first, *range(first - first % size + size, last, size), last]
    return [pair for pair in pairwise(edges) if pair[1] > pair[0]]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises `Damaged` for whatever tensorstore and the system raise for a bad file."""
    try:
        yield
    except Exception as error:
        raise Damaged(f"checkpoint file {'/'.join(path.parts[-4:])} cannot be read: "
                      f"{describe_cause(error)}") from None
