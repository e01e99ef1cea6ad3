"""The k-core of the interactions, and the walk over what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rec_jax.data.arrays import Interactions, Rows, chunks

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Kept:
    """Sorted rows of which only those of kept users and kept items count.

    users: bool [number of user codes]; items: bool [number of item codes].
    """

    rows: Rows
    users: Mask
    items: Mask

    def walk(self) -> Iterator[Interactions]:
        """The kept rows, chunk by chunk, in order."""
        whole = bool(self.users.all() and self.items.all())
        for start, stop in chunks(self.rows.count()):
            part = self.rows.read(start, stop)
            yield part if whole else part.take(self.users[part.users] & self.items[part.items])

    def counts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Kept interactions of each user code and of each item code: int64."""
        by_user = np.zeros(len(self.users), np.int64)
        by_item = np.zeros(len(self.items), np.int64)
        for part in self.walk():
            add_counts(by_user, part.users)
            add_counts(by_item, part.items)
        return by_user, by_item


def k_core(rows: Rows, num_users: int, num_items: int, user_core: int, item_core: int) -> Kept:
    """The largest set in which each user has `user_core` interactions, each item `item_core`.

    Interactions are counted, not distinct pairs: drop duplicates before, if they should not
    count. Cost: one walk over the rows for each round of dropping.
    """
    kept = Kept(rows, np.ones(num_users, bool), np.ones(num_items, bool))
    while True:
        by_user, by_item = kept.counts()
        users = by_user >= max(user_core, 1)
        items = by_item >= max(item_core, 1)
        # what is out has no interactions left, so a mask can only shrink
        if (users == kept.users).all() and (items == kept.items).all():
            return kept
        kept = Kept(rows, users, items)


def add_counts(counts: npt.NDArray[np.int64], codes: Codes) -> None:
    """counts[c] += number of times that c is in `codes`."""
    if len(codes) * 8 < len(counts):
        values, number = np.unique(codes, return_counts=True)
        counts[values] += number
    else:
        counts += np.bincount(codes, minlength=len(counts))
