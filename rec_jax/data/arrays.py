"""Flat files of interactions, read and written in chunks with plain file calls.

No memory maps here: pages of a mapped file count as the process's memory, and a job that walks
through gigabytes should stay small.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt

CHUNK_ROWS = 4_000_000
TRAINED, HELD_OUT, NEW = 0, 1, 2
"""What an interaction was in a dataset that is appended to: of its training part, of another one,
or not in it."""


class Interactions(NamedTuple):
    """Some interactions in memory. users, items: int32 codes `[n]`; times: int64 ticks `[n]`,
    as fine as the source's (see `rec_jax.data.times`), and ratings: f32 `[n]`, each None where
    the source has none; news: uint8 `[n]`, what they were in the dataset
    that others are appended to, or None; events: uint8 `[n]`, types of events, from 1, or None."""

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64] | None = None
    ratings: npt.NDArray[np.float32] | None = None
    news: npt.NDArray[np.uint8] | None = None
    events: npt.NDArray[np.uint8] | None = None

    def take(self, which: npt.NDArray[Any] | slice) -> Interactions:
        """Those of a mask, of a range, or in an order."""
        return Interactions(
            self.users[which], self.items[which],
            None if self.times is None else self.times[which],
            None if self.ratings is None else self.ratings[which],
            None if self.news is None else self.news[which],
            None if self.events is None else self.events[which])


@dataclass(frozen=True)
class InteractionFiles:
    """Interactions as headerless little files of one type, in the types of `Interactions`."""

    users: Path
    items: Path
    times: Path | None = None
    ratings: Path | None = None
    news: Path | None = None
    events: Path | None = None

    @classmethod
    def named(cls, folder: Path, name: str, times: bool, ratings: bool = False,
              news: bool = False, events: bool = False) -> InteractionFiles:
        return cls(folder / f"{name}.users", folder / f"{name}.items",
                   folder / f"{name}.times" if times else None,
                   folder / f"{name}.ratings" if ratings else None,
                   folder / f"{name}.news" if news else None,
                   folder / f"{name}.events" if events else None)

    def like(self, folder: Path, name: str) -> InteractionFiles:
        """Files of another name with the same columns."""
        return InteractionFiles.named(folder, name, times=self.times is not None,
                                      ratings=self.ratings is not None,
                                      news=self.news is not None, events=self.events is not None)

    @property
    def paths(self) -> list[Path]:
        """The files that there are, in the order of `Interactions`."""
        every = (self.users, self.items, self.times, self.ratings, self.news, self.events)
        return [path for path in every if path is not None]

    def count(self) -> int:
        """Number of rows."""
        return self.users.stat().st_size // 4

    def read(self, start: int, stop: int) -> Interactions:
        """Rows [start, stop)."""
        return Interactions(
            read_flat(self.users, np.int32, start, stop),
            read_flat(self.items, np.int32, start, stop),
            read_flat(self.times, np.int64, start, stop) if self.times else None,
            read_flat(self.ratings, np.float32, start, stop) if self.ratings else None,
            read_flat(self.news, np.uint8, start, stop) if self.news else None,
            read_flat(self.events, np.uint8, start, stop) if self.events else None)

    def delete(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)


def read_flat(path: Path, dtype: Any, start: int, stop: int) -> npt.NDArray[Any]:
    """Elements [start, stop) of a headerless file."""
    values = np.fromfile(path, dtype, stop - start, offset=start * np.dtype(dtype).itemsize)
    if len(values) != stop - start:
        raise OSError(errno.EIO, f"has fewer values than were written ({len(values)} of "
                                 f"{stop - start} from {start} on)", str(path))
    return values


def open_flat(path: Path) -> IO[bytes]:
    """A file for `write_flat`, without a buffer: what was not written is told at once."""
    return cast(IO[bytes], path.open("wb", buffering=0))


def write_flat(file: IO[bytes], values: npt.NDArray[Any]) -> None:
    """Append the bytes of `values`.

    `ndarray.tofile` has a buffer of its own and does not tell when the last of it is lost.
    """
    view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    while view:
        view = view[file.write(view):]


def chunks(length: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, stop) pairs that cover [0, length)."""
    size = size or CHUNK_ROWS
    for start in range(0, length, size):
        yield start, min(start + size, length)


def counting(numbers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """0, 1, .., numbers[0]-1, 0, 1, .., numbers[1]-1, ..: places within groups side by side."""
    total = int(numbers.sum())
    return np.arange(total) - np.repeat(np.cumsum(numbers) - numbers, numbers)


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What stands in a `.npy` file before the values."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {
        "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return header.getvalue()


class NpyWriter:
    """A `.npy` file of known length, written chunk by chunk and hashed; `[length]`, or with
    `width` `[length, width]`."""

    def __init__(self, path: Path, dtype: Any, length: int, width: int | None = None) -> None:
        self._dtype = np.dtype(dtype)
        self._left = length
        self._hash = hashlib.sha256()
        self._file = open_flat(path)
        shape = (length,) if width is None else (length, width)
        try:
            write_flat(self._file, np.frombuffer(npy_header(self._dtype, shape), np.uint8))
        except OSError:
            self._file.close()
            raise

    def write(self, values: npt.NDArray[Any]) -> None:
        data = np.ascontiguousarray(values, self._dtype)
        self._left -= len(data)
        self._hash.update(data.data)
        write_flat(self._file, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()

    def close(self) -> str:
        """Hex sha256 of the values. A file that is not full is a fault of the caller's."""
        self._file.close()
        if self._left:
            raise RuntimeError(f"{self._left} values were not written")
        return self._hash.hexdigest()
