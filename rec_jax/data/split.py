"""Cut each history into train, validation and test."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rec_jax.data.filters import Filtered, add_counts
from rec_jax.data.prepare_config import SplitConfig
from rec_jax.data.time_units import instant
from rec_jax.errors import InputError

Int64s = npt.NDArray[np.int64]
_BINS = 1 << 20


def leave_one_out(offsets: Int64s) -> tuple[Int64s, Int64s]:
    """(train_end, valid_end), absolute positions: the last item is test, the one before valid.

    Users with fewer than three items have neither: all that they have is for training.
    """
    end = offsets[1:]
    enough = np.diff(offsets) >= 3
    return end - 2 * enough, end - 1 * enough


def leave_event_out(kept: Filtered, users: Int64s, offsets: Int64s, code: int
                    ) -> tuple[Int64s, Int64s]:
    """(train_end, valid_end): the positions of the last two events of type `code` of each user.

    users: codes of the kept users in the order of `offsets`. Users with fewer than two of them, or
    with nothing before, have neither: all that they have is for training.
    """
    last = np.full((2, len(kept.users)), -1, np.int64)  # the last one, and the one before it
    position = 0
    for part in kept.chunks():
        assert part.events is not None
        at = np.flatnonzero(part.events == code)
        owner = part.users[at]
        ends = np.flatnonzero(np.append(owner[1:] != owner[:-1], len(owner) > 0))
        two = ends[(ends > 0) & (owner[ends - 1] == owner[ends])]
        one = np.setdiff1d(ends, two)
        last[1, owner[two]], last[1, owner[one]] = position + at[two - 1], last[0, owner[one]]
        last[0, owner[ends]] = position + at[ends]
        position += len(part.users)
    enough = last[1, users] > offsets[:-1]
    return (np.where(enough, last[1, users], offsets[1:]),
            np.where(enough, last[0, users], offsets[1:]))


def by_time(kept: Filtered, users: Int64s, offsets: Int64s, instants: tuple[int, int],
            per_second: int = 1) -> tuple[Int64s, Int64s]:
    """(train_end, valid_end): what lies before the first and before the second instant.

    users: codes of the kept users in the order of `offsets`; instants: in the ticks of the rows.

    Raises:
      InputError: no interaction lies in one of the three parts.
    """
    before = [np.zeros(len(kept.users), np.int64) for _ in instants]
    for part in kept.chunks():
        assert part.times is not None
        for counts, end in zip(before, instants, strict=True):
            add_counts(counts, part.users[part.times < end])
    ends = [0, *(int(counts.sum()) for counts in before), int(offsets[-1])]
    sizes = dict(zip(("train", "valid", "test"), np.diff(ends).tolist(), strict=True))
    empty = [name for name, size in sizes.items() if not size]
    if empty:
        low, high = (instant(ticks, per_second) for ticks in _range(kept))
        valid, test = (instant(ticks, per_second) for ticks in instants)
        raise InputError(f"the time split leaves {' and '.join(empty)} empty: valid_time is "
                         f"{valid}, test_time {test}, and the interactions are from {low} to "
                         f"{high}; expected other instants or quantiles")
    return offsets[:-1] + before[0][users], offsets[:-1] + before[1][users]


def split_instants(kept: Filtered, split: SplitConfig, count: int,
                   per_second: int = 1) -> tuple[int, int]:
    """The two instants of a global-time split, in ticks: given, or quantiles of the times.

    per_second: ticks in a second.

    Raises:
      InputError: the source has no times.
    """
    if kept.files.times is None:
        raise InputError("split.kind = 'time' needs columns.time")
    if split.valid_time is not None and split.test_time is not None:
        return split.valid_time * per_second, split.test_time * per_second
    return (time_at_rank(kept, int(split.valid_quantile * count)),
            time_at_rank(kept, int(split.test_quantile * count)))


def time_at_rank(kept: Filtered, rank: int) -> int:
    """The time that has `rank` smaller or equal ones before it in sorted order.

    A histogram over the range of the times, refined within the bin that holds the rank: two or
    three walks and constant memory.
    """
    low, high = _range(kept)
    while low < high:
        width = (high - low) // _BINS + 1
        counts = np.zeros((high - low) // width + 1, np.int64)
        below = 0
        for part in kept.chunks():
            times = part.times
            assert times is not None
            below += int((times < low).sum())
            inside = times[(times >= low) & (times <= high)]
            counts += np.bincount((inside - low) // width, minlength=len(counts))
        index = int(np.searchsorted(np.cumsum(counts), rank - below, side="right"))
        index = min(index, len(counts) - 1)
        low, high = low + index * width, min(low + (index + 1) * width - 1, high)
    return low


def _range(kept: Filtered) -> tuple[int, int]:
    lows, highs = [], []
    for part in kept.chunks():
        if part.times is not None and len(part.times):
            lows.append(int(part.times.min()))
            highs.append(int(part.times.max()))
    return min(lows), max(highs)
