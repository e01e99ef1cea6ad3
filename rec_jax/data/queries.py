"""Searches in a history: places that have a text and no item.

    queries.npy           int32 [Q]    number of its text; sorted by user, then by time
    query_positions.npy   int64 [Q]    position in `items` of the interaction that comes after it
    query_offsets.npy     int64 [U+1]  the queries of user u are [offsets[u], offsets[u+1])
    query_times.npy       int64 [Q]    seconds, and
    query_events.npy      uint8 [Q]    number of its type: only where interactions have these
    query_texts.parquet   index, id (the text), count
    query_vectors/        vectors of the texts, as those of items (`rec_jax.data.item_vectors`)

Queries lie beside the interactions, so that nothing that counts, ranks or holds out items can meet
one. Only a model that asks for them (`[[features]] kind = "query"`) has them in its histories: then
both are places in one order, in which query q stands at `positions[q] + q`, and a batch carries the
vectors of the texts themselves, so that a step knows no table of texts, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.dataset import Dataset, places_of
from rec_jax.data.dataset_arrays import Queries, read_vocabulary
from rec_jax.data.item_vectors import ItemVectors, open_item_vectors
from rec_jax.errors import InputError

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """A search in a history that somebody asks about. vector: f32 `[c]`, as the model reads it;
    None: of the dataset's, which has the text."""

    text: str
    vector: Floats | None = None


@dataclass(frozen=True)
class QueryTexts:
    """The different texts of a dataset's queries, as what has vectors (`item_vectors.Owner`)."""

    folder: Path
    num_items: int

    @property
    def vectors_folder(self) -> Path:
        """Where their vectors lie."""
        return self.folder / "query_vectors"

    def item_ids(self) -> pl.Series:
        """The texts, by number."""
        return read_vocabulary(self.folder / "query_texts.parquet", ("id",))["id"]


def texts_in(dataset: Dataset) -> QueryTexts:
    """The texts of the queries of `dataset`.

    Raises:
      InputError: it has none.
    """
    if dataset.meta["queries"] is None:
        raise InputError(f"{dataset.folder} has no queries; expected one that was prepared with "
                         "columns.query (rec-jax prepare --query)")
    return QueryTexts(dataset.folder, int(dataset.meta["queries"]["texts"]))


class Found(NamedTuple):
    """What stands at n places. query: int64 `[n]`, -1 where an interaction does; position: int64
    `[n]`, of the interaction there, or after the query."""

    query: Int64s
    position: Int64s


@dataclass(frozen=True)
class Timeline:
    """The interactions and the queries of a dataset in one order, as places.

    offsets: int64 [U+1], the places of user u are [offsets[u], offsets[u+1]).
    vectors: of the texts. num_users: U.
    """

    dataset: Dataset
    queries: Queries
    vectors: ItemVectors

    @property
    def num_users(self) -> int:
        return self.dataset.num_users

    @property
    def hash(self) -> str:
        """Of the vectors."""
        return str(self.vectors.about["files"][f"{self.vectors.about['name']}.npy"]["sha256"])[:16]

    @property
    def width(self) -> int:
        """Columns of what a batch has of a place: 1 for a query, and its text's vector."""
        return 1 + self.vectors.vectors.shape[1]

    @cached_property
    def offsets(self) -> Int64s:
        return np.asarray(self.dataset.offsets) + np.asarray(self.queries.offsets)

    @cached_property
    def _places(self) -> Int64s:
        """Of the queries, rising: the one array of eight bytes a query in memory."""
        return np.asarray(self.queries.positions) + np.arange(len(self.queries.texts))

    @cached_property
    def _known(self) -> pl.Series:
        return texts_in(self.dataset).item_ids()

    def split_bounds(self) -> tuple[Int64s, Int64s, Int64s]:
        """Where the parts of each history end, as `Dataset.split_bounds`: behind their last
        interaction, since a query behind it has no label."""
        return self._bounds

    @cached_property
    def _bounds(self) -> tuple[Int64s, Int64s, Int64s]:
        def end_of(end: Int64s) -> Int64s:
            return np.maximum(end + np.searchsorted(self.queries.positions, end), self.offsets[:-1])

        train_end, valid_end, end = map(np.asarray, self.dataset.split_bounds())
        return end_of(train_end), end_of(valid_end), end_of(end)

    def ends(self, users: Int64s, ends: Int64s) -> Int64s:
        """Where histories end whose interactions end at `ends` int64 `[n]`: behind all queries that
        come before the interaction there."""
        after = ends + np.searchsorted(self.queries.positions, ends, side="right")
        return np.minimum(after, self.offsets[users + 1])

    def find(self, places: Int64s) -> Found:
        """What stands at `places` int64 `[n]`."""
        number = np.searchsorted(self._places, places)
        there = self._places.take(number, mode="clip") == places
        return Found(np.where(there, number, -1), places - number)

    def times(self, found: Found) -> Int64s:
        """Seconds int64 `[n]`."""
        assert self.dataset.times is not None and self.queries.times is not None
        return np.where(found.query >= 0, self.queries.times[np.maximum(found.query, 0)],
                        self.dataset.times.take(found.position, mode="clip"))

    def events(self, found: Found, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Types int32 `[n]`, of those of the interactions."""
        if self.queries.events is None:
            return np.where(found.query >= 0, 0, codes)
        return np.where(found.query >= 0, self.queries.events[np.maximum(found.query, 0)], codes)

    @property
    def only_type(self) -> int:
        """The code of the type that all queries have; 0 where there are several, or none."""
        types = self.dataset.meta["queries"]["types"]
        return int(self.dataset.event_codes(types)[0]) if len(types) == 1 else 0

    def rows(self, query: Int64s) -> Floats:
        """What a batch has of places, f32 `[n, 1 + c]`; query: int64 `[n]`, -1 for none."""
        asked = query >= 0
        rows = np.zeros((len(query), self.width), np.float32)
        rows[asked, 0] = 1
        rows[asked, 1:] = self.vectors.vectors[self.queries.texts[query[asked]]]
        return rows

    def numbers_of(self, texts: Sequence[str]) -> list[int | None]:
        """Of each text its number, None for what nobody searched."""
        return places_of(self._known, pl.Series(texts, dtype=pl.String)).to_list()

    def rows_of(self, history: Sequence[Query | None]) -> Floats:
        """As `rows`, of a history that somebody asks about; None: an item.

        Raises:
          InputError: a query's text has no vector, or one of another width.
        """
        rows = np.zeros((len(history), self.width), np.float32)
        asked = [each.text for each in history if each is not None and each.vector is None]
        known = dict(zip(asked, self.numbers_of(asked), strict=True)) if asked else {}
        for place, query in enumerate(history):
            if query is None:
                continue
            vector = query.vector
            if vector is None:
                number = known[query.text]
                if number is None:
                    raise InputError(f"nobody searched {query.text!r} in {self.dataset.folder}, so "
                                     "it has no vector there; expected the folder of the text "
                                     "encoder that made the others, or a Query with its vector")
                vector = self.vectors.vectors[number]
            vector = np.asarray(vector, np.float32)
            if vector.shape != (self.width - 1,) or not np.isfinite(vector).all():
                raise InputError(f"the vector of query {query.text!r} is {list(vector.shape)}, or "
                                 f"not finite; expected [{self.width - 1}] numbers")
            rows[place, 0], rows[place, 1:] = 1, vector
        return rows


def open_timeline(dataset: Dataset, name: str) -> Timeline:
    """The timeline of `dataset`, whose queries have vectors `name`.

    Raises:
      InputError: it has no queries, or they have no such vectors.
    """
    texts = texts_in(dataset)
    assert dataset.queries is not None
    return Timeline(dataset, dataset.queries, open_item_vectors(texts, name))


def check_labels(dataset: Dataset, events: Sequence[str]) -> None:
    """Raises InputError where one of the types `events`, which are to be labels, has queries alone.
    """
    for name in {*(dataset.meta["queries"] or {"types": ()})["types"]} & {*events}:
        assert dataset.events is not None
        if not np.any(np.asarray(dataset.events) == dataset.event_codes([name])[0]):
            raise InputError(f"event {name!r} of {dataset.folder} is that of queries alone, which "
                             "have no item; expected types of interactions")
