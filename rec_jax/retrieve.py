"""Recommend items to a known user or after any history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rec_jax.errors import InputError
from rec_jax.histories import choose_shapes, make_tiles, recent_codes, seen_capacity, tile_shapes
from rec_jax.kernels import top_k
from rec_jax.served import Served, tile_queries


@dataclass(frozen=True)
class Recommendation:
    """One item. rank: 1 = best; score: query . item row; title: None where there is none."""

    rank: int
    item: str
    title: str | None
    score: float


def recommend(served: Served, *, user: str | None = None, history: Sequence[str] | None = None,
              times: Sequence[int] | None = None, k: int = 10,
              filter_seen: bool = True) -> list[Recommendation]:
    """The k best items after a history, best first.

    user: a user of the dataset, whose whole history is used; or history: item ids, oldest
    first. Exactly one of both.
    times: seconds of the items of `history`; needed where the model reads times. Ratings of such
      a history are unknown to a model that reads them.

    Raises:
      InputError: unknown user or item, an empty history, times that are missing or not as many
        as the items, or k out of range.
    """
    dataset = served.dataset
    if (user is None) == (history is None):
        raise InputError("recommend needs exactly one of a user and a history")
    if not 1 <= k <= dataset.num_items:
        raise InputError(f"k is {k}; expected 1 to {dataset.num_items} (the catalogue)")
    reading = served.reading
    if user is not None:
        index = int(dataset.user_index([user])[0])
        end = int(dataset.offsets[index + 1])
        items = np.asarray(dataset.history(index))
        when = None if dataset.times is None else np.asarray(
            dataset.times[dataset.offsets[index]:end])
    else:
        end = None
        items = np.asarray(dataset.item_index(list(history or ())))
        when = None if times is None else np.asarray(times, np.int64)
    if items.size == 0:
        raise InputError("the history is empty; expected at least one item id")
    if reading.times and (when is None or len(when) != items.size):
        raise InputError(f"the model reads times: {'no' if when is None else len(when)} times "
                         f"for {items.size} items; expected one in seconds for each")
    count = np.array([items.size])
    shape = tile_shapes(reading.length)[choose_shapes(reading, count)[0]]
    tiles = make_tiles([items], None, group=1, shape=shape, reading=reading,
                       times=None if when is None else [when],
                       codes=[recent_codes(dataset, reading, items, end)],
                       capacity=seen_capacity(count, shape.users))
    scores, best = _best(served, tiles, k, filter_seen)
    ids, titles = dataset.item_ids(), dataset.titles()
    return [
        Recommendation(place + 1, str(ids[item]), None if titles is None else titles[item], score)
        for place, (item, score) in enumerate(zip(best.tolist(), scores.tolist(), strict=True))
        if item >= 0
    ]


def _best(served: Served, tiles: Any, k: int,
          filter_seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores f32 `[k]` and items int32 `[k]` of the first user of the first tile."""
    num_items, encoder = served.dataset.num_items, served.encoder

    @jax.jit
    def best(params: Any, rows: jax.Array, tile: Any) -> tuple[jax.Array, jax.Array]:
        queries = tile_queries(encoder, params, rows, tile)
        seen = (tile.seen_offsets, tile.seen_items) if filter_seen else None
        return top_k(queries, rows, k, exclude=seen, num_items=num_items)

    tile = jax.tree.map(lambda leaf: leaf[0], tiles)
    scores, items = best(served.params, served.rows, tile)
    return np.asarray(scores)[0], np.asarray(items)[0]
