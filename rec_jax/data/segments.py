"""The pieces of histories that one epoch trains on, grouped by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from rec_jax.data.arrays import chunks, counting

Int64s = npt.NDArray[np.int64]
Window = Literal["last", "chunks"]
Part = Literal["train", "valid", "test"]
Targets = Literal["next", "self", "all"]
"""What an input's target is: the item after it (`next`; the last item is no input), or the input
itself, of histories of two items or more (`self`), or of all (`all`)."""


class Histories(Protocol):
    """Whose histories are cut: a dataset's, or with its queries a `rec_jax.data.queries.Timeline`.
    """

    @property
    def num_users(self) -> int: ...

    @property
    def offsets(self) -> Int64s: ...

    def split_bounds(self) -> tuple[Int64s, Int64s, Int64s]: ...


@dataclass(frozen=True)
class Segments:
    """All segments, those of length 1 first; a segment of length l has l inputs and l targets.

    Targets are the items after the inputs or the inputs themselves; see `Targets`.

    begin: int64 [L+2], those of length l are [begin[l], begin[l+1]).
    user: uint32 [M].
    chunk: uint32 [M], how many full windows of the user lie after it; None: it is the last.
    """

    begin: Int64s
    user: npt.NDArray[np.uint32]
    chunk: npt.NDArray[np.uint32] | None


def part_end(dataset: Histories, part: Part) -> Int64s:
    """Where the part of each history that is trained on ends: int64 [U], absolute.

    train: the training part; valid, test: with the validation and then the test part added, for
    a final fit.
    """
    train_end, valid_end, end = dataset.split_bounds()
    return {"train": train_end, "valid": valid_end, "test": end}[part]


def count_lengths(dataset: Histories, length: int, window: Window, part: Part,
                  kind: Targets = "next", first: Int64s | None = None) -> Int64s:
    """Number of segments of each length: int64 [length+1].

    first: int64 [U], absolute position of each user's first target that counts; segments without
      one are left out. None: all count.
    """
    counts = np.zeros(length + 1, np.int64)
    for _, targets in _targets(dataset, part, kind, first, length):
        if window == "last":
            counts += np.bincount(np.minimum(targets, length), minlength=length + 1)
        else:
            counts[length] += int((targets // length).sum())
            counts += np.bincount(targets % length, minlength=length + 1)
    counts[0] = 0
    return counts


def find_segments(dataset: Histories, length: int, window: Window, part: Part,
                  kind: Targets = "next", first: Int64s | None = None) -> Segments:
    """Group all segments by length: a counting sort, four bytes a user (eight with chunks).

    first: as in `count_lengths`.
    """
    counts = count_lengths(dataset, length, window, part, kind, first)
    begin = np.concatenate([[0], np.cumsum(counts)])
    user = np.empty(begin[-1], np.uint32)
    chunk = np.empty(begin[-1], np.uint32) if window == "chunks" else None
    cursor = begin[:-1].copy()
    for start, targets in _targets(dataset, part, kind, first, length):
        number = np.ones_like(targets) if window == "last" else -(-targets // length)
        number[targets == 0] = 0
        owner = np.repeat(np.arange(len(targets)), number)
        after = counting(number)
        size = np.minimum(targets[owner] - after * length, length)
        order = np.argsort(size.astype(np.uint16) if length < 1 << 16 else size, kind="stable")
        found = np.bincount(size, minlength=length + 1)
        place = np.repeat(cursor, found) + counting(found)
        user[place] = start + owner[order]
        if chunk is not None:
            chunk[place] = after[order]
        cursor += found
    return Segments(begin, user, chunk)


def _targets(dataset: Histories, part: Part, kind: Targets, first: Int64s | None,
             length: int) -> Iterator[tuple[int, Int64s]]:
    """(first user, number of targets of each user), a chunk of users at a time.

    A user needs two items where they are predicted from each other: one item alone can be
    predicted from nothing but the catalogue. first: of a user's windows of `length` targets,
    counted from the end, those without a target from there on are left out.
    """
    end = part_end(dataset, part)
    for start, stop in chunks(dataset.num_users):
        items = end[start:stop] - dataset.offsets[start:stop]
        targets = np.where(items > (kind != "all"), items - (kind == "next"), 0)
        if first is not None:
            counted = np.clip(end[start:stop] - first[start:stop], 0, targets)
            targets = np.minimum(targets, -(-counted // length) * length)
        yield start, targets
