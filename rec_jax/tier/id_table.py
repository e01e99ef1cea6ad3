"""Ids that have a row: who they are, how often and when each was seen, and which rows are free.

Rows count from 1. A new id gets the lowest row that was freed, and where none is left the next one
that nobody ever had; several get them in their order. So which row an id has follows from what was
added and dropped, in its order, and from nothing else: no mesh, no process, no place in memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rec_jax.errors import InputError
from rec_jax.tier.id_map import new_map

_LEAST = 1024
_COLUMNS = ("ids", "counts", "last", "checks")


class IdTable:
    """A table of ids, at most `capacity` at a time; None: no bound.

    ids, counts, last, checks: int64 by row, 0 where a row is free (row 0 is nobody's): the id, how
    often it was seen, the largest time of that, and what a text id is checked by.
    """

    def __init__(self, capacity: int | None = None, *, native: bool | None = None) -> None:
        self.capacity, self._native = capacity, native
        self.ids, self.counts, self.last, self.checks = (np.zeros(1, np.int64) for _ in range(4))
        self._free, self._taken, self._end = np.zeros(0, np.int64), 0, 1
        self.map = new_map(native=native)

    def __len__(self) -> int:
        return len(self.map)

    @property
    def room(self) -> int:
        """How many more ids find a row."""
        most = 2**31 - 2 if self.capacity is None else self.capacity
        return most - len(self)

    @property
    def free(self) -> np.ndarray:
        """Rows int64 `[n]` that were given back and are nobody's now, ascending."""
        return self._free[self._taken:]

    @property
    def end(self) -> int:
        """The first row that nobody ever had."""
        return self._end

    def live(self) -> np.ndarray:
        """Rows int64 `[n]` that have an id, ascending."""
        return np.flatnonzero(self.counts[:self._end])

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Rows int32 `[n]` of `ids` int64 `[n]`; 0 where there is none."""
        return self.map.find(ids)

    def add(self, ids: np.ndarray, counts: np.ndarray, last: np.ndarray,
            checks: np.ndarray) -> np.ndarray:
        """Rows int64 `[n]` of new ids: distinct, not there, no more than there is room for."""
        again = self._free[self._taken:self._taken + len(ids)]
        self._taken += len(again)
        end = self._end + len(ids) - len(again)
        rows = np.concatenate([again, np.arange(self._end, end)])
        self._end = end
        self._make_room(end)
        self.map.add(ids, rows.astype(np.int32))
        self.ids[rows], self.counts[rows] = ids, counts
        self.last[rows], self.checks[rows] = last, checks
        return rows

    def touch(self, rows: np.ndarray, counts: np.ndarray, last: np.ndarray) -> None:
        """Count that `rows`, distinct and live, were seen `counts` times, at last at `last`."""
        self.counts[rows] += counts
        self.last[rows] = np.maximum(self.last[rows], last)

    def drop(self, rows: np.ndarray) -> None:
        """Give `rows` back, distinct and live."""
        self.map.remove(self.ids[rows])
        for column in (self.ids, self.counts, self.last, self.checks):
            column[rows] = 0
        self._free = np.sort(np.concatenate([self.free, rows]))
        self._taken = 0

    def arrays(self) -> dict[str, np.ndarray]:
        """What makes the same table by `restore`."""
        return {name: getattr(self, name)[:self._end] for name in _COLUMNS}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Be the table of `arrays`.

        Raises:
          InputError: they are no table, or one with more rows than this one may have.
        """
        sizes = {len(array) for array in arrays.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise InputError(f"a table of ids has columns of lengths {sorted(sizes)}; expected one")
        if self.capacity is not None and max(sizes) > self.capacity + 1:
            raise InputError(f"a table of {max(sizes) - 1} rows of ids does not fit the capacity "
                             f"of {self.capacity}")
        self.ids, self.counts, self.last, self.checks = (
            np.array(arrays[name], np.int64) for name in _COLUMNS)
        self._end, self._taken = max(sizes), 0
        live = self.live()
        self._free = np.setdiff1d(np.arange(1, self._end), live, assume_unique=True)
        self.map = new_map(len(live), native=self._native)
        for part in np.array_split(live, max(1, len(live) // 2**20)):
            self.map.add(self.ids[part], part.astype(np.int32))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the ids take."""
        return self.map.nbytes + 8 * 4 * self._end

    def _make_room(self, end: int) -> None:
        if end <= len(self.ids):
            return
        size = max(_LEAST, end, len(self.ids) * 3 // 2)
        if self.capacity is not None:
            size = max(end, min(size, self.capacity + 1))
        for name in _COLUMNS:
            old = getattr(self, name)
            new = np.zeros(size, np.int64)
            new[:len(old)] = old
            setattr(self, name, new)


def first_to_go(keys: list[np.ndarray], count: int) -> np.ndarray:
    """Places int64 `[count]`, ascending, of the `count` smallest of `[n]` by the first key, among
    equal ones by the next, and so on; the last key has no equal ones. Nothing is sorted."""
    places = np.arange(len(keys[0]))
    found: list[np.ndarray] = []
    for key in keys:
        if not count:
            break
        if count >= len(places):
            found.append(places)
            break
        values = key[places]
        edge = np.partition(values, count - 1)[count - 1]
        below = places[values < edge]
        found.append(below)
        count -= len(below)
        places = places[values == edge]
    else:
        found.append(places[:count])
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)
