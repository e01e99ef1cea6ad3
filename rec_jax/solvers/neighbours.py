"""Which rows of a sparse matrix are alike, as neighbourhood methods ask.

Rows are documents and columns are terms: for item-kNN an item is a document whose terms are the
people who took it; for user-kNN a person is one whose terms are items. With a value x of term t in
a document of length l, f_t of D documents with the term, and the mean length m:

    cosine  1
    tfidf   sqrt(x) log((1 + D) / (1 + f_t))
    bm25    x (k1 + 1) / (k1 (1 - b + b l / m) + x) log((1 + D) / (1 + f_t))

and two documents are as similar as <p, q> / (|p| |q| + shrink) (shrinkage as in Ferrari Dacrema et
al., 2019): the more common terms there are, the less `shrink` takes away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sparse

from rec_jax.ranges import above, at_least, check
from rec_jax.solvers.base import Matrix, Values
from rec_jax.solvers.interactions import binary

Weighting = Literal["cosine", "tfidf", "bm25"]

CELLS = 1 << 22
"""Cells of the largest dense block that a solver makes at once."""
CELL_BYTES = 40
"""Bytes that one of them takes, at most, with the sparse arrays it comes from."""


@dataclass(frozen=True)
class NeighbourSettings:
    """What item-kNN and user-kNN have in common; each says what it means there.

    section: its name in a config; tried: numbers of neighbours that tuning tries.
    """

    section: ClassVar[str]
    tried: ClassVar[tuple[int, ...]]

    neighbours: int = 100
    weighting: Weighting = "cosine"
    shrink: float = 0.0
    k1: float = 1.2
    b: float = 0.75

    def __post_init__(self) -> None:
        check(self, f"{self.section}.", neighbours=at_least(1), shrink=at_least(0), k1=above(0),
              b=at_least(0, 1))

    @property
    def values(self) -> Values:
        return "counts"

    @property
    def grid(self) -> Mapping[str, Sequence[Any]]:
        return {"neighbours": self.tried, "weighting": ("cosine", "tfidf", "bm25"),
                "shrink": (0.0, 20.0)}


@dataclass(frozen=True)
class Weigher:
    """How terms count, from the documents that are there.

    idf: f64 `[T]`; mean_length: of a document, 1 where all are empty.
    """

    weighting: Weighting
    idf: np.ndarray
    mean_length: float
    k1: float = 1.2
    b: float = 0.75

    @classmethod
    def of(cls, documents: Matrix, weighting: Weighting, k1: float, b: float) -> Weigher:
        count, terms = documents.shape
        having = np.bincount(documents.indices, minlength=terms)
        mean = float(documents.data.sum()) / max(count, 1)
        return cls(weighting, np.log((1 + count) / (1 + having)), mean or 1.0, k1, b)

    def __call__(self, documents: Matrix) -> Matrix:
        """The documents `[D, T]` with their weights."""
        if self.weighting == "cosine":
            return binary(documents)
        values, idf = documents.data, self.idf[documents.indices]
        if self.weighting == "tfidf":
            weights = np.sqrt(values) * idf
        else:
            lengths = np.repeat(documents.sum(axis=1), np.diff(documents.indptr))
            norm = 1 - self.b + self.b * lengths / self.mean_length
            weights = values * (self.k1 + 1) / (self.k1 * norm + values) * idf
        return sparse.csr_array((weights, documents.indices, documents.indptr), documents.shape)


def norms(documents: Matrix) -> np.ndarray:
    """Length of each row: f64 `[D]`."""
    return np.sqrt(documents.power(2).sum(axis=1))


def similarities(some: Matrix, others: Matrix, other_norms: np.ndarray, shrink: float) -> Matrix:
    """`[B, D]` of weighted documents `[B, T]` and `[D, T]`; positive entries alone."""
    products = sparse.csr_array(some @ others.T)
    products.sort_indices()
    lengths = np.repeat(norms(some), np.diff(products.indptr)) * other_norms[products.indices]
    with np.errstate(invalid="ignore", divide="ignore"):
        values = products.data / (lengths + shrink)
    return positive(values, products)


def positive(values: np.ndarray, like: Matrix) -> Matrix:
    """The entries of `like` with other `values`, where these are above 0."""
    kept = values > 0
    before = np.concatenate([[0], np.cumsum(kept)])
    return sparse.csr_array((values[kept], like.indices[kept], before[like.indptr]), like.shape)


def keep_best(matrix: Matrix, k: int) -> Matrix:
    """The k largest entries of each row; of equal ones those that come first."""
    kept = np.zeros(matrix.nnz, bool)
    for start, end in zip(matrix.indptr[:-1].tolist(), matrix.indptr[1:].tolist(), strict=True):
        kept[start:end] = best(matrix.data[start:end], k)
    before = np.concatenate([[0], np.cumsum(kept)])
    return sparse.csr_array((matrix.data[kept], matrix.indices[kept], before[matrix.indptr]),
                            matrix.shape)


def best(values: np.ndarray, k: int) -> np.ndarray:
    """Which are the k largest of `values` `[n]`, bool; of equal ones those that come first."""
    if len(values) <= k:
        return np.ones(len(values), bool)
    limit = np.partition(values, len(values) - k)[len(values) - k]
    chosen = values > limit
    chosen[np.flatnonzero(values == limit)[:k - int(chosen.sum())]] = True
    return chosen


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows, each with at most `CELLS` cells of rows of `width`."""
    step = max(1, min(1024, CELLS // max(width, 1)))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
