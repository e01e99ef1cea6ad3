"""The graph of interactions: an edge where a user took an item in the training part.

What was taken twice is one edge, as in the papers on such graphs, and nothing of validation or test
is in it. It follows from the dataset alone, so no checkpoint has it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rec_jax.data.dataset import Dataset

Int32s = npt.NDArray[np.int32]


class Edges(NamedTuple):
    """users, items: int32 `[E]`, both ends of every edge, each pair once, by user and then item."""

    users: Int32s
    items: Int32s


def interaction_edges(dataset: Dataset) -> Edges:
    """The edges of the training part."""
    starts = np.asarray(dataset.offsets)[:-1]
    lengths = np.asarray(dataset.train_end) - starts
    users = np.repeat(np.arange(dataset.num_users), lengths)
    first = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(first[-1]) + np.repeat(starts - first[:-1], lengths)
    return distinct_edges(users, np.asarray(dataset.items)[places], dataset.num_items)


def distinct_edges(users: npt.NDArray[np.integer], items: npt.NDArray[np.integer], num_items: int
                   ) -> Edges:
    """Each pair of `users` `[n]` and `items` `[n]` once, in order."""
    keys = np.unique(users.astype(np.int64) * num_items + items)
    return Edges((keys // num_items).astype(np.int32), (keys % num_items).astype(np.int32))
