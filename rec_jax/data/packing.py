"""Which lengths share a row: packing by histogram.

Segments of the same length are interchangeable, so a packing is a list of patterns ("one of
120, one of 50, three of 10") with how often each occurs. It is found from the histogram of
lengths alone, longest first into the tightest space that still takes it, in time that does not
depend on the number of users (Krell et al., "Efficient sequence packing without
cross-contamination", 2021). Which user fills which place is decided later, by a shuffle.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """G patterns with S places in all.

    rows: int64 [G+1], the rows with pattern g are [rows[g], rows[g+1]).
    places: int64 [G+1], the places of pattern g are [places[g], places[g+1]).
    lengths: int64 [S], length of the segment in a place.
    columns: int64 [S], where in the row it begins.
    base: int64 [S], how many segments of that length the places before it have used: place s of
      the i-th row of its pattern takes number `base[s] + i` among the segments of its length.
    """

    rows: Int64s
    places: Int64s
    lengths: Int64s
    columns: Int64s
    base: Int64s

    @property
    def num_rows(self) -> int:
        return int(self.rows[-1])


def pack(histogram: npt.ArrayLike, length: int) -> Packing:
    """Pack segments into rows of `length` positions.

    histogram: int [length+1], number of segments of each length; entry 0 is ignored.
    """
    counts = [int(value) for value in np.asarray(histogram)]
    if len(counts) != length + 1:
        raise ValueError(f"histogram has {len(counts)} entries, expected length + 1 = {length + 1}")
    open_rows: dict[int, list[tuple[tuple[int, ...], int]]] = defaultdict(list)
    for size in range(length, 0, -1):
        left = counts[size]
        while left:
            space = min((free for free in open_rows if free >= size), default=None)
            if space is None:
                left = _new_rows(open_rows, size, left, length)
                continue
            pattern, number = open_rows[space].pop()
            used = min(number, left)
            if number > used:
                open_rows[space].append((pattern, number - used))
            if not open_rows[space]:
                del open_rows[space]
            open_rows[space - size].append(((*pattern, size), used))
            left -= used
    found = [group for free in sorted(open_rows) for group in open_rows[free]]
    return _packing(found)


def no_packing(histogram: npt.ArrayLike) -> Packing:
    """One segment a row: the padded layout, in the same terms."""
    counts = np.asarray(histogram)
    return _packing([((size,), int(counts[size]))
                     for size in range(len(counts) - 1, 0, -1) if counts[size]])


def _new_rows(open_rows: dict[int, list[tuple[tuple[int, ...], int]]], size: int, left: int,
              length: int) -> int:
    """Open rows that are filled with `size` alone; returns how many segments are left."""
    together = min(length // size, left)
    open_rows[length - together * size].append(((size,) * together, left // together))
    return left % together


def _packing(found: list[tuple[tuple[int, ...], int]]) -> Packing:
    used: dict[int, int] = defaultdict(int)
    rows, places = [0], [0]
    lengths: list[int] = []
    columns: list[int] = []
    base: list[int] = []
    for pattern, number in found:
        column = 0
        for size in pattern:
            lengths.append(size)
            columns.append(column)
            base.append(used[size])
            used[size] += number
            column += size
        rows.append(rows[-1] + number)
        places.append(places[-1] + len(pattern))
    return Packing(*(np.array(values, np.int64)
                     for values in (rows, places, lengths, columns, base)))
