"""Item-based neighbours (Sarwar et al., 2001; Deshpande and Karypis, 2004).

Every item has its k most similar items, and a person's score for an item is the sum of its
similarities to the items of the history that have it among theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sparse

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
    """Settings of item-kNN.

    neighbours: similar items that an item keeps.
    weighting: of the people who took an item: all alike, or tf-idf or BM25.
    shrink: added to the product of two lengths, against similarities from few people.
    k1, b: of BM25.
    """

    section: ClassVar[str] = "itemknn"
    tried: ClassVar[tuple[int, ...]] = (20, 50, 100, 200)

    def fit(self, training: Training) -> Fitted:
        """Similarities of all items, block by block."""
        users, items = training.matrix.shape
        kept = min(self.neighbours, max(items - 1, 0))
        check_room(f"itemknn of {items:,} items with {kept} neighbours each",
                   24 * items * kept + CELL_BYTES * max(CELLS, items)
                   + 40 * training.matrix.nnz + 8 * users)
        taken = training.matrix.T.tocsr()  # [V, U]
        weighted = Weigher.of(taken, self.weighting, self.k1, self.b)(taken)
        lengths, parts = norms(weighted), []
        for block in blocks(items, items):
            alike = similarities(weighted[block], weighted, lengths, self.shrink)
            others = np.repeat(np.arange(block.start, block.stop), np.diff(alike.indptr))
            alike = positive(np.where(alike.indices == others, 0, alike.data), alike)
            parts.append(keep_best(alike, self.neighbours))
        return _ItemKNN(sparse.vstack(parts, format="csr"))


class _ItemKNN:
    def __init__(self, similar: Matrix) -> None:
        self._similar = similar  # [V, V], a row: the neighbours of an item

    def scores(self, histories: Matrix, own: np.ndarray | None = None) -> np.ndarray:
        del own
        return (binary(histories) @ self._similar).toarray()
