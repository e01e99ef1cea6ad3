"""EASE (Steck, 2019): the best linear item-item model whose diagonal is zero, in closed form.

With G = X^T X + ridge I over people's items X `[U, V]` of zeros and ones, and P = G^-1:

    B = I - P / diag(P)  (column j by P_jj), diagonal 0;   scores = histories B

P is made in the place of G, so there is one array `[V, V]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import get_lapack_funcs

from rec_jax.errors import InputError
from rec_jax.inference.cold_rule import ColdRule, Floats, Known, cold_vectors
from rec_jax.ranges import above, check
from rec_jax.solvers.base import Fitted, Matrix, Training, Values
from rec_jax.solvers.interactions import binary
from rec_jax.solvers.neighbours import CELL_BYTES, CELLS, blocks
from rec_jax.solvers.room import check_room


@dataclass(frozen=True)
class Config:
    """Settings of EASE.

    ridge: added to the diagonal of the Gram matrix; more for more interactions.
    precision: f64, or f32, which needs half the memory and a ridge that is not tiny.
    """

    ridge: float = 500.0
    precision: Literal["f64", "f32"] = "f64"

    def __post_init__(self) -> None:
        check(self, "ease.", ridge=above(0))

    @property
    def values(self) -> Values:
        return "counts"

    @property
    def grid(self) -> Mapping[str, Sequence[Any]]:
        return {"ridge": (100.0, 200.0, 500.0, 1000.0, 2000.0)}

    def fit(self, training: Training) -> Fitted:
        """One Cholesky factorisation of V x V."""
        items = training.matrix.shape[1]
        dtype = np.dtype(np.float64 if self.precision == "f64" else np.float32)
        check_room(f"ease of {items:,} items in {self.precision}",
                   dtype.itemsize * items**2 + CELL_BYTES * max(CELLS, items)
                   + 40 * training.matrix.nnz)
        gram = _gram(binary(training.matrix), self.ridge, dtype)
        return EASE(_zero_diagonal(_inverse(gram, self)))


class EASE:
    """Fitted: B `[V, V]`."""

    def __init__(self, weights: np.ndarray) -> None:
        self._weights = weights  # [V, V], row by row

    def scores(self, histories: Matrix, own: np.ndarray | None = None) -> np.ndarray:
        del own
        return binary(histories).astype(self._weights.dtype) @ self._weights

    def with_cold(self, rule: ColdRule, content: Floats, warm: npt.NDArray[np.int64],
                  cold: npt.NDArray[np.int64]) -> EASE:
        """The same with columns of B for `cold` items, made of those of `warm` ones by a rule:
        a column says how much each item of a history speaks for its item.

        content: f32 `[V, c]`.
        """
        columns, nothing = self._weights.T, np.zeros((len(self._weights), 1), np.float32)
        made = cold_vectors(rule, Known(columns[warm], nothing[warm], content[warm]),
                            nothing[cold], content[cold])
        weights = self._weights.copy()
        weights[:, cold] = made.T
        return EASE(weights)


def _gram(taken: Matrix, ridge: float, dtype: np.dtype[Any]) -> np.ndarray:
    """X^T X + ridge I, `[V, V]`, column by column as LAPACK wants it."""
    items = taken.shape[1]
    gram = np.zeros((items, items), dtype, order="F")
    columns, rows = taken.tocsc(), taken.T.tocsr()
    for block in blocks(items, items):
        gram[:, block] = (rows @ columns[:, block]).toarray()
    gram[np.diag_indices(items)] += ridge
    return gram


def _inverse(gram: np.ndarray, config: Config) -> np.ndarray:
    """G^-1 in the place of G."""
    factor, invert = get_lapack_funcs(("potrf", "potri"), (gram,))
    lower, failed = factor(gram, lower=1, overwrite_a=1, clean=0)
    if not failed:
        lower, failed = invert(lower, lower=1, overwrite_c=1)
    if failed or not np.isfinite(np.diagonal(lower)).all():
        raise InputError(f"ease.ridge = {config.ridge:g} is too small to invert the Gram matrix "
                         f"in {config.precision}; expected a larger one"
                         + (", or ease.precision = 'f64'" if config.precision == "f32" else ""))
    for block in blocks(len(lower), len(lower)):
        corner = np.tril(lower[block, block])
        lower[block, block] = corner + np.tril(corner, -1).T
        lower[block, block.stop:] = lower[block.stop:, block].T
    return lower


def _zero_diagonal(inverse: np.ndarray) -> np.ndarray:
    """B in the place of P; the transpose of the symmetric P lies row by row in memory."""
    weights = inverse.T
    weights /= -np.diagonal(weights).copy()
    np.fill_diagonal(weights, 0)
    return weights
