"""What a stream answers: the rank of an item among all that have a row, and the best of them.

A user's row is the query; who has none reads the shared row. Items without a row are in no list,
so one that is wanted is missed. Items that a user had before compete as all others do, since a
stream keeps no histories.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rec_jax.mesh import Axes
from rec_jax.metrics import MISSED, rank_metrics
from rec_jax.sizes import list_room
from rec_jax.tables import ITEMS, USERS, Table
from rec_jax.tables.bias import place_bias
from rec_jax.tables.tiles import rank_tiles, top_k_tiles
from rec_jax.train.stream import Stream
from rec_jax.train.stream_config import StreamEvaluateConfig

TILE = 32
"""Questions that are computed in one static shape."""


def ranks_of(stream: Stream, users: np.ndarray, items: np.ndarray, *, batch: int = 512
             ) -> np.ndarray:
    """int32 `[n]`: ranks of `items` for `users`, ids int64 `[n]`, as the stream is now; ties count
    against the item, and one without a row is `MISSED`.

    batch: questions of a call; no rank depends on it.
    """
    table, targets = stream.state.items, stream.ids[ITEMS].find(items)
    asked = np.flatnonzero(targets > 0)
    ranks, barred = np.full(len(items), MISSED, np.int32), _barred(stream)
    tiles = -(-batch // (TILE * stream.mesh.size)) * stream.mesh.size
    for first in range(0, len(asked), tiles * TILE):
        part = asked[first:first + tiles * TILE]
        queries = np.zeros((tiles * TILE, table.rows.shape[1]), np.float32)
        queries[:len(part)] = stream.rows_of(USERS, users[part])
        wanted = np.zeros(tiles * TILE, np.int32)
        wanted[:len(part)] = targets[part]
        found = _ranker(stream.mesh, table.over, table.num_items)(
            table.rows, barred, queries.reshape(tiles, TILE, -1), wanted.reshape(tiles, TILE),
            np.arange(tiles) * TILE < len(part))
        ranks[part] = np.asarray(found).reshape(-1)[:len(part)]
    return ranks


def popularity_ranks(stream: Stream, items: np.ndarray) -> np.ndarray:
    """int32 `[n]`: ranks of `items` where all are shown those first that were seen most often."""
    live = stream.ids[ITEMS].live
    rows, counts = live.find(items), np.sort(live.counts[live.live()])
    ranks = len(counts) - np.searchsorted(counts, live.counts[rows], side="left")
    return np.where(rows > 0, ranks, MISSED).astype(np.int32)


def best_items(stream: Stream, user: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores f32 and rows int32, `[k]` or fewer, of the best items for the id of a user."""
    table, devices = stream.state.items, stream.mesh.size
    k = min(k, len(stream.ids[ITEMS].live))
    queries = np.zeros((devices, 1, table.rows.shape[1]), np.float32)
    queries[0] = stream.rows_of(USERS, np.array([user]))
    room = list_room(k, table.num_items)
    scores, rows = (np.asarray(found)[0, 0, :k] for found in _lister(
        stream.mesh, table.over, table.num_items, room)(
            table.rows, _barred(stream), queries, np.arange(devices) < 1))
    listed = (rows >= 0) & (scores > -np.inf)
    return scores[listed], rows[listed]


def tested(stream: Stream, users: np.ndarray, items: np.ndarray, settings: StreamEvaluateConfig
           ) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """Metrics of interactions `[n]` that the stream has not learnt, those of popularity, and the
    protocol; ids int64. Where nothing competes, or nothing is to be tested, all are empty."""
    seed, count = stream.config.seed, len(items)
    if settings.interactions is not None and settings.interactions < count:
        drawn = np.random.default_rng((seed, stream.steps)).choice(
            count, settings.interactions, replace=False)
        users, items = users[np.sort(drawn)], items[np.sort(drawn)]
    live = len(stream.ids[ITEMS].live)
    if not live or not len(items):
        return {}, {}, {}
    ranks = ranks_of(stream, users, items, batch=settings.batch)
    protocol = {
        "split": "stream", "users": len(np.unique(users)), "targets": len(items),
        "of_interactions": count, "seed": seed, "candidates": live, "ranking": "full catalogue",
        "weights": f"step {stream.steps}, before learning any of it",
        "targets_without_a_row": int((ranks == MISSED).sum()),
        "targets_of_users_without_a_row": int((stream.ids[USERS].find(users) == 0).sum()),
        "seen_items_filtered": False, "ties": "against the target"}
    return (rank_metrics(ranks, settings.ks),
            rank_metrics(popularity_ranks(stream, items), settings.ks), protocol)


def _barred(stream: Stream) -> jax.Array:
    """f32 `[rows]`: -inf beside the rows that no item has."""
    table = stream.state.items
    barred = np.ones(table.num_items, bool)
    barred[stream.ids[ITEMS].live.live()] = False
    return place_bias(table.total, stream.mesh, barred=barred, over=table.over)


@functools.lru_cache(8)
def _ranker(mesh: Mesh, over: Axes, num_items: int) -> Any:
    @jax.jit
    def rank(rows: Any, barred: Any, queries: Any, targets: Any, used: Any) -> Any:
        return rank_tiles(mesh, queries, Table(rows, (), num_items, over), targets, None, used,
                          bias=barred)

    return rank


@functools.lru_cache(8)
def _lister(mesh: Mesh, over: Axes, num_items: int, k: int) -> Any:
    @jax.jit
    def best(rows: Any, barred: Any, queries: Any, used: Any) -> Any:
        return top_k_tiles(mesh, queries, Table(rows, (), num_items, over), k, None, used,
                           bias=barred)

    return best
