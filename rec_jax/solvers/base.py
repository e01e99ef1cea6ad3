"""What a solver takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from jax.sharding import Mesh

Values = Literal["counts", "ratings"]
Matrix = Any
"""A `scipy.sparse.csr_array`, f64, with sorted indices and no index twice in a row."""


@dataclass(frozen=True)
class Training:
    """What a solver is fitted on.

    matrix: `[U, V]`; how often each user took each item, or the last rating they gave it, as the
      solver's `values` says.
    mesh: devices of a solver that uses several; say: takes one line of progress.
    """

    matrix: Matrix
    mesh: Mesh
    say: Callable[[str], None]


class Fitted(Protocol):
    """A solved recommender."""

    def scores(self, histories: Matrix, own: np.ndarray | None = None) -> np.ndarray:
        """A new array `[B, V]`: the score of every item for each history.

        histories: `[B, V]` with the values that the solver was fitted on.
        own: int64 `[B]`, the row of the training matrix that belongs to the same person, which
          a solver that compares people leaves out; None for people who were not there.
        """
        ...


class Solver(Protocol):
    """A solver's `Config`."""

    @property
    def values(self) -> Values:
        """What the entries of its matrices are."""
        ...

    @property
    def grid(self) -> Mapping[str, Sequence[Any]]:
        """Fields and the values among which validation may choose."""
        ...

    def fit(self, training: Training) -> Fitted:
        """Solve it.

        Raises:
          InputError: it would not fit into memory, or the data lack what it needs.
        """
        ...
