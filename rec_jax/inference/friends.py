"""What to recommend to somebody of whom only friends are known: what they and their friends took.

With F the symmetric friendships, w = F_u + F_u D^-1 F the weight of others for a person u, where D
is the number of friends (a friend counts once, and shares one more among their own friends), the
items of these people are a group like any other (`rec_jax.inference.newcomers`):

    n_i = sum_v w_v n_vi        score(i) = log((n_i + s p(i)) / (sum_j n_j + s))

Somebody with few friends gets much of what is popular, somebody without any nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse

from rec_jax.data.dataset import Dataset, places_of
from rec_jax.data.file_layout import BLANK, Layout
from rec_jax.data.ids import parse_ids
from rec_jax.data.readers import guess_format, read
from rec_jax.errors import InputError, did_you_mean
from rec_jax.inference.newcomers import Weights, best_of, counted, group_scores
from rec_jax.inference.retrieve import Recommendation
from rec_jax.run_sections import EvaluateConfig

SHRINKAGE = 50.0
COLUMNS = {"user": "user", "item": "friend"}
"""Of a table of friendships; a plain text file has two ids a line."""


@dataclass(frozen=True)
class Friends:
    """Who is whose friend among a dataset's users.

    friends: 1 where two users are friends, symmetric `[U, U]`; known: bool `[U]`, whose
    interactions count; None: everybody's. whole: not those of the training part alone, but all.
    """

    dataset: Dataset
    friends: scipy.sparse.csr_array
    known: npt.NDArray[np.bool_] | None = None
    whole: bool = False

    def weights(self, of: npt.NDArray[np.int64], hops: int = 2) -> Weights:
        """What others count for a person with these friends: f64 `[U]`.

        of: different users `[n]`; hops: 1 for the friends alone.
        """
        found = np.zeros(self.dataset.num_users)
        found[of] = 1
        if hops > 1:
            degrees = np.maximum(self.friends.sum(axis=1), 1)
            found += (found / degrees) @ self.friends
        return found if self.known is None else found * self.known

    def scores(self, of: npt.NDArray[np.int64], shrinkage: float = SHRINKAGE, hops: int = 2,
               leave_out: int | None = None) -> npt.NDArray[np.float64]:
        """The score `[V]` of every item for a person with the friends `of`.

        leave_out: a user of the dataset whose own interactions do not count: the person.
        """
        weights = self.weights(of, hops)
        if leave_out is not None:
            weights[leave_out] = 0
        return group_scores(self._total, [counted(self.dataset, weights, self.whole)], shrinkage)

    @functools.cached_property
    def _total(self) -> Weights:
        """Interactions of each item by those who count: f64 `[V]`."""
        everybody = np.ones(self.dataset.num_users) if self.known is None else self.known * 1.0
        return counted(self.dataset, everybody, self.whole)


def read_friends(dataset: Dataset, path: Path | str | None) -> Friends:
    """Friendships in a file: pairs of ids, or a CSV, TSV or Parquet table with the columns `user`
    and `friend`. One direction is enough; people who are not in the dataset are left out.

    path: None for a dataset of which none are known.

    Raises:
      InputError: the file cannot be read, has bad lines, or nobody in it is a user.
    """
    size = dataset.num_users
    if path is None:
        return Friends(dataset, scipy.sparse.csr_array((size, size)))
    users = dataset.user_ids()
    pairs = []
    form = guess_format(path, default="pairs")
    for frame in read(path, form, Layout(COLUMNS)):
        has_faults = "fault" in frame.columns
        rows = frame.filter(pl.col("fault").ne_missing(BLANK)) if has_faults else frame
        ids = [parse_ids(rows[role], "user", Path(path).name).cast(pl.String) for role in COLUMNS]
        bad = ids[0].is_null() | ids[1].is_null()
        if has_faults:
            bad |= rows["fault"].is_not_null()
        if bad.any():
            raise InputError(f"{path}:{rows['line'].filter(bad)[0]} has no two ids; expected a "
                             "user and a friend on each line")
        pairs.append([places_of(users, one) for one in ids])
    left, right = (pl.concat([pair[side] for pair in pairs]) for side in (0, 1))
    both = (left.is_not_null() & right.is_not_null() & (left != right)).to_numpy()
    if not both.any():
        raise InputError(f"{path} has no friendship between two users of {dataset.folder}; "
                         "expected ids as those of the interactions")
    one, other = (side.fill_null(0).to_numpy()[both] for side in (left, right))
    friends = scipy.sparse.coo_array((np.ones(2 * len(one)), (
        np.concatenate([one, other]), np.concatenate([other, one]))), (size, size)).tocsr()
    friends.data[:] = 1  # however often a friendship is named
    return Friends(dataset, friends)


def recommend_friend(known: Friends, friends: Sequence[str], k: int,
                     settings: EvaluateConfig) -> list[Recommendation]:
    """The k best items for a person with these friends, best first.

    Raises:
      InputError: a friend is no user of the dataset, or is named twice, or k is below 1.
    """
    ids = known.dataset.user_ids()
    places = places_of(ids, pl.Series(friends, dtype=pl.String))
    for name, place in zip(friends, places, strict=True):
        if place is None:
            raise InputError(f"friend {name!r} is no user of {known.dataset.folder}"
                             + did_you_mean(name, ids.head(100_000).to_list(), cutoff=0.8))
    if len(set(friends)) < len(friends) or not friends:
        raise InputError(f"friends are {', '.join(friends) or 'nobody'}; expected one or more "
                         "users, each once")
    return best_of(known.dataset, known.scores(places.to_numpy().astype(np.int64)), k, settings)
