"""Stores of a table that passes by in parts: long reads and writes of rows that lie together.

A `RowStore` keeps rows that come and go alone; here every row moves in every step, so that a part
is read and written whole. A part that was never written takes nothing, and whoever asks knows what
it is at first.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import google_crc32c
import numpy as np

from rec_jax.errors import TrainingError
from rec_jax.tier.store import Leaf, lazy_zeros

PAGE = 16 * 2**10
"""Bytes that one check value stands for, and the least that is read of a disk at once."""
READERS = 16
"""Reads of single rows that are on their way at once."""
_CHUNK = 2**14  # rows that are cut out of pages at once


class PartStore(Protocol):
    """Arrays `[total, ...]` by number: the rows of a table, then its optimizer's state.

    One thread may read some parts while another writes others.
    """

    @property
    def total(self) -> int: ...

    @property
    def leaves(self) -> tuple[Leaf, ...]: ...

    @property
    def part(self) -> int:
        """Rows of a part; the last one may be shorter."""
        ...

    def open(self, folder: Path) -> None:
        """Begin; files, where it makes some, are in `folder`."""
        ...

    def has(self, part: int) -> bool:
        """Whether that part was written."""
        ...

    def read(self, part: int, leaves: Sequence[int]) -> list[np.ndarray]:
        """These leaves of a part that was written; the arrays stay as they are until it is written
        again."""
        ...

    def write(self, part: int, values: Sequence[np.ndarray]) -> None:
        """Set all leaves of a part."""
        ...

    def rows(self, leaf: int, numbers: np.ndarray) -> np.ndarray:
        """A copy of rows int64 `[n]`, of parts that were written: `[n, ...]`."""
        ...

    def clear(self) -> None:
        """Forget all parts."""
        ...

    def close(self) -> None:
        """Give back what it holds; nothing is asked of it afterwards."""
        ...


class HostParts:
    """A `PartStore` in plain memory of this process."""

    def __init__(self, total: int, leaves: Sequence[Leaf], part: int) -> None:
        self.total, self.leaves, self.part = total, tuple(leaves), part
        self.clear()

    def open(self, folder: Path) -> None:
        """See `PartStore`."""
        del folder

    def has(self, part: int) -> bool:
        """See `PartStore`."""
        return part in self._written

    def read(self, part: int, leaves: Sequence[int]) -> list[np.ndarray]:
        """See `PartStore`."""
        return [self._arrays[leaf][part * self.part:(part + 1) * self.part] for leaf in leaves]

    def write(self, part: int, values: Sequence[np.ndarray]) -> None:
        """See `PartStore`."""
        for array, value in zip(self._arrays, values, strict=True):
            array[part * self.part:(part + 1) * self.part] = value
        self._written.add(part)

    def rows(self, leaf: int, numbers: np.ndarray) -> np.ndarray:
        """See `PartStore`."""
        return self._arrays[leaf][numbers]

    def clear(self) -> None:
        """See `PartStore`."""
        self._written: set[int] = set()
        self._arrays = [lazy_zeros((self.total, *leaf.shape), leaf.dtype) for leaf in self.leaves]

    def close(self) -> None:
        """See `PartStore`."""
        self._arrays = []


class DiskParts:
    """A `PartStore` in one file of a folder; until `open` names one, that of temporary files.

    The file has no name: it is no checkpoint, and a killed process leaves nothing behind. It passes
    by the system's cache where the file system can do that, so that a table does not push out of
    memory what is needed again. Each page has a CRC-32C in memory, held against what is read.
    """

    def __init__(self, total: int, leaves: Sequence[Leaf], part: int) -> None:
        self.total, self.leaves, self.part = total, tuple(leaves), part
        self._folder = Path(tempfile.gettempdir())
        self._widths = [int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize
                        for leaf in self.leaves]
        self._pages = [-(-width * part // PAGE) for width in self._widths]
        self._first = np.concatenate([[0], np.cumsum(self._pages)])  # of a leaf in a part
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="rows in")
        self._file: int | None = None
        self.clear()

    def open(self, folder: Path) -> None:
        """See `PartStore`."""
        self._folder = folder

    def has(self, part: int) -> bool:
        """See `PartStore`."""
        return part in self._checks

    def read(self, part: int, leaves: Sequence[int]) -> list[np.ndarray]:
        """See `PartStore`."""
        return [self._shaped(leaf, self._read(part, leaf, 0, self._used(part, leaf)),
                             self._count(part)) for leaf in leaves]

    def write(self, part: int, values: Sequence[np.ndarray]) -> None:
        """See `PartStore`."""
        checks = np.zeros(int(self._first[-1]), np.uint32)
        for leaf, value in enumerate(values):
            data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            pages = _aligned(self._used(part, leaf) * PAGE)
            pages[:len(data)] = data
            first = int(self._first[leaf])
            checks[first:first + self._used(part, leaf)] = _checks(pages)
            try:
                self._write(pages, self._at(part, leaf, 0))
            except OSError as error:  # the file has no name, so the system names none
                raise OSError(error.errno, error.strerror, str(self._folder)) from None
        self._checks[part] = checks

    def rows(self, leaf: int, numbers: np.ndarray) -> np.ndarray:
        """See `PartStore`."""
        if not len(numbers):
            return np.zeros((0, *self.leaves[leaf].shape), self.leaves[leaf].dtype)
        parts = numbers // self.part
        if len(numbers) > 1 and (np.diff(numbers) == 1).all():  # a range, read as one
            found = [self._range(leaf, int(part), numbers[parts == part] % self.part)
                     for part in np.unique(parts)]
            return np.concatenate(found)
        return np.concatenate([self._scattered(leaf, numbers[first:first + _CHUNK])
                               for first in range(0, len(numbers), _CHUNK)])

    def clear(self) -> None:
        """See `PartStore`."""
        self._checks: dict[int, np.ndarray] = {}
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """See `PartStore`."""
        self._readers.shutdown()
        self.clear()

    def _count(self, part: int) -> int:
        """Rows of a part."""
        return min(self.part, self.total - part * self.part)

    def _used(self, part: int, leaf: int) -> int:
        """Pages of a leaf in a part."""
        return -(-self._widths[leaf] * self._count(part) // PAGE)

    def _at(self, part: int, leaf: int, page: int) -> int:
        return int(part * self._first[-1] + self._first[leaf] + page) * PAGE

    def _shaped(self, leaf: int, data: np.ndarray, count: int) -> np.ndarray:
        one = self.leaves[leaf]
        return data[:count * self._widths[leaf]].view(one.dtype).reshape(count, *one.shape)

    def _range(self, leaf: int, part: int, local: np.ndarray) -> np.ndarray:
        """Neighbouring rows of a part."""
        width = self._widths[leaf]
        first, last = int(local[0]) * width, (int(local[-1]) + 1) * width
        page = first // PAGE
        data = self._read(part, leaf, page, -(-last // PAGE) - page)
        return self._shaped(leaf, data[first - page * PAGE:last - page * PAGE], len(local))

    def _scattered(self, leaf: int, numbers: np.ndarray) -> np.ndarray:
        """Rows here and there: each page that has some is read once."""
        width, per_part = self._widths[leaf], self._pages[leaf]
        parts, local = np.divmod(numbers, self.part)
        first, last = local * width // PAGE, (local * width + width - 1) // PAGE
        wanted = [(parts * per_part + first + step)[first + step <= last]
                  for step in range(int((last - first).max()) + 1)]
        keys = np.unique(np.concatenate(wanted))
        pages = np.empty((len(keys), PAGE), np.uint8)

        def fetch(indices: np.ndarray) -> None:
            for index in indices.tolist():
                part, page = divmod(int(keys[index]), per_part)
                pages[index] = self._read(part, leaf, page, 1)

        list(self._readers.map(fetch, np.array_split(
            np.arange(len(keys)), min(READERS, len(keys)))))
        begin = np.searchsorted(keys, parts * per_part + first) * PAGE + local * width % PAGE
        data = pages.reshape(-1)[begin[:, None] + np.arange(width)]
        return self._shaped(leaf, data.reshape(-1), len(numbers))

    def _read(self, part: int, leaf: int, page: int, count: int) -> np.ndarray:
        """uint8 `[count * PAGE]`: pages of a leaf of a part.

        Raises:
          TrainingError: a page is not as it was written.
        """
        data, at = _aligned(count * PAGE), self._at(part, leaf, page)
        done = 0
        while done < len(data):
            size = os.preadv(self._handle(), [data[done:].data], at + done)
            if not size:
                break
            done += size
        begin = int(self._first[leaf]) + page
        wrong = np.flatnonzero(_checks(data) != self._checks[part][begin:begin + count])
        if done != len(data) or len(wrong):
            row = part * self.part + (page + int(wrong[0] if len(wrong) else 0)
                                      ) * PAGE // self._widths[leaf]
            raise TrainingError(f"row {row} of a table on the disk, or one behind it, is not as it "
                                f"was written (in {self._folder}); the last checkpoint stands")
        return data

    def _write(self, data: np.ndarray, at: int) -> None:
        rest = data.data
        while rest:
            size = os.pwrite(self._handle(), rest, at)
            rest, at = rest[size:], at + size

    def _handle(self) -> int:
        """The file, which is gone when it is closed."""
        if self._file is None:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                self._file = os.dup(file.fileno())
            with contextlib.suppress(OSError):  # a file system in memory has no way around it
                fcntl.fcntl(self._file, fcntl.F_SETFL,
                            fcntl.fcntl(self._file, fcntl.F_GETFL) | getattr(os, "O_DIRECT", 0))
        return self._file


def _aligned(size: int) -> np.ndarray:
    """uint8 `[size]` zeros that begin where a page of memory does, as direct reads need it."""
    memory = mmap.mmap(-1, max(1, size))
    if size >= 2**22 and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


def _checks(pages: np.ndarray) -> np.ndarray:
    """uint32: the CRC-32C of each page of uint8 `[n * PAGE]`."""
    return np.fromiter((google_crc32c.value(pages[at:at + PAGE].tobytes())
                        for at in range(0, len(pages), PAGE)), np.uint32)
