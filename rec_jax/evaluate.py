"""Full-ranking evaluation: every item of the catalogue competes, nothing is sampled.

A user's rank is counted while the item rows stream by (`kernels.target_rank`), so that no
array of users x items exists. Ties count against the target. What may not be recommended is not
measured as if it were: see `rec_jax.protocol`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rec_jax.data.dataset import Dataset
from rec_jax.histories import Reading, Tiles, iterate_tiles
from rec_jax.mesh import ITEMS, Axes, MeshConfig, make_mesh
from rec_jax.metrics import MISSED, Coverage, rank_metrics
from rec_jax.model import Encoder, Params
from rec_jax.progress import Reporter, Silent
from rec_jax.protocol import Split, choose_panel, choose_users, cold_items, protocol, seen_targets
from rec_jax.run import EvaluateConfig
from rec_jax.served import Served, map_tiles, tile_queries
from rec_jax.tables import RowMap
from rec_jax.tables.on_mesh import catalogue_rank, catalogue_top_k

__all__ = ["Split", "choose_users", "cold_items", "evaluate_served", "make_ranker",
           "popularity_ranks", "protocol", "rank_users"]


class Ranked(NamedTuple):
    """One jitted call's answer.

    ranks: int32 `[G, T]`, `MISSED` where the target may not be recommended; best: int32
    `[G, T, k]`, -1 where there is nothing left to recommend, or None.
    """

    ranks: jax.Array
    best: jax.Array | None


Ranker = Callable[[Params, jax.Array, Tiles], Ranked]


def make_ranker(encoder: Encoder, num_items: int, mesh: Mesh, *, filter_seen: bool,
                cold: np.ndarray | None = None, list_length: int = 0,
                over: Axes = (ITEMS,), row_map: RowMap | None = None) -> Ranker:
    """A jitted `(params, rows, tiles) -> Ranked`; with `list_length` k it recommends k items.

    Build it once: it is traced once for each shape and number of tiles. A target has a rank if
    and only if a list that is long enough would hold it: one whose score is NaN is missed too.

    filter_seen: items of the history may not be recommended; a target that is one is missed.
    cold: bool `[num_items]`, items that do not compete; over: mesh axes that cut the rows; row_map:
    which row an item has, by default its own. Of equal scores a list has the lower row first.
    """
    ranker = _jitted(encoder, num_items, mesh, filter_seen, list_length, over,
                     RowMap(num_items) if row_map is None else row_map)
    out = None if cold is None else jnp.asarray(cold)
    return lambda params, rows, tiles: ranker(params, rows, tiles, out)


def _jitted(encoder: Encoder, num_items: int, mesh: Mesh, filter_seen: bool,
            list_length: int, over: Axes, row_map: RowMap
            ) -> Callable[[Params, jax.Array, Tiles, jax.Array | None], Ranked]:
    """What `make_ranker` calls, with the cold items as an argument."""

    @jax.jit
    def ranker(params: Params, rows: jax.Array, tiles: Tiles, out: jax.Array | None) -> Ranked:
        # From here on an item is the number of its row.
        tiles = tiles._replace(**{name: row_map.rows(getattr(tiles, name))
                                  for name in ("items", "targets", "seen_items")})
        out = None if out is None else out[row_map.ids(jnp.arange(num_items))]
        bias = None if out is None else jnp.pad(
            jnp.where(out, -jnp.inf, jnp.float32(0)), (0, rows.shape[0] - num_items))

        def one(tile: Tiles) -> Ranked:
            queries = tile_queries(encoder, params, rows, tile)
            seen = (tile.seen_offsets, tile.seen_items) if filter_seen else None
            ranks = catalogue_rank(mesh, queries, rows, tile.targets, seen, num_items=num_items,
                                   over=over, bias=bias)
            listed = jnp.sum(queries * rows[tile.targets].astype(jnp.float32), axis=1) > -jnp.inf
            ranks = jnp.where(listed & ~_forbidden(tile, filter_seen, out), ranks, MISSED)
            if not list_length:
                return Ranked(ranks, None)
            _, best = catalogue_top_k(mesh, queries, rows, list_length, seen,
                                      num_items=num_items, over=over, bias=bias)
            return Ranked(ranks, row_map.ids(best))

        return map_tiles(one, tiles)

    return ranker


def _forbidden(tile: Tiles, filter_seen: bool, out: jax.Array | None) -> jax.Array:
    """Whether a target may not be recommended, bool `[T]`; `target_rank` ranks it all the same."""
    forbidden = jnp.zeros(tile.targets.shape, bool) if out is None else out[tile.targets]
    if filter_seen:
        users, entries = tile.targets.shape[0], tile.seen_items.shape[0]
        owner = jnp.searchsorted(tile.seen_offsets[1:], jnp.arange(entries), side="right")
        same = tile.seen_items == tile.targets[jnp.minimum(owner, users - 1)]
        forbidden = forbidden.at[owner].max(same, mode="drop")
    return forbidden


def rank_users(ranker: Ranker, params: Params, rows: jax.Array, dataset: Dataset,
               users: np.ndarray, targets: np.ndarray, ends: np.ndarray, *, reading: Reading,
               batch: int, reporter: Reporter | None = None,
               coverage: Coverage | None = None) -> np.ndarray:
    """Ranks int32 `[M]` of `targets` for `users` with histories that end at `ends`."""
    reporter = reporter or Silent()
    reporter.begin(len(users))
    ranks = np.zeros(len(users), np.int32)

    def take(answer: Ranked, chosen: np.ndarray) -> None:
        ranks[chosen] = np.asarray(answer.ranks).reshape(-1)[:len(chosen)]
        if coverage is not None and answer.best is not None:
            best = np.asarray(answer.best)
            coverage.add(best.reshape(-1, best.shape[-1])[:len(chosen)])
        reporter.advance(len(chosen))

    before: tuple[Ranked, np.ndarray] | None = None
    for tiles, chosen in iterate_tiles(dataset, users, ends, targets, reading=reading,
                                       batch=batch):
        # One call is in flight while the next one's tiles are made.
        answer = ranker(params, rows, tiles)
        if before is not None:
            take(*before)
        before = answer, chosen
    if before is not None:
        take(*before)
    return ranks


def evaluate_served(served: Served, *, split: Split = "test",
                    settings: EvaluateConfig | None = None, baseline: bool = False,
                    reporter: Reporter | None = None) -> dict[str, Any]:
    """Metrics of one checkpoint with the protocol that they were measured by.

    settings: replaces the run's `evaluate` section.
    baseline: also rank every item by its popularity in the training part.

    Raises:
      InputError: nobody has a target in the split, or the protocol leaves everybody out.
    """
    settings = settings or served.config.evaluate
    dataset = served.dataset
    panel = choose_panel(dataset, split, settings)
    users, targets, ends = panel.users, panel.targets, panel.ends
    popularity = dataset.popularity()
    k = max(settings.ks)
    coverage = Coverage(popularity)
    ranker = make_ranker(served.encoder, dataset.num_items, make_mesh(MeshConfig()),
                         filter_seen=settings.filter_seen, cold=cold_items(dataset, settings),
                         list_length=min(k, dataset.num_items))
    ranks = rank_users(ranker, served.params, served.rows, dataset, users, targets, ends,
                       reading=served.reading, batch=settings.batch, reporter=reporter,
                       coverage=coverage)
    result: dict[str, Any] = {
        "metrics": {**rank_metrics(ranks, settings.ks), **_known(coverage.result(k))},
        "protocol": protocol(dataset, split, settings, panel),
        "run": served.run.folder.name, "step": served.step, "seed": served.config.seed,
    }
    if baseline:
        result["popularity_baseline"] = rank_metrics(
            popularity_ranks(dataset, users, targets, ends, settings.filter_seen), settings.ks)
    return result


def _known(figures: dict[str, float]) -> dict[str, float | None]:
    """None for NaN, which JSON lacks: nothing is recommended, so its popularity has no mean."""
    return {name: None if np.isnan(value) else value for name, value in figures.items()}


def popularity_ranks(dataset: Dataset, users: np.ndarray, targets: np.ndarray, ends: np.ndarray,
                     filter_seen: bool) -> np.ndarray:
    """Ranks int64 `[M]` if every user were shown the most popular training items first.

    With `filter_seen`, a target that is in its user's history is `MISSED`. Counts by two searches
    in the sorted popularities and one look at the user's own history, so it is O(V log V +
    interactions).
    """
    popularity = dataset.popularity()
    ordered = np.sort(popularity)
    wanted = popularity[targets]
    at_least = ordered.size - np.searchsorted(ordered, wanted, side="left")  # target included
    if not filter_seen:
        return at_least
    starts = np.asarray(dataset.offsets)[users]
    seen = np.array([_seen_at_least(dataset.items[start:end], target, popularity)
                     for start, end, target in zip(starts.tolist(), ends.tolist(),
                                                   targets.tolist(), strict=True)], np.int64)
    return np.where(seen_targets(dataset, users, targets, ends), MISSED, at_least - seen)


def _seen_at_least(history: np.ndarray, target: int, popularity: np.ndarray) -> int:
    """How many distinct seen items, the target aside, would stand above or beside the target."""
    seen = np.unique(history)
    return int(np.sum((popularity[seen] >= popularity[target]) & (seen != target)))

