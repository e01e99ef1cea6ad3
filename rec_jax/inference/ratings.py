"""How well ratings are predicted: every interaction of a split, by the history before that split.

    RMSE = sqrt(mean of (r - r')^2)     MAE = mean of |r - r'|     r' within the range of ratings

and where the data has two ratings, AUC: how often the higher one is predicted above the lower one.
Unlike ranks these need the rows of the rated items alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rec_jax.data.arrays import chunks, counting
from rec_jax.data.dataset import Dataset
from rec_jax.data.values import RATING, Reader, open_values
from rec_jax.errors import InputError
from rec_jax.inference.asking import jitted_queries, made_once
from rec_jax.inference.histories import Reading, iterate_tiles
from rec_jax.inference.protocol import Split
from rec_jax.mesh import Axes, replicated
from rec_jax.metrics import rating_metrics
from rec_jax.model.encoder import Encoder, Params
from rec_jax.objectives.rating import Config as Rating
from rec_jax.sizes import power_of_two
from rec_jax.tables import RowMap, Table
from rec_jax.tables.tiles import rows_of

_USERS, _PAIRS = 1 << 14, 1 << 16  # taken at a time


class Rated(NamedTuple):
    """Interactions of a split: users int64 `[M]`, items int32 `[M]`, ratings f32 `[M]`."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray


class RatingPredictor:
    """Ratings of a model on a mesh; build it once, it is traced once for each shape.

    rated: (split) -> its interactions, which are read once.
    """

    def __init__(self, objective: Rating, encoder: Encoder, dataset: Dataset, mesh: Mesh, *,
                 reading: Reading, batch: int, over: Axes, row_map: RowMap | None = None) -> None:
        """batch: users that are encoded at once; over, row_map: as `make_ranker` takes them.

        Raises:
          InputError: the dataset has no ratings, or other ones than the objective's range has.
        """
        check_range(objective, dataset)
        self._objective, self._dataset, self._mesh = objective, dataset, mesh
        self._reading, self._batch = reading, batch
        self.rated = functools.cache(functools.partial(rated, dataset))
        order = RowMap(dataset.num_items) if row_map is None else row_map

        self._encode = jitted_queries(encoder, dataset.num_items, mesh, over, order)
        self._vectors = _jitted_vectors(encoder, dataset.num_items, mesh, over, order)

    def predict(self, params: Params, rows: jax.Array, users: np.ndarray, ends: np.ndarray,
                pairs: Rated) -> np.ndarray:
        """Ratings f64 `[M]`, within the range, of pairs whose users are `users[0]` and so on.

        users: `[U]`, rising; ends: int64 `[U]`, where their histories end; pairs: by rising user.
        """
        objective, found = self._objective, np.zeros(len(pairs.items))
        owner = np.searchsorted(users, pairs.users)
        for first, last in chunks(len(users), _USERS):
            queries = self._queries(params, rows, users[first:last], ends[first:last])
            begin, stop = np.searchsorted(owner, [first, last])
            for start, end in chunks(int(stop - begin), _PAIRS):
                part = slice(begin + start, begin + end)
                vectors = self._rows(params, rows, pairs.items[part])
                scores = objective.scores(queries[owner[part] - first].astype(np.float64),
                                          vectors.astype(np.float64))
                found[part] = np.asarray(objective.predicted(scores))
        return np.clip(found, objective.low, objective.high)

    def __call__(self, params: Params, rows: jax.Array, split: Split) -> dict[str, float]:
        """RMSE, MAE and, of two ratings, AUC over all interactions of a split."""
        pairs = self.rated(split)
        users = np.unique(pairs.users)
        train_end, valid_end, _ = self._dataset.split_bounds(users)
        ends = train_end if split == "valid" else valid_end
        return rating_metrics(pairs.ratings, self.predict(params, rows, users, ends, pairs))

    def _queries(self, params: Params, rows: jax.Array, users: np.ndarray,
                 ends: np.ndarray) -> np.ndarray:
        """f32 `[U, d]`."""
        block: np.ndarray | None = None
        for tiles, chosen in iterate_tiles(self._dataset, users, ends, None,
                                           reading=self._reading, batch=self._batch,
                                           devices=self._mesh.size):
            found = np.asarray(self._encode(params, rows, tiles))
            block = np.zeros((len(users), found.shape[-1]), np.float32) if block is None else block
            block[chosen] = found.reshape(-1, found.shape[-1])[:len(chosen)]
        assert block is not None
        return block

    def _rows(self, params: Params, rows: jax.Array, items: np.ndarray) -> np.ndarray:
        """Vectors f32 `[M, d]`; in pieces of few lengths, since each is compiled."""
        size = max(power_of_two(len(items)), 256)
        size = -(-size // self._mesh.size) * self._mesh.size
        ids = np.zeros(size, np.int32)
        ids[:len(items)] = items
        return np.asarray(self._vectors(params, rows, ids))[:len(items)]


def check_range(objective: Rating, dataset: Dataset) -> None:
    """Raises InputError where a dataset's ratings are not those that an objective predicts."""
    open_values([RATING], dataset)
    low, high = min(dataset.rating_values), max(dataset.rating_values)
    if not objective.low <= low <= high <= objective.high:
        raise InputError(f"{dataset.folder} has ratings from {low:g} to {high:g}, and "
                         f"objective.low and objective.high are {objective.low:g} and "
                         f"{objective.high:g}; expected a range that holds them")


def rated(dataset: Dataset, split: Split) -> Rated:
    """All interactions of a split, with their ratings; users without any history before it are
    left out, since nothing is known of them.

    Raises:
      InputError: there are none.
    """
    parts = list(_rated(dataset, split, open_values([RATING], dataset)[RATING]))
    users, items, ratings = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(users):
        raise InputError(f"{dataset.folder} has no interaction to predict in its {split} part")
    return Rated(users, items, ratings)


def _rated(dataset: Dataset, split: Split, ratings: Reader) -> Iterator[Rated]:
    for start, stop in chunks(dataset.num_users, _USERS):
        people = np.arange(start, stop)
        train_end, valid_end, end = dataset.split_bounds(people)
        first, last = (train_end, valid_end) if split == "valid" else (valid_end, end)
        number = np.where(first > np.asarray(dataset.offsets)[start:stop], last - first, 0)
        places = np.repeat(first, number) + counting(number)
        yield Rated(np.repeat(people, number), dataset.items[places], ratings(places))


@made_once
def _jitted_vectors(encoder: Encoder, num_items: int, mesh: Mesh, over: Axes, row_map: RowMap
                    ) -> Callable[..., jax.Array]:
    """`(params, rows, items)` -> their vectors f32 `[n, d]`."""

    @jax.jit
    def vectors(params: Params, rows: jax.Array, items: jax.Array) -> jax.Array:
        found = rows_of(mesh, Table(rows, (), num_items, over), row_map.rows(items))
        return jax.lax.with_sharding_constraint(
            encoder.source.compose(params, found), replicated(mesh))

    return vectors
