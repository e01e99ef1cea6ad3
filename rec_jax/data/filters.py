"""The k-core of the interactions, and the interactions that it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rec_jax.data.arrays import InteractionFiles, Interactions, chunks

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Filtered:
    """Sorted interactions, of which only those of kept users and kept items count.

    users: bool [number of user codes]; items: bool [number of item codes].
    """

    files: InteractionFiles
    users: Mask
    items: Mask

    def chunks(self) -> Iterator[Interactions]:
        """The kept interactions in order, a chunk at a time."""
        keeps_all = bool(self.users.all() and self.items.all())
        for start, stop in chunks(self.files.count()):
            part = self.files.read(start, stop)
            yield part if keeps_all else part.take(self.users[part.users] & self.items[part.items])

    def counts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Kept interactions of each user code and of each item code: int64."""
        by_user = np.zeros(len(self.users), np.int64)
        by_item = np.zeros(len(self.items), np.int64)
        for part in self.chunks():
            add_counts(by_user, part.users)
            add_counts(by_item, part.items)
        return by_user, by_item


def k_core(files: InteractionFiles, num_users: int, num_items: int, user_core: int,
           item_core: int) -> Filtered:
    """The largest set in which each user has `user_core` interactions, each item `item_core`.

    Interactions are counted, not distinct pairs: drop duplicates before, if they should not
    count. Cost: one pass over the rows for each round of dropping.
    """
    kept = Filtered(files, np.ones(num_users, bool), np.ones(num_items, bool))
    while True:
        by_user, by_item = kept.counts()
        users = by_user >= max(user_core, 1)
        items = by_item >= max(item_core, 1)
        # what is dropped has no interactions left, so a mask can only shrink
        if (users == kept.users).all() and (items == kept.items).all():
            return kept
        kept = Filtered(files, users, items)


def add_counts(counts: npt.NDArray[np.int64], codes: Codes) -> None:
    """counts[c] += number of times that c is in `codes`."""
    if len(codes) * 8 < len(counts):
        values, number = np.unique(codes, return_counts=True)
        counts[values] += number
    else:
        counts += np.bincount(codes, minlength=len(counts))
