"""Two versions of the embeddings of items of which some are gone: what stays, and in which order.

A version that serves keeps the order of the items that stay, and new ones come behind them. A
trainer whose rows change hands has another order; it is read by the ids.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rec_jax.data.dataset import places_of


class Picked:
    """Some rows of `vectors` in another order; what is asked for is read then."""

    def __init__(self, vectors: Any, places: np.ndarray) -> None:
        """vectors: `[V, d]`, perhaps on a disk; places: int64 `[n]`."""
        self._vectors, self._places = vectors, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.asarray(self._vectors[self._places[part]])


class Matched(NamedTuple):
    """stays: int64, places in the old version of what the new one has as well; gone: text, the ids
    of the others; order: int64 `[V]`, places in the new version, in the order that it is served."""

    stays: np.ndarray
    gone: pl.Series
    order: np.ndarray


def match_versions(old: pl.Series, new: pl.Series) -> Matched:
    """Match the ids of two versions, text `[V_old]` and `[V]`."""
    there = places_of(new, old)
    kept = there.drop_nulls().cast(pl.Int64).to_numpy()
    is_new = np.ones(len(new), bool)
    is_new[kept] = False
    return Matched(there.is_not_null().arg_true().cast(pl.Int64).to_numpy(),
                   old.filter(there.is_null()), np.concatenate([kept, np.flatnonzero(is_new)]))


def without(ids: pl.Series, gone: pl.Series) -> np.ndarray:
    """Places int64 of `ids` that are not `gone`.

    Raises:
      ValueError: one that is gone was not there.
    """
    stays = places_of(gone, ids).is_null()
    if len(ids) - int(stays.sum()) != len(gone):
        raise ValueError("it takes away items that are not there")
    return stays.arg_true().cast(pl.Int64).to_numpy()
