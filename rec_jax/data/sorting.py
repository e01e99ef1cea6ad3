"""Sort interactions by user, then by time, without holding them all in memory.

Users are cut into ranges of at most `memory_rows` interactions; rows are first dealt to the
range of their user, in file order, and each range is then sorted in memory. Sorting is stable:
the order of the file breaks ties.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.arrays import InteractionFiles, Interactions, chunks, open_flat, write_flat
from rec_jax.tasks import Tasks

Duplicates = Literal["all", "first", "last"]


class Range(NamedTuple):
    """Rows [start, stop) of all interactions of some users. result: files for them in order."""

    rows: InteractionFiles
    start: int
    stop: int
    duplicates: Duplicates
    result: InteractionFiles


def sort_rows(rows: InteractionFiles, num_users: int, folder: Path, memory_rows: int,
              duplicates: Duplicates = "all", tasks: Tasks | None = None,
              ) -> tuple[InteractionFiles, int]:
    """`rows` sorted by (user, time, file order), duplicates removed; the input is deleted.

    tasks: whoever sorts the ranges of users; without, this process does.

    Returns:
      the sorted rows and the number of duplicates dropped.
    """
    starts, users = user_ranges(count_users(rows, num_users), memory_rows)
    dealt = rows if len(starts) == 2 else _deal(rows, starts, users, folder)
    ranges = [Range(dealt, int(start), int(stop), duplicates,
                    rows.like(folder, f"sorted-{number}"))
              for number, (start, stop) in enumerate(itertools.pairwise(starts))]
    result = rows.like(folder, "sorted")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_flat(path)) for path in result.paths]
        for part in _in_order(ranges, tasks):
            columns = [column for column in part if column is not None]
            for column, file in zip(columns, files, strict=True):
                write_flat(file, column)
    dropped = dealt.count() - result.count()
    dealt.delete()
    return result, dropped


def _in_order(ranges: Sequence[Range], tasks: Tasks | None) -> Iterator[Interactions]:
    """The rows of each range, in order."""
    if tasks is None or len(ranges) < 2:
        yield from map(_ordered, ranges)
        return
    for one, count in zip(ranges, tasks.run(_write_ordered, ranges), strict=True):
        yield one.result.read(0, count)
        one.result.delete()


def _write_ordered(one: Range) -> int:
    """A task: the rows of a range to its files; returns how many are left."""
    part = _ordered(one)
    columns = [column for column in part if column is not None]
    for column, path in zip(columns, one.result.paths, strict=True):
        with open_flat(path) as file:
            write_flat(file, column)
    return len(part.users)


def _ordered(one: Range) -> Interactions:
    return _without_duplicates(_sorted(one.rows.read(one.start, one.stop)), one.duplicates)


def count_users(rows: InteractionFiles, num_users: int) -> npt.NDArray[np.int64]:
    """Interactions of each user: int64 [num_users]."""
    counts = np.zeros(num_users, np.int64)
    for start, stop in chunks(rows.count()):
        counts += np.bincount(rows.read(start, stop).users, minlength=num_users)
    return counts


def user_ranges(counts: npt.NDArray[np.int64], memory_rows: int,
                ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut users into consecutive ranges of at most `memory_rows` rows (or one user).

    Returns:
      row positions [R+1] and the last user of each range [R].
    """
    ends = np.cumsum(counts)
    starts, last = [0], []
    while starts[-1] < (int(ends[-1]) if len(ends) else 0):
        begin = starts[-1]
        user = int(np.searchsorted(ends, begin + memory_rows, side="right")) - 1
        first = int(np.searchsorted(ends, begin, side="right"))
        user = max(user, first)
        last.append(user)
        starts.append(int(ends[user]))
    return np.array(starts, np.int64), np.array(last, np.int64)


def _deal(rows: InteractionFiles, starts: npt.NDArray[np.int64], last: npt.NDArray[np.int64],
          folder: Path) -> InteractionFiles:
    """Rows of one range of users beside each other, file order kept within a range."""
    result = rows.like(folder, "dealt")
    files = [os.open(path, os.O_CREAT | os.O_WRONLY, 0o644) for path in result.paths]
    cursor = starts[:-1].copy()
    try:
        for begin, end in chunks(rows.count()):
            parts = [part for part in rows.read(begin, end) if part is not None]
            belongs = np.searchsorted(last, parts[0]).astype(np.uint16)
            order = np.argsort(belongs, kind="stable")
            size = np.bincount(belongs, minlength=len(last))
            stop = np.cumsum(size)
            for part, file in zip(parts, files, strict=True):
                dealt = part[order]
                for index in np.flatnonzero(size):
                    piece = dealt[stop[index] - size[index]:stop[index]]
                    _write_at(file, piece, int(cursor[index]) * piece.itemsize)
            cursor += size
    finally:
        for file in files:
            os.close(file)
    rows.delete()
    return result


def _write_at(file: int, values: npt.NDArray[Any], offset: int) -> None:
    view = np.ascontiguousarray(values).data.cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _sorted(part: Interactions) -> Interactions:
    step = np.diff(part.users)
    in_order = step > 0
    if part.times is None:
        in_order |= step == 0
    else:
        in_order |= (step == 0) & (np.diff(part.times) >= 0)
    if in_order.all():
        return part
    if part.times is None:
        return part.take(np.argsort(part.users, kind="stable"))
    frame = pl.DataFrame({"user": part.users, "time": part.times})
    order = frame.select(pl.arg_sort_by("user", "time", maintain_order=True)).to_series().to_numpy()
    return part.take(order)


def _without_duplicates(part: Interactions, rule: Duplicates) -> Interactions:
    if rule == "all":
        return part
    pair = pl.Series((part.users.astype(np.int64) << 31) | part.items)
    found = pair.is_first_distinct() if rule == "first" else pair.is_last_distinct()
    return part.take(found.to_numpy() | (part.items < 0))  # queries (`data.query_codes`) all stay
