"""Recommend items to a known user or after any history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rec_jax.data.dataset import Dataset
from rec_jax.data.features import EVENT, QUERY, Codes, read_codes
from rec_jax.data.queries import Query
from rec_jax.errors import InputError
from rec_jax.inference.apart_answers import apart_best
from rec_jax.inference.asking import made_once, map_rounds, tile_queries
from rec_jax.inference.bias import Given, bias_of_rows, given_bias
from rec_jax.inference.histories import (
    Recent,
    Tiles,
    choose_shapes,
    make_tiles,
    recent_codes,
    recent_places,
    seen_capacity,
    tile_shapes,
)
from rec_jax.inference.protocol import cold_items
from rec_jax.inference.served import Served
from rec_jax.mesh import Axes
from rec_jax.model.encoder import Encoder
from rec_jax.sizes import list_room
from rec_jax.tables import Table
from rec_jax.tables.tiles import top_k_tiles

Best = Callable[..., tuple[jax.Array, jax.Array]]
"""`best(params, rows, tiles, bias, *, k, filter_seen)`: scores f32 and items int32 `[G, T, k]`.

bias: f32 `[V_padded]`, added to all scores, -inf for items that do not compete; or None."""


@dataclass(frozen=True)
class Recommendation:
    """One item. rank: 1 = best; score: query . item row, and the item's bias where there is one;
    title: None where there is none."""

    rank: int
    item: str
    title: str | None
    score: float


@dataclass(frozen=True)
class Recommender:
    """A trained model in memory: it compiles at its first calls, and answers at once afterwards.

    How often it compiles depends on the lengths of histories, of which there are six classes, and
    on the powers of two that hold k. Models that differ in their weights alone share programs.
    """

    served: Served

    def recommend(self, *, user: str | None = None, history: Sequence[str | Query] | None = None,
                  times: Sequence[int] | None = None, k: int = 10,
                  filter_seen: bool | None = None,
                  bias: Given | None = None, events: Sequence[str] | None = None,
                  attributes: Mapping[str, str] | None = None) -> list[Recommendation]:
        """The k best items for a user or after a history; see `rec_jax.recommend`."""
        return recommend(self.served, user=user, history=history, times=times, k=k,
                         filter_seen=filter_seen, bias=bias, events=events, attributes=attributes)


def check_question(user: str | None, history: Sequence[str | Query] | None, k: int,
                   num_items: int) -> None:
    """Refuse what nobody can answer.

    Raises:
      InputError: not exactly one of a user and a history, or k below 1.
    """
    if (user is None) == (history is None):
        raise InputError("recommend needs exactly one of a user and a history")
    if k < 1:
        raise InputError(f"k is {k}; expected 1 to {num_items} (the catalogue), or more for all "
                         "of it")


def listed(dataset: Dataset, items: np.ndarray, scores: np.ndarray) -> list[Recommendation]:
    """Items `[k]` (-1: none) with their scores `[k]`, best first, as a person reads them."""
    ids, titles = dataset.item_ids(), dataset.titles()
    return [
        Recommendation(place + 1, str(ids[item]), None if titles is None else titles[item], score)
        for place, (item, score) in enumerate(zip(items.tolist(), scores.tolist(), strict=True))
        if item >= 0
    ]


def recommend(served: Served, *, user: str | None = None,
              history: Sequence[str | Query] | None = None, times: Sequence[int] | None = None,
              k: int = 10, filter_seen: bool | None = None,
              bias: Given | None = None, events: Sequence[str] | None = None,
              attributes: Mapping[str, str] | None = None,
              tell: Callable[[str], None] | None = None) -> list[Recommendation]:
    """The k best items after a history, best first; fewer where no more may be recommended.

    What may be recommended is what the run's evaluation measures: see `evaluate.filter_seen`,
    which `filter_seen` replaces, and `evaluate.filter_cold`.

    user: a user of the dataset, whose whole history is used; or history: item ids, oldest
    first, and where the model reads them `Query`s between these. Exactly one of both.
    times: seconds of the items of `history`; needed where the model reads times. Ratings of such
      a history are unknown to a model that reads them.
    bias: added to the scores of the items, see `rec_jax.inference.bias`; -inf takes one out.
    events: types of the events of `history`, such as view or purchase; without them a model that
      reads types does not know them.
    attributes: of who asks, where the model has begin places; then the history may be empty.
    tell: is told in one line why there are fewer than k items.

    Raises:
      InputError: unknown user, item or attribute, an empty history, times that are missing, fall,
        or are not as many as the items, a bias that is not one number for each item, or k below 1.
    """
    dataset, added = served.dataset, given_bias(served, bias)
    if attributes is not None and user is None and history is None:
        history = ()
    check_question(user, history, k, dataset.num_items)
    tiles, items = question_of(served, user, history, times, events, attributes)
    settings = served.config.evaluate
    filter_seen = settings.filter_seen if filter_seen is None else filter_seen
    cold = cold_items(dataset, settings, served.filled)
    scores, best = _first(served, tiles, min(k, dataset.num_items), filter_seen,
                          bias_of_rows(served, added, cold))
    if tell is not None and np.sum(best >= 0) < k:
        tell(shortfall(int(np.sum(best >= 0)), k, dataset.num_items,
                        items if filter_seen else items[:0], cold))
    return listed(dataset, best, scores)


def question_of(served: Served, user: str | None, history: Sequence[str | Query] | None,
                times: Sequence[int] | None, events: Sequence[str] | None = None,
                attributes: Mapping[str, str] | None = None) -> tuple[Tiles, np.ndarray]:
    """A tile whose first user is who asks, and the items of the whole history; see `recommend`."""
    if user is not None and times is not None:
        raise InputError("times belong to a history; a user of the dataset has their own")
    if user is not None and events is not None:
        raise InputError("types of events belong to a history; a user of the dataset has their own")
    dataset = served.dataset
    reading = served.reading
    if attributes is not None and (served.attributes is None or user is not None):
        raise InputError(f"the model of {served.run.folder} has no places for attributes in front "
                         "of a history ([begin]), so that what is popular answers for them; "
                         "expected a table of users" if served.attributes is None else
                         "a user of the dataset has attributes of their own; expected none")
    recent: Recent | None = None
    if user is not None:
        index = int(dataset.user_index([user])[0])
        end = int(dataset.offsets[index + 1])
        items = np.asarray(dataset.history(index))
        when = None if dataset.times is None else np.asarray(
            dataset.times[dataset.offsets[index]:end])
        if served.timeline is not None:
            (recent,) = recent_places(served.timeline, reading, np.array([index]), np.array([end]))
    elif reading.users:
        raise InputError("the model reads who asks; expected a user of the dataset, and no history")
    else:
        end = None
        given = [history] if isinstance(history, str | Query) else list(history or ())
        items = np.asarray(dataset.item_index(
            [each for each in given if not isinstance(each, Query)]))
        when = None if times is None else _seconds(times, len(given))
        recent = _typed(served, given, items)
    known = served.attributes
    places = items if recent is None else recent.items
    if places.size == 0 and known is None:
        raise InputError("the history is empty; expected at least one item id")
    if recent is not None and user is not None:
        when = recent.times
    if reading.times and (when is None or len(when) != places.size):
        raise InputError(f"the model reads times: {'no' if when is None else len(when)} times "
                         f"for {places.size} items; expected one in seconds for each")
    count = np.array([places.size])
    shape = tile_shapes(reading.length)[choose_shapes(reading, count)[0]]
    codes = recent_codes(dataset, reading, items, end) if recent is None else recent.codes
    tiles = make_tiles([items], None, group=1, shape=shape, reading=reading,
                       times=None if when is None else [when],
                       codes=[_with_types(dataset, codes, places.size, events)],
                       recent=None if recent is None else [places],
                       capacity=seen_capacity(np.array([items.size]), shape.users),
                       users=None if user is None else np.array([index]),
                       front=None if known is None else known.in_front(
                           known.coded(attributes) if user is None else known.codes[[index]]))
    return tiles, items


def _typed(served: Served, history: Sequence[str | Query], items: np.ndarray) -> Recent | None:
    """The places of a history that somebody gives, all of them, and codes of the newest ones; None
    for a model that reads no queries. items: int `[n]`, those of its ids.

    Raises:
      InputError: the model reads no queries, or one has no vector.
    """
    queries = [each if isinstance(each, Query) else None for each in history]
    timeline, reading = served.timeline, served.reading
    if timeline is None:
        if any(queries):
            raise InputError(f"the model of {served.run.folder} reads no queries ([[features]] "
                             "kind = 'query'); expected a history of item ids alone")
        return None
    places = np.zeros(len(history), np.int32)
    asked = np.array([each is not None for each in queries], bool)
    places[~asked] = items
    codes = {path: np.where(asked[:, None], 0, values) for path, values in
             read_codes(reading.features, served.dataset, places, None).items()}
    if EVENT in codes:
        codes[EVENT][asked, 0] = timeline.only_type
    codes = {**codes, QUERY: timeline.rows_of(queries)}
    oldest = max(0, len(places) - reading.room)
    return Recent(places, None, {path: values[oldest:] for path, values in codes.items()})


def _with_types(dataset: Dataset, codes: Codes, count: int,
                events: Sequence[str] | None) -> Codes:
    """Codes of a history's newest items with the types of its `count` events, where these are
    given and read."""
    if events is None:
        return codes
    if len(events) != count:
        raise InputError(f"{len(events)} types of events for {count} items; expected one for each")
    found = dataset.event_codes(list(events)).astype(np.int32)
    return {path: found[count - len(each):, None] if path == EVENT else each
            for path, each in codes.items()}


def _seconds(times: Sequence[int], count: int) -> np.ndarray:
    """int64 `[count]`, rising."""
    values = np.asarray(times)
    if len(values) != count:
        raise InputError(f"{len(values)} times for {count} items; expected one for each")
    if values.size and (values.dtype.kind not in "iuf" or not np.isfinite(values).all()):
        raise InputError("times are no numbers; expected seconds since 1970")
    seconds = np.floor(values).astype(np.int64)
    falls = np.flatnonzero(np.diff(seconds) < 0)
    if falls.size:
        first = int(falls[0])
        raise InputError(f"times fall from {seconds[first]} to {seconds[first + 1]} at item "
                         f"{first + 2}; expected the oldest item first")
    return seconds


def shortfall(found: int, k: int, num_items: int, seen: np.ndarray,
               cold: np.ndarray | None) -> str:
    """Why `found` items are fewer than `k`. seen: items that may not come again."""
    out = np.zeros(num_items, bool)
    out[seen] = True
    reasons = [f"{out.sum()} are in the history, and seen items are not recommended"]
    if cold is not None:
        reasons.append(f"{np.sum(cold & ~out)} others are cold, and do not compete")
        out |= cold
    if num_items - int(out.sum()) > found:
        reasons.append(f"{num_items - int(out.sum()) - found} others have no score")
    listed = "; ".join(reason for reason in reasons if not reason.startswith("0 "))
    return (f"{found} instead of {k} items: the catalogue has {num_items}"
            + (f", of which {listed}" if listed else ""))


@made_once
def _jitted(encoder: Encoder, num_items: int, mesh: Mesh, over: Axes) -> Best:
    """Compiled once for each shape of tiles and each number of items."""

    @partial(jax.jit, static_argnames=("k", "filter_seen"))
    def best(params: Any, rows: jax.Array, tiles: Any, bias: Any, *, k: int, filter_seen: bool
             ) -> tuple[jax.Array, jax.Array]:
        table = Table(rows, (), num_items, over)

        def one(tiles: Any) -> tuple[jax.Array, jax.Array]:
            queries = tile_queries(mesh, encoder, params, table, tiles)
            seen = (tiles.seen_offsets, tiles.seen_items) if filter_seen else None
            return top_k_tiles(mesh, queries, table, k, seen, tiles.used, bias=bias)

        return map_rounds(mesh, one, tiles)

    return best


def _first(served: Served, tiles: Any, k: int, filter_seen: bool,
           bias: jax.Array | None) -> tuple[np.ndarray, np.ndarray]:
    """Scores f32 `[k]` and items int32 `[k]` of the first user of the first tile."""
    room = list_room(k, served.dataset.num_items)
    program = (apart_best if served.apart else _jitted)(
        served.encoder, served.dataset.num_items, served.mesh, served.over)
    scores, items = program(served.params, served.rows, tiles, bias, k=room,
                            filter_seen=filter_seen)
    return np.asarray(scores)[0, 0, :k], np.asarray(items)[0, 0, :k]
