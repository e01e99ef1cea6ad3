"""Everybody is shown what most people took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rec_jax.solvers.base import Fitted, Matrix, Training, Values


@dataclass(frozen=True)
class Config:
    """The number of interactions of an item is its score; nothing can be set."""

    @property
    def values(self) -> Values:
        return "counts"

    @property
    def grid(self) -> Mapping[str, Sequence[Any]]:
        return {}

    def fit(self, training: Training) -> Fitted:
        """Count."""
        return _Popularity(np.asarray(training.matrix.sum(axis=0), np.float64))


class _Popularity:
    def __init__(self, counts: np.ndarray) -> None:
        self._counts = counts

    def scores(self, histories: Matrix, own: np.ndarray | None = None) -> np.ndarray:
        del own
        return np.repeat(self._counts[None], histories.shape[0], axis=0)
