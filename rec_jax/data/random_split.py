"""A split by chance: each interaction is of training, validation or test by its own coin.

For models that know no order, such as those of ratings. Each user's interactions are put in the
order of their parts, so that a part is a range of positions as in any other split; within one they
keep theirs. What was given in time order is so no longer, and times are not kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rec_jax.data.arrays import Interactions, open_flat, write_flat
from rec_jax.data.filters import Filtered
from rec_jax.data.prepare_config import SplitConfig
from rec_jax.errors import InputError

Int64s = npt.NDArray[np.int64]


def at_random(kept: Filtered, users: Int64s, offsets: Int64s, split: SplitConfig, folder: Path
              ) -> tuple[Filtered, Int64s, Int64s]:
    """The interactions in their new order, in files in `folder`, and (train_end, valid_end).

    users: codes of the kept users in the order of `offsets`.

    Raises:
      InputError: one of the three parts is empty.
    """
    random = np.random.default_rng(split.seed)
    counts = np.zeros((3, len(kept.users)), np.int64)
    files = replace(kept.files.like(folder, "random"), times=None)
    edges = [1 - split.valid_share - split.test_share, 1 - split.test_share]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_flat(path)) for path in files.paths]
        for rows in whole_users(kept):
            # A number an interaction, in order: how they are cut into chunks changes nothing.
            part = np.searchsorted(edges, random.random(len(rows.users)), side="right")
            for number in range(3):
                counts[number] += np.bincount(rows.users[part == number],
                                              minlength=counts.shape[1])
            moved = rows._replace(times=None).take(np.lexsort((part, rows.users)))
            columns = [column for column in moved if column is not None]
            for column, file in zip(columns, opened, strict=True):
                write_flat(file, column)
    empty = [name for name, count in zip(("train", "valid", "test"), counts, strict=True)
             if not count.any()]
    if empty:
        raise InputError(f"the random split of {int(counts.sum())} interactions leaves "
                         f"{' and '.join(empty)} empty; expected larger shares")
    ends = offsets[:-1] + np.cumsum(counts[:2, users], axis=0)
    return Filtered(files, kept.users, kept.items), ends[0], ends[1]


def whole_users(kept: Filtered) -> Iterator[Interactions]:
    """The kept interactions in order, in parts that do not cut a user."""
    pending: Interactions | None = None
    for part in kept.chunks():
        rows = part if pending is None else _joined(pending, part)
        if not len(rows.users):
            continue
        cut = int(np.searchsorted(rows.users, rows.users[-1]))
        yield rows.take(slice(0, cut))
        pending = rows.take(slice(cut, None))
    if pending is not None:
        yield pending


def _joined(one: Interactions, other: Interactions) -> Interactions:
    def both(a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None) -> Any:
        return None if a is None or b is None else np.concatenate([a, b])

    return Interactions(*(both(a, b) for a, b in zip(one, other, strict=True)))
