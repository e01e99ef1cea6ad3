"""User-based neighbours (Resnick et al., 1994): what the k most similar people took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rec_jax.solvers.base import Fitted, Matrix, Training
from rec_jax.solvers.interactions import binary
from rec_jax.solvers.neighbours import (
    CELL_BYTES,
    CELLS,
    NeighbourSettings,
    Weigher,
    blocks,
    keep_best,
    norms,
    positive,
    similarities,
)
from rec_jax.solvers.room import check_room


@dataclass(frozen=True)
class Config(NeighbourSettings):
    """Settings of user-kNN.

    neighbours: similar people who are asked.
    weighting: of the items that two people share: all alike, or tf-idf or BM25.
    shrink: added to the product of two lengths, against similarities from few items.
    k1, b: of BM25.
    """

    section: ClassVar[str] = "userknn"
    tried: ClassVar[tuple[int, ...]] = (50, 100, 200, 400)

    def fit(self, training: Training) -> Fitted:
        """Weights of everybody's items; neighbours are found when they are asked for."""
        users = training.matrix.shape[0]
        check_room(f"userknn of {users:,} users",
                   CELL_BYTES * max(CELLS, *training.matrix.shape) + 40 * training.matrix.nnz)
        weigher = Weigher.of(training.matrix, self.weighting, self.k1, self.b)
        return _UserKNN(self, weigher, training.matrix)


class _UserKNN:
    def __init__(self, config: Config, weigher: Weigher, matrix: Matrix) -> None:
        self._config, self._weigher, self._taken = config, weigher, binary(matrix)
        self._weighted = weigher(matrix)
        self._norms = norms(self._weighted)

    def scores(self, histories: Matrix, own: np.ndarray | None = None) -> np.ndarray:
        parts = [np.zeros((0, histories.shape[1]))]
        for block in blocks(histories.shape[0], self._taken.shape[0]):
            alike = similarities(self._weigher(histories[block]), self._weighted, self._norms,
                                 self._config.shrink)
            if own is not None:
                askers = np.repeat(own[block], np.diff(alike.indptr))
                alike = positive(np.where(alike.indices == askers, 0, alike.data), alike)
            asked = keep_best(alike, self._config.neighbours)
            parts.append((asked @ self._taken).toarray())
        return np.concatenate(parts)
