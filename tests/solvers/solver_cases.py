"""Random tiny interactions with all that is awkward, and dense definitions in f64."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from jax.sharding import Mesh

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.solvers.base import Matrix, Training


def random_counts(seed: int, users: int = 23, items: int = 17) -> Matrix:
    """Counts `[U, V]`: user 0 took nothing, nobody took item 3, some pairs are repeated, two
    people have the same items, and one took everything else."""
    random = np.random.default_rng(seed)
    dense = random.poisson(0.35, (users, items)).astype(np.float64)
    dense[5], dense[6] = dense[4], np.ones(items)
    dense[0], dense[:, 3] = 0, 0
    return sparse.csr_array(dense)


def training(matrix: Matrix, mesh: Mesh | None = None) -> Training:
    return Training(matrix, mesh or make_mesh(MeshConfig()), lambda text: None)


def dense_weights(matrix: np.ndarray, weighting: str, k1: float, b: float,
                  like: np.ndarray | None = None) -> np.ndarray:
    """Weights of documents (rows); statistics come from `like`, itself by default."""
    known = matrix if like is None else like
    result = np.zeros(matrix.shape)
    mean = known.sum() / len(known)
    for row in range(len(matrix)):
        for term in range(matrix.shape[1]):
            value = matrix[row, term]
            idf = np.log((1 + len(known)) / (1 + np.sum(known[:, term] > 0)))
            if value and weighting == "cosine":
                result[row, term] = 1
            elif value and weighting == "tfidf":
                result[row, term] = np.sqrt(value) * idf
            elif value:
                norm = k1 * (1 - b + b * matrix[row].sum() / mean)
                result[row, term] = value * (k1 + 1) / (norm + value) * idf
    return result


def dense_best(row: np.ndarray, k: int) -> np.ndarray:
    """The row with all but its k largest positive entries 0; of equal ones the first stay."""
    kept = np.zeros_like(row)
    for index in sorted(np.flatnonzero(row > 0), key=lambda index: (-row[index], index))[:k]:
        kept[index] = row[index]
    return kept


def dense_similarity(some: np.ndarray, others: np.ndarray, shrink: float) -> np.ndarray:
    lengths = np.outer(np.linalg.norm(some, axis=1), np.linalg.norm(others, axis=1)) + shrink
    return np.divide(some @ others.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def dense_half(fixed: np.ndarray, matrix: np.ndarray, there: np.ndarray, *, alpha: float,
               reg: float, power: float, implicit: bool) -> np.ndarray:
    """Rows that solve the normal equations of a half sweep, one by one; 0 for empty rows."""
    dim = fixed.shape[1]
    result = np.zeros((len(matrix), dim))
    for row in range(len(matrix)):
        if not there[row].any():
            continue
        if implicit:
            confidence = 1 + alpha * matrix[row]
            wanted = there[row].astype(float)
        else:
            confidence, wanted = there[row].astype(float), matrix[row]
        ridge = reg * confidence.sum() ** power
        system = fixed.T @ (confidence[:, None] * fixed) + ridge * np.eye(dim)
        result[row] = np.linalg.solve(system, fixed.T @ (confidence * wanted))
    return result
