"""Sparse rows of any length as batches of one static shape (ALX: Mehta et al., 2021).

A row's entries are cut into pieces of `LENGTH` places. A batch of one device has P pieces of at
most S rows; devices have whole rows, each those of its own part of the table that is solved. Row r
of a table stands at place `places(...)[r]`, dealt to the devices in turn, since small indices are
popular items and would all fall to one device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rec_jax.sizes import power_of_two
from rec_jax.solvers.base import Matrix

LENGTH = 32
PIECES = 512


class Batch(NamedTuple):
    """One batch of all D devices, the parts of device k at k * P, or k * S; NumPy or JAX arrays.

    ids: int32 `[D * P, LENGTH]`, places in the fixed table; there: bool, whether a place of a
    piece has an entry; values: f32, the entry.
    owner: int32 `[D * P]`, which of the device's S rows a piece belongs to; S where none.
    row: int32 `[D * S]`, where the row is among the device's own; past them where there is none.
    entries: f32 `[D * S]`, how many the row has.
    """

    ids: Any
    there: Any
    values: Any
    owner: Any
    row: Any
    entries: Any


def places(count: int, padded: int, devices: int) -> np.ndarray:
    """Place of each of `count` rows in a table of `padded` rows: int64 `[count]`."""
    index = np.arange(count)
    return index % devices * (padded // devices) + index // devices


@dataclass(frozen=True)
class Layout:
    """How a matrix `[R, C]` is cut.

    rows: of each device, those with entries in the order in which they are solved, int64;
    ends: of each device, ends of its batches in `rows`; P, S: pieces and rows of a batch.
    """

    matrix: Matrix
    rows: tuple[np.ndarray, ...]
    ends: tuple[np.ndarray, ...]
    pieces: int
    slots: int

    @classmethod
    def of(cls, matrix: Matrix, devices: int) -> Layout:
        """Batches of at least `PIECES` pieces, and of as many as the longest row needs."""
        counts = -(-np.diff(matrix.indptr).astype(np.int64) // LENGTH)
        longest = int(counts.max(initial=1))
        pieces = max(min(PIECES, power_of_two(int(counts.sum()) // devices + 1)),
                     power_of_two(longest))
        # Long and short rows mixed: batches then hold about the same number of rows.
        order = np.random.default_rng(0).permutation(matrix.shape[0])
        rows, ends = [], []
        for device in range(devices):
            mine = order[(order % devices == device) & (counts[order] > 0)]
            rows.append(mine)
            ends.append(_cut(counts[mine], pieces))
        most = max((int(np.diff(one, prepend=0).max(initial=1)) for one in ends), default=1)
        return cls(matrix, tuple(rows), tuple(ends), pieces, min(power_of_two(most), pieces))

    def batches(self, places: np.ndarray) -> Iterator[Batch]:
        """places: of the columns in the fixed table, see `places`."""
        devices, own = len(self.rows), len(self.rows)
        for number in range(max(map(len, self.ends))):
            batch = _empty(devices, self.pieces, self.slots)
            for device, (rows, ends) in enumerate(zip(self.rows, self.ends, strict=True)):
                if number < len(ends):
                    first = ends[number - 1] if number else 0
                    self._fill(batch, device, rows[first:ends[number]], places, own)
            yield batch

    def _fill(self, batch: Batch, device: int, rows: np.ndarray, places: np.ndarray,
              own: int) -> None:
        starts, ends = self.matrix.indptr[rows], self.matrix.indptr[rows + 1]
        counts = (ends - starts).astype(np.int64)
        pieces = -(-counts // LENGTH)
        first = np.cumsum(pieces) - pieces
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        entry = np.repeat(starts, counts) + inside
        piece = device * self.pieces + np.repeat(first, counts) + inside // LENGTH
        where = piece, inside % LENGTH
        batch.ids[where] = places[self.matrix.indices[entry]]
        batch.values[where] = self.matrix.data[entry]
        batch.there[where] = True
        begin = device * self.pieces
        batch.owner[begin:begin + pieces.sum()] = np.repeat(np.arange(len(rows)), pieces)
        slots = slice(device * self.slots, device * self.slots + len(rows))
        batch.row[slots] = rows // own
        batch.entries[slots] = counts


def _empty(devices: int, pieces: int, slots: int) -> Batch:
    shape = (devices * pieces, LENGTH)
    return Batch(np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, np.float32),
                 np.full(devices * pieces, slots, np.int32),
                 np.full(devices * slots, np.iinfo(np.int32).max, np.int32),
                 np.zeros(devices * slots, np.float32))


def _cut(counts: np.ndarray, most: int) -> np.ndarray:
    """Ends of runs of rows whose `counts` sum up to at most `most`: int64."""
    sums, ends, done = np.cumsum(counts), [], 0
    while done < len(counts):
        before = sums[done - 1] if done else 0
        done = int(np.searchsorted(sums, before + most, "right"))
        ends.append(done)
    return np.array(ends, np.int64)
