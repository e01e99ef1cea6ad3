"""Writing an array in blocks of rows, a few blocks at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from rec_jax.checkpoint.blocks import block_path, write_rows
from rec_jax.checkpoint.layout import BLOCK_BYTES, array_spec
from rec_jax.checkpoint.staging import HostBuffer
from rec_jax.files import flush

IN_FLIGHT = 4
"""Blocks that are on their way to the disk at once."""


def rows_per_block(count: int, row_bytes: int) -> int:
    """Rows of a block where one process writes all of them: no divisor is needed."""
    return max(1, min(count, BLOCK_BYTES // max(1, row_bytes)))


def write_array(target: Path, values: np.ndarray, block: int) -> None:
    """Write a host array `[T, ...]` in blocks of rows."""
    with BlockWriter(target, values.shape, values.dtype.name, block) as writer:
        writer.write(0, values)


class BlockWriter:
    """Writes an array in blocks of rows, at most `IN_FLIGHT` at once; leaving it waits for all.

    What the first failed write raised is raised there, or at a later write.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str, block: int) -> None:
        self._folder, self._shape, self._block = folder, shape, block
        self._store = ts.open(array_spec(folder, shape, dtype, block),
                              create=True, open=True).result()
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="blocks")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for write in self._pending:
                write.result()

    def write(self, first: int, rows: np.ndarray, columns: tuple[slice, ...] = ()) -> None:
        """Write rows from `first` on, or only these columns; `rows` must not change meanwhile."""
        edges = range(first - first % self._block, first + len(rows), self._block)
        for begin in edges:
            low, high = max(begin, first), min(begin + self._block, first + len(rows))
            part = rows[low - first:high - first]
            if part.shape == (self._block, *self._shape[1:]):
                self._submit(write_rows, self._file(begin), part)
            else:
                self._submit(self._write_part, (slice(low, high), *columns), part)

    def write_snapshot(self, first: int, data: HostBuffer, begin: int) -> None:
        """Write the block from row `first` on, which is at row `begin` of a shard in a snapshot."""
        path = self._file(first)
        data.write(path, begin, self._block)
        self._submit(flush, path)

    def _file(self, first: int) -> Path:
        path = block_path(self._folder, first // self._block, len(self._shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write_part(self, where: tuple[slice, ...], values: np.ndarray) -> None:
        self._store[where].write(values).result()

    def _submit(self, work: Callable[..., None], *args: Any) -> None:
        if len(self._pending) == IN_FLIGHT:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(work, *args))
