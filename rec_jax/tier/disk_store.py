"""Rows on a disk: a log of records in segments, of which nothing is left when the process ends.

Rows that leave a cache are appended to the newest segment, one write a step; which record of which
segment a row has stands in memory, 8 bytes a row. So a disk sees long writes, and a row that was
never written takes nothing. A segment whose records were all written anew is given back; where more
than half of all records are such, those that still count in the emptiest segment are appended
again. Every record has a CRC-32C, which is held against what is read.

The files have no name: they are no checkpoint (that is one of any table), and a killed process
leaves nothing behind.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import google_crc32c
import numpy as np

from rec_jax.errors import TrainingError
from rec_jax.tier.store import Leaf, lazy_zeros

SEGMENT_BYTES = 64 * 2**20
READERS = 16
"""Reads that are on their way at once: a disk answers many at the price of a few."""
_NUMBER, _CHECK = 8, 4  # bytes of a record before and behind the leaves: its row, and its CRC


@dataclass
class _Segment:
    """A file of records. count: how many there are; live: those that are their row's last."""

    handle: int
    count: int = 0
    live: int = 0


class DiskStore:
    """A `RowStore` in files of a folder; until `open` names one, that of temporary files."""

    def __init__(self, total: int, leaves: Sequence[Leaf], *,
                 segment_bytes: int = SEGMENT_BYTES) -> None:
        self.total, self.leaves = total, tuple(leaves)
        self._folder = Path(tempfile.gettempdir())
        sizes = [int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize
                 for leaf in self.leaves]
        edges = np.cumsum([_NUMBER, *sizes])
        self._columns = [slice(int(first), int(last))
                         for first, last in pairwise(edges)]
        self._record = int(edges[-1]) + _CHECK
        self._most = max(1, segment_bytes // self._record)
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="rows in")
        self._segments: dict[int, _Segment] = {}
        self._begin()

    def open(self, folder: Path) -> None:
        """See `RowStore`."""
        self._folder = folder

    def has(self, rows: np.ndarray) -> np.ndarray:
        """See `RowStore`."""
        return self._place[rows] > 0

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """See `RowStore`."""
        with self._lock:
            records = self._records(rows)
        return [self._leaf(records, number) for number in range(len(self.leaves))]

    def write(self, rows: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """See `RowStore`."""
        records = np.zeros((len(rows), self._record), np.uint8)
        for columns, part in zip(self._columns, values, strict=True):
            records[:, columns] = np.ascontiguousarray(part).view(np.uint8).reshape(
                len(rows), columns.stop - columns.start)
        with self._lock:
            self._append(rows, records)
            self._compact()

    def get(self, leaf: int, rows: np.ndarray) -> np.ndarray:
        """See `RowStore`."""
        with self._lock:
            records = self._records(rows)
        return self._leaf(records, leaf)

    def set(self, leaf: int, rows: np.ndarray, values: np.ndarray) -> None:
        """See `RowStore`."""
        found = self.read(rows)
        found[leaf] = values
        self.write(rows, found)

    def clear(self) -> None:
        """See `RowStore`."""
        with self._lock:
            self._drop_all()
            self._begin()

    def close(self) -> None:
        """See `RowStore`."""
        self._readers.shutdown()
        with self._lock:
            self._drop_all()

    def _begin(self) -> None:
        self._place = lazy_zeros((self.total,), np.dtype(np.int64))  # 1 + that of the record
        self._next = 0  # number of the segment that is begun next

    def _drop_all(self) -> None:
        for segment in self._segments.values():
            os.close(segment.handle)
        self._segments = {}

    def _leaf(self, records: np.ndarray, number: int) -> np.ndarray:
        leaf = self.leaves[number]
        part = np.ascontiguousarray(records[:, self._columns[number]])
        return part.view(leaf.dtype).reshape(len(records), *leaf.shape)

    def _records(self, rows: np.ndarray) -> np.ndarray:
        """uint8 `[n, bytes of a record]`; 0 where nothing was written.

        Raises:
          TrainingError: a record is not as it was written.
        """
        records = np.zeros((len(rows), self._record), np.uint8)
        places = self._place[rows] - 1
        there = np.flatnonzero(places >= 0)
        there = there[np.argsort(places[there], kind="stable")]

        def fetch(part: np.ndarray) -> None:
            for index in part.tolist():
                number, at = divmod(int(places[index]), self._most)
                record = records[index]
                size = os.preadv(self._segments[number].handle, [record], at * self._record)
                if size != self._record or _check(record) != record[-_CHECK:].tobytes() or int(
                        record[:_NUMBER].view(np.int64)[0]) != rows[index]:
                    raise TrainingError(f"row {rows[index]} of a table on the disk is not as it "
                                        f"was written (in {self._folder}); the last checkpoint "
                                        "stands")

        list(self._readers.map(fetch, np.array_split(there, min(READERS, max(1, len(there))))))
        return records

    def _append(self, rows: np.ndarray, records: np.ndarray) -> None:
        """Write the records as the last ones of `rows`."""
        records[:, :_NUMBER] = np.ascontiguousarray(rows, np.int64).view(np.uint8).reshape(-1, 8)
        for record in records:
            record[-_CHECK:] = np.frombuffer(_check(record), np.uint8)
        done = 0
        while done < len(rows):
            number = self._next - 1
            segment = self._segments.get(number)
            if segment is None or segment.count == self._most:
                number, segment = self._next, _Segment(_unnamed(self._folder))
                self._segments[number] = segment
                self._next += 1
            part = records[done:done + self._most - segment.count]
            try:
                _write(segment.handle, part, segment.count * self._record)
            except OSError as error:  # the file has no name, so the system names none
                raise OSError(error.errno, error.strerror, str(self._folder)) from None
            own = rows[done:done + len(part)]
            self._forget(self._place[own])
            self._place[own] = number * self._most + segment.count + np.arange(len(part)) + 1
            segment.count += len(part)
            segment.live += len(part)
            done += len(part)

    def _forget(self, places: np.ndarray) -> None:
        """Those records are not their rows' last ones any more."""
        numbers, counts = np.unique((places[places > 0] - 1) // self._most, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            segment = self._segments[number]
            segment.live -= count
            if not segment.live and segment.count == self._most:
                os.close(self._segments.pop(number).handle)

    def _compact(self) -> None:
        """Append again what counts in the emptiest full segments, while most records do not."""
        while sum(one.count for one in self._segments.values()) > 2 * self._most + 2 * sum(
                one.live for one in self._segments.values()):
            full = [number for number, one in self._segments.items() if one.count == self._most]
            number = min(full, key=lambda each: self._segments[each].live)
            records = np.empty((self._most, self._record), np.uint8)
            size = os.preadv(self._segments[number].handle, [records.data], 0)
            if size != records.size:
                raise TrainingError(f"a file of rows in {self._folder} ends before its time")
            rows = records[:, :_NUMBER].copy().view(np.int64)[:, 0]
            live = np.flatnonzero(self._place[rows] == number * self._most + 1 + np.arange(
                self._most))
            # What was read is checked where the row is, once more, before it is written again.
            self._append(rows[live], self._records(rows[live]))


def _check(record: np.ndarray) -> bytes:
    """CRC-32C of a record without its last bytes."""
    value: int = google_crc32c.value(record[:-_CHECK].tobytes())
    return value.to_bytes(_CHECK, "little")


def _unnamed(folder: Path) -> int:
    """A file that is gone when it is closed."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return os.dup(file.fileno())


def _write(handle: int, data: np.ndarray, at: int) -> None:
    rest = np.ascontiguousarray(data).reshape(-1).data
    while rest:
        size = os.pwrite(handle, rest, at)
        rest, at = rest[size:], at + size
