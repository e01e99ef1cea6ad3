"""A dataset's interactions as sparse matrices: people x items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.sparse as sparse

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.solvers.base import Matrix, Values
from rec_jax.solvers.room import check_room

Part = Literal["train", "all"]
_BYTES = 64  # an interaction, at most, while a matrix is made


def training_matrix(dataset: Dataset, values: Values = "counts", part: Part = "train") -> Matrix:
    """`[U, V]` of the training part, or of all interactions.

    Raises:
      InputError: ratings are asked for and the dataset has none, or memory does not suffice.
    """
    if part not in ("train", "all"):
        raise InputError(f"part is {part!r}; expected 'train' or 'all'")
    users = np.arange(dataset.num_users)
    ends = np.asarray(dataset.train_end if part == "train" else dataset.offsets[1:])
    return history_matrix(dataset, users, ends, values)


def history_matrix(dataset: Dataset, users: np.ndarray, ends: np.ndarray,
                   values: Values = "counts") -> Matrix:
    """`[M, V]`: what each of `users` took before their `ends` (absolute positions in the
    dataset's arrays); raises as `training_matrix` does."""
    starts = np.asarray(dataset.offsets)[users]
    lengths = np.asarray(ends) - starts
    first = np.concatenate([[0], np.cumsum(lengths)])
    check_room("a matrix of the interactions", _BYTES * int(first[-1]))
    place = np.arange(first[-1]) + np.repeat(starts - first[:-1], lengths)
    rows = np.repeat(np.arange(len(users)), lengths)
    items = np.asarray(dataset.items[place])
    if values == "counts":
        return _counted(rows, items, (len(users), dataset.num_items))
    if dataset.ratings is None:
        raise InputError(f"dataset {dataset.folder} has no ratings, which explicit feedback "
                         "needs; prepare it with columns.rating")
    codes = np.asarray(dataset.ratings[place])
    known = codes > 0
    given = np.asarray(dataset.rating_values, np.float64)[codes[known].astype(np.int64) - 1]
    return _last(rows[known], items[known], given, (len(users), dataset.num_items))


def matrix_of(histories: Sequence[np.ndarray], num_items: int) -> Matrix:
    """`[M, V]` of counts of any histories of item indices."""
    rows = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    items = np.concatenate([np.asarray(one, np.int64) for one in histories]
                           or [np.zeros(0, np.int64)])
    return _counted(rows, items, (len(histories), num_items))


def binary(matrix: Matrix) -> Matrix:
    """1 wherever `matrix` has an entry."""
    return sparse.csr_array((np.ones(matrix.nnz), matrix.indices, matrix.indptr), matrix.shape)


def _counted(rows: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> Matrix:
    matrix = sparse.csr_array((np.ones(len(rows)), (rows, items)), shape)
    matrix.sum_duplicates()
    return matrix


def _last(rows: np.ndarray, items: np.ndarray, given: np.ndarray,
          shape: tuple[int, int]) -> Matrix:
    """Of several ratings of a pair the last one counts."""
    keys = rows.astype(np.int64) * shape[1] + items
    _, backwards = np.unique(keys[::-1], return_index=True)
    kept = np.sort(len(keys) - 1 - backwards)
    matrix = sparse.csr_array((given[kept], (rows[kept], items[kept])), shape)
    matrix.sum_duplicates()
    return matrix
