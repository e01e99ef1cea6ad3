"""How often each item is a label of the training stream: what in-batch negatives are drawn by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rec_jax.data.arrays import chunks, counting
from rec_jax.data.dataset import Dataset
from rec_jax.data.queries import Timeline
from rec_jax.data.segments import Part, Targets, Window, part_end

_USERS = 1 << 16  # histories read at a time


def label_counts(dataset: Dataset, *, length: int, window: Window,
                 part: Part = "train", targets: Targets = "next",
                 events: Sequence[str] = (), timeline: Timeline | None = None
                 ) -> npt.NDArray[np.int64]:
    """Times that an epoch of `BatchStream` predicts each item: int64 `[V]`.

    All items, but a user's first where `targets` are the next ones; with `window` "last" only the
    newest `length` of them. events: as of `BatchStream`. timeline: of histories with queries, which
    take places and are no labels; an item behind one is a label, too, where it is a user's first.
    """
    counts = np.zeros(dataset.num_items, np.int64)
    histories = dataset if timeline is None else timeline
    ends = part_end(histories, part)
    codes = dataset.event_codes(events) if events else None
    for start, stop in chunks(dataset.num_users, _USERS):
        end = np.asarray(ends[start:stop])
        begin = np.asarray(histories.offsets[start:stop]) + (targets != "all")
        if window == "last":
            begin = np.maximum(begin, end - length)
        number = np.maximum(end - begin, 0)
        places = np.repeat(begin, number) + counting(number)
        if timeline is not None:
            found = timeline.find(places)
            places = found.position[found.query < 0]
        if codes is not None and dataset.events is not None:
            places = places[np.isin(dataset.events[places], codes)]
        ids, times = np.unique(dataset.items[places], return_counts=True)
        counts[ids] += times
    return counts


def log_shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Log of each count's share of their sum: f32 `[V]`, -inf where the count is 0."""
    with np.errstate(divide="ignore"):
        return np.log(counts / counts.sum()).astype(np.float32)


def of_targets(log_share: npt.NDArray[np.float32],
               targets: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """`log_share` `[V]` of each target; 0 where there is none (-1). Ids past the end are left
    for the step to count as bad."""
    return np.where(targets >= 0, log_share.take(targets, mode="clip"), 0.0).astype(np.float32)
