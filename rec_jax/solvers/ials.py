"""iALS: matrix factorisation by alternating least squares, with fold-in.

A person's vector is always solved from their history against the fixed items, whether or not they
were there in training: only items are kept. See `rec_jax.solvers.ials_sweep` for the objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sparse
from jax.sharding import Mesh

from rec_jax.ranges import above, at_least, check
from rec_jax.solvers.base import Fitted, Matrix, Training, Values
from rec_jax.solvers.ials_layout import LENGTH, PIECES, Layout
from rec_jax.solvers.ials_sweep import Rule, half_sweep, new_table, rows_of, solve_new
from rec_jax.solvers.room import check_room
from rec_jax.tables.table import Table, padded_size


@dataclass(frozen=True)
class Config:
    """Settings of iALS.

    dim: width d of the vectors.
    sweeps: passes over people and items.
    feedback: implicit: every item that somebody did not take counts as 0 with confidence 1;
      explicit: ratings alone, less their mean.
    alpha: confidence that one interaction adds to that 1 (implicit alone).
    reg: regularisation of a row, times n^power.
    power: of n, the sum of a row's confidences, or its number of ratings.
    init_scale: standard deviation of the first item vectors, times 1 / sqrt(d).
    solver: cholesky, or cg: conjugate gradients, which needs no d x d array for each row.
    cg_steps: steps of cg for a row in a sweep.
    seed: of the first item vectors.
    """

    dim: int = 64
    sweeps: int = 16
    feedback: Literal["implicit", "explicit"] = "implicit"
    alpha: float = 1.0
    reg: float = 0.003
    power: float = 1.0
    init_scale: float = 0.1
    solver: Literal["cholesky", "cg"] = "cholesky"
    cg_steps: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "ials.", dim=at_least(1, 2**14), sweeps=at_least(1), alpha=above(0, 1e9),
              reg=above(0), power=at_least(0, 2), init_scale=above(0, 1e3),
              cg_steps=at_least(1), seed=at_least(0, 2**32 - 1))

    @property
    def values(self) -> Values:
        return "counts" if self.feedback == "implicit" else "ratings"

    @property
    def grid(self) -> Mapping[str, Sequence[Any]]:
        if self.feedback == "explicit":
            return {"reg": (0.02, 0.05, 0.1)}
        return {"alpha": (0.5, 1.0, 3.0, 10.0), "reg": (0.001, 0.003, 0.01)}

    def fit(self, training: Training) -> Fitted:
        """Sweeps over both tables, on the devices of `training.mesh`."""
        matrix, mesh = training.matrix, training.mesh
        users, items = matrix.shape
        check_room(f"ials of {users:,} users and {items:,} items in {self.dim} dimensions",
                   self._bytes(matrix, mesh))
        mean = _mean(matrix) if self.feedback == "explicit" else 0.0
        by_user = _centred(matrix, mean)
        by_item = by_user.T.tocsr()
        layouts = Layout.of(by_user, mesh.size), Layout.of(by_item, mesh.size)
        rule = self._rule()
        people = new_table(users, self.dim, mesh)
        works = new_table(items, self.dim, mesh, seed=self.seed,
                          scale=self.init_scale / self.dim**0.5)
        for sweep in range(self.sweeps):
            people = half_sweep(mesh, people, works, layouts[0], rule)
            works = half_sweep(mesh, works, people, layouts[1], rule)
            training.say(f"ials: sweep {sweep + 1} of {self.sweeps}")
        return Factors(mesh, works, rows_of(works, items, mesh), rule, mean)

    def _rule(self) -> Rule:
        return Rule(self.alpha, self.reg, self.power, self.feedback == "implicit", self.solver,
                    self.cg_steps)

    def _bytes(self, matrix: Matrix, mesh: Mesh) -> int:
        """Both matrices; both tables, one more of each while it changes hands; one batch."""
        rows = padded_size(max(matrix.shape[0], 1)) + padded_size(max(matrix.shape[1], 1))
        longest = max(int(np.diff(matrix.indptr).max(initial=0)),
                      int(np.bincount(matrix.indices).max(initial=0)))
        pieces = max(PIECES, 2 * longest // LENGTH) * mesh.size
        batch = pieces * (3 * LENGTH * self.dim + 3 * self.dim**2) * 4
        return 48 * matrix.nnz + 2 * rows * self.dim * 4 + batch


class Factors:
    """What iALS keeps. items: f32 `[V, d]`."""

    def __init__(self, mesh: Mesh, table: Table, items: np.ndarray, rule: Rule,
                 mean: float) -> None:
        self.items = items
        self._mesh, self._table, self._rule, self._mean = mesh, table, rule, mean

    def fold_in(self, histories: Matrix) -> np.ndarray:
        """Vectors f32 `[M, d]` of the people with these histories `[M, V]`."""
        return solve_new(self._mesh, self._table, _centred(histories, self._mean), self._rule)

    def scores(self, histories: Matrix, own: np.ndarray | None = None) -> np.ndarray:
        """Of explicit feedback these are ratings."""
        del own
        found = self.fold_in(histories)
        # A BLAS with wide vectors may compute with what stands behind the end, and so set the flag.
        with np.errstate(invalid="ignore"):
            return found @ self.items.T + np.float32(self._mean)


def _mean(matrix: Matrix) -> float:
    return float(matrix.data.mean()) if matrix.nnz else 0.0


def _centred(matrix: Matrix, mean: float) -> Matrix:
    return sparse.csr_array((matrix.data - mean, matrix.indices, matrix.indptr), matrix.shape)
