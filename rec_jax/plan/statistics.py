"""What a dataset is like, in the few numbers that a recipe follows from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rec_jax.data.dataset import Dataset
from rec_jax.inference.protocol import repeat_share

LENGTH_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Statistics:
    """Of the training part, but for who is validated; nothing of the test part is read.

    users, items: of the dataset; an item may have no interaction in the training part.
    interactions: of the training part; targets: those that have one of the same user before them.
    lengths: of the users' training histories, at `LENGTH_QUANTILES`.
    validated: users that validation asks for.
    repeats: share of the validation's targets that are in their user's history.
    """

    users: int
    items: int
    interactions: int
    targets: int
    lengths: tuple[float, ...]
    validated: int
    repeats: float

    @property
    def per_item(self) -> float:
        """Interactions an item."""
        return self.interactions / self.items

    @property
    def long_history(self) -> float:
        """Nineteen of twenty users have a history of at most so many items."""
        return self.lengths[LENGTH_QUANTILES.index(0.95)]


def statistics_of(dataset: Dataset) -> Statistics:
    """The statistics of a dataset: a pass over its users, none over its interactions."""
    lengths = np.asarray(dataset.train_end) - np.asarray(dataset.offsets[:-1])
    lengths = lengths[lengths > 0]
    valid = ((np.asarray(dataset.valid_end) > dataset.train_end)
             & (np.asarray(dataset.train_end) > dataset.offsets[:-1]))
    quantiles = (np.quantile(lengths, LENGTH_QUANTILES) if len(lengths)
                 else np.zeros(len(LENGTH_QUANTILES)))
    return Statistics(
        users=dataset.num_users, items=dataset.num_trained, interactions=int(lengths.sum()),
        targets=int((lengths - 1).sum()), lengths=tuple(map(float, quantiles)),
        validated=int(valid.sum()), repeats=repeat_share(dataset, "valid"))
