"""What to recommend to somebody without a history: what is popular among people like them.

With n_i the interactions of item i, n_gi those of users of a group g, p = (n + 1) / sum(n + 1):

    p_g(i) = (n_gi + s p(i)) / (sum_j n_gj + s)           shrunk to p by s interactions
    score(i) = log p(i) + mean over attributes of log(p_g(i) / p(i))

so that a small group, or one that nobody knows, says little or nothing beyond popularity. The mean
and not the sum: attributes of a person go together, and their sum counts the same thing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.arrays import chunks
from rec_jax.data.attributes import read_columns
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError, did_you_mean
from rec_jax.inference.protocol import cold_items
from rec_jax.inference.retrieve import Recommendation, listed
from rec_jax.run_sections import EvaluateConfig

SHRINKAGE = 1000.0
Counts = npt.NDArray[np.int64] | npt.NDArray[np.floating[Any]]
Weights = npt.NDArray[np.floating[Any]]


def group_scores(total: Counts, groups: Sequence[Counts], shrinkage: float = SHRINKAGE
                 ) -> npt.NDArray[np.float64]:
    """The score `[V]` of every item; see the formulas above.

    total: `[V]`, interactions of each item; groups: the same of the users of each group.
    """
    shares = (total + 1) / np.sum(total + 1)
    found = np.log(shares)
    if not groups:
        return found
    ratios = [np.log((counts + shrinkage * shares) / (counts.sum() + shrinkage) / shares)
              for counts in groups]
    return found + np.mean(ratios, axis=0)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Attributes:
    """Who has which attributes, and what they took.

    dataset: whose interactions count; values: by attribute text `[U]`, null where it is not known;
    known: bool `[U]`, whose interactions count; None: everybody's. whole: not those of the training
    part alone, but all.
    """

    dataset: Dataset
    values: Mapping[str, pl.Series]
    known: npt.NDArray[np.bool_] | None = None
    whole: bool = False
    _counts: dict[tuple[str, str] | None, Counts] = field(default_factory=dict)

    def scores(self, given: Mapping[str, str], shrinkage: float = SHRINKAGE
               ) -> npt.NDArray[np.float64]:
        """The score `[V]` of every item for a person with these attributes.

        Raises:
          InputError: an attribute is not known, or no user has its value.
        """
        for name, value in given.items():
            if name not in self.values:
                hint = did_you_mean(name, self.values, form="{} ")
                raise InputError(f"attribute {name!r} is unknown; {hint}expected one or more of "
                                 f"{', '.join(self.values)}")
            there = self.values[name].drop_nulls().unique(maintain_order=True)
            if value not in there:
                shown = ", ".join(sorted(there.to_list())[:20])
                raise InputError(f"no user has {name} = {value!r}; expected one of {shown}"
                                 f"{' ..' if len(there) > 20 else ''}")
        return group_scores(self._count(None), [self._count(pair) for pair in given.items()],
                            shrinkage)

    def _count(self, pair: tuple[str, str] | None) -> Counts:
        """Interactions of each item `[V]` by the users with a value of an attribute, or by all."""
        if pair not in self._counts:
            users = (np.ones(self.dataset.num_users, bool) if self.known is None
                     else self.known.copy())
            if pair is not None:
                users &= (self.values[pair[0]] == pair[1]).fill_null(False).to_numpy()
            self._counts[pair] = counted(self.dataset, users * 1.0, self.whole)
        return self._counts[pair]


def counted(dataset: Dataset, weights: Weights, whole: bool) -> Weights:
    """Interactions of each item, each as much as its user weighs: f64 `[V]`.

    weights: f64 `[U]`; whole: not those of the training part alone, but all.
    """
    found = np.zeros(dataset.num_items)
    ends = dataset.offsets[1:] if whole else dataset.train_end
    for first, last in chunks(dataset.num_users):
        start, stop = int(dataset.offsets[first]), int(dataset.offsets[last])
        owner = np.repeat(np.arange(first, last), np.diff(dataset.offsets[first:last + 1]))
        counts = (weights[owner] != 0) & (np.arange(start, stop) < np.asarray(ends)[owner])
        found += np.bincount(dataset.items[start:stop][counts], weights[owner[counts]],
                             minlength=len(found))
    return found


def read_attributes(dataset: Dataset, table: Path | str, columns: Sequence[str],
                    id: str = "user_id") -> Attributes:
    """The attributes of a dataset's users from the columns of a CSV, TSV or Parquet `table`.

    Raises:
      InputError: the table cannot be read, lacks a column, or names no user of the dataset.
    """
    return Attributes(dataset, read_columns(dataset, table, columns, id))


def recommend_newcomer(attributes: Attributes, given: Mapping[str, str], k: int,
                       settings: EvaluateConfig) -> list[Recommendation]:
    """The k best items for a person with the attributes `given`, best first.

    settings: items that do not compete there (`evaluate.filter_cold`) are left out.

    Raises:
      InputError: as `Attributes.scores`, or k below 1.
    """
    return best_of(attributes.dataset, attributes.scores(given), k, settings)


def best_of(dataset: Dataset, scores: npt.NDArray[np.float64], k: int, settings: EvaluateConfig,
            ) -> list[Recommendation]:
    """The k items with the highest scores `[V]`, without those that do not compete.

    Raises:
      InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected 1 to {dataset.num_items} (the catalogue)")
    cold = cold_items(dataset, settings)
    order = np.argsort(-scores, kind="stable")
    order = order[:k] if cold is None else order[~cold[order]][:k]
    return listed(dataset, order, scores[order])
