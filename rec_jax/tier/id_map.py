"""From 64-bit ids to rows, exactly: an id that is there has its row, and no other has.

Two kinds with the same answers: the native one, open addressing in C++ (`kernels/native`), and
where no compiler is found sorted arrays, whose cost grows with the map at each batch. Rows count
from 1; 0 says that an id has none.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from rec_jax.kernels.native import build, id_map

_LEAST, _GROWTH, _LOAD = 1024, 1.25, 0.7
"""Buckets at first; the factor by which they grow; the most ids a place for one."""


class IdMap(Protocol):
    """A map that changes. Ids are int64 `[n]`, rows int32 `[n]`."""

    def __len__(self) -> int:
        """How many ids there are."""
        ...

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Rows of `ids`; 0 where there is none."""
        ...

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Add `ids`, distinct and not there, with `rows` above 0."""
        ...

    def remove(self, ids: np.ndarray) -> None:
        """Take out `ids`, distinct and there."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        ...


def new_map(expected: int = 0, *, native: bool | None = None) -> IdMap:
    """An empty map. expected: ids for which there is room at once; native: which kind, None takes
    the native one where it can be built."""
    if native is None:
        native = build.problem() is None
    return NativeMap(expected) if native else SortedMap()


class NativeMap:
    """An `IdMap` of cache lines. It grows by a quarter where more than 0.7 of the places are
    taken, and has 18 to 23 bytes an id."""

    def __init__(self, expected: int = 0) -> None:
        self._count = 0
        self.table = id_map.new_table(_buckets(expected))

    def __len__(self) -> int:
        return self._count

    def find(self, ids: np.ndarray) -> np.ndarray:
        """See `IdMap`."""
        return id_map.find(self.table, ids)

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """See `IdMap`."""
        wanted = _buckets(self._count + len(ids))
        if wanted > len(self.table):
            self._grow(max(wanted, int(_GROWTH * len(self.table))))
        self._insert(ids, rows)
        self._count += len(ids)

    def remove(self, ids: np.ndarray) -> None:
        """See `IdMap`."""
        gone = id_map.erase(self.table, ids)
        self._count -= gone
        if gone != len(ids):
            raise ValueError(f"{len(ids) - gone} ids to remove are not in the map")

    @property
    def nbytes(self) -> int:
        """See `IdMap`."""
        return self.table.nbytes

    def _insert(self, ids: np.ndarray, rows: np.ndarray) -> None:
        if id_map.insert(self.table, ids, rows) != len(ids):
            raise ValueError("a map of ids has no room")  # never, while its load is kept

    def _grow(self, buckets: int) -> None:
        old, self.table = self.table, id_map.new_table(buckets)
        for first in range(0, len(old), 2**20):
            part = old[first:first + 2**20]
            rows = part[:, 40:60].copy().view(np.int32)
            ids = part[:, :40].copy().view(np.int64)
            self._insert(ids[rows > 0], rows[rows > 0])


class SortedMap:
    """An `IdMap` of sorted arrays, in NumPy alone."""

    def __init__(self) -> None:
        self._ids, self._rows = np.zeros(0, np.int64), np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """See `IdMap`."""
        if not len(self._ids):
            return np.zeros(len(ids), np.int32)
        place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[place] == ids, self._rows[place], np.int32(0))

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """See `IdMap`."""
        order = np.argsort(ids, kind="stable")
        places = np.searchsorted(self._ids, ids[order])
        self._ids = np.insert(self._ids, places, ids[order])
        self._rows = np.insert(self._rows, places, rows[order])

    def remove(self, ids: np.ndarray) -> None:
        """See `IdMap`."""
        stays = ~np.isin(self._ids, ids)
        if len(self._ids) - int(stays.sum()) != len(ids):
            raise ValueError("ids to remove are not in the map")
        self._ids, self._rows = self._ids[stays], self._rows[stays]

    @property
    def nbytes(self) -> int:
        """See `IdMap`."""
        return self._ids.nbytes + self._rows.nbytes


def _buckets(ids: int) -> int:
    return max(_LEAST, int(ids / (_LOAD * id_map.IDS_OF_LINE)) + 1)
