"""Full-ranking evaluation: every item of the catalogue competes, nothing is sampled.

A user's rank is counted while the item rows stream by (`kernels.target_rank`), so that no
array of users x items exists. Ties count against the target. What may not be recommended is not
measured as if it were: see `rec_jax.inference.protocol`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.apart import make_apart_ranker
from rec_jax.inference.asking import made_once, map_rounds, tile_queries
from rec_jax.inference.bias import Given, bias_of_rows, given_bias
from rec_jax.inference.histories import Reading, Tiles, iterate_tiles
from rec_jax.inference.protocol import (
    Split,
    choose_panel,
    choose_users,
    cold_items,
    protocol,
    seen_targets,
)
from rec_jax.inference.ranked import Ranked, Ranker, target_seen
from rec_jax.inference.ratings import RatingPredictor
from rec_jax.inference.served import Served
from rec_jax.mesh import ITEMS, Axes
from rec_jax.metrics import MISSED, Coverage, nan_to_none, rank_metrics
from rec_jax.model.encoder import Encoder, Params
from rec_jax.progress import Reporter, Silent
from rec_jax.run_sections import EvaluateConfig
from rec_jax.tables import RowMap, Table
from rec_jax.tables.bias import place_bias
from rec_jax.tables.tiles import bias_of, rank_tiles, rows_of, top_k_tiles

__all__ = ["Split", "choose_users", "cold_items", "evaluate_served", "make_ranker",
           "popularity_ranks", "protocol", "rank_users"]


def make_ranker(encoder: Encoder, num_items: int, mesh: Mesh, *, filter_seen: bool,
                cold: np.ndarray | None = None, list_length: int = 0,
                over: Axes = (ITEMS,), row_map: RowMap | None = None) -> Ranker:
    """A jitted `Ranker`; with `list_length` k it recommends k items.

    It is traced once for each shape and number of tiles. A target has a rank if and only if a list
    that is long enough would hold it: one whose score is NaN is missed too.

    filter_seen: items of the history may not be recommended; a target that is one is missed.
    cold: bool `[num_items]`, items that do not compete; over: mesh axes that cut the rows; row_map:
    which row an item has, by default its own. Of equal scores a list has the lower row first.
    """
    row_map = RowMap(num_items) if row_map is None else row_map
    ranker = _jitted(encoder, num_items, mesh, filter_seen, list_length, over, row_map)
    against = cache(lambda total: None if cold is None else place_bias(
        total, mesh, barred=cold, over=over, row_map=row_map))

    def rank(params: Params, rows: jax.Array, tiles: Tiles,
             bias: jax.Array | None = None) -> Ranked:
        barred = None if cold is None else cold[np.asarray(tiles.targets)]
        return ranker(params, rows, tiles, barred, against(rows.shape[0]), bias)

    return rank


@made_once
def _jitted(encoder: Encoder, num_items: int, mesh: Mesh, filter_seen: bool, list_length: int,
            over: Axes, row_map: RowMap) -> Callable[..., Ranked]:
    """What `make_ranker` calls, also with the targets that are cold, bool `[G, T]`, and what is
    against cold items, a bias of its own."""

    @jax.jit
    def ranker(params: Params, rows: jax.Array, tiles: Tiles, barred: jax.Array | None,
               against: jax.Array | None, bias: jax.Array | None = None) -> Ranked:
        table = Table(rows, (), num_items, over)
        # From here on an item is the number of its row.
        tiles = tiles._replace(**{name: row_map.rows(getattr(tiles, name))
                                  for name in ("items", "targets", "seen_items")})
        added = against if bias is None else bias if against is None else bias + against

        def one(each: tuple[Tiles, jax.Array | None]) -> Ranked:
            tiles, barred = each
            queries = tile_queries(mesh, encoder, params, table, tiles)
            seen = (tiles.seen_offsets, tiles.seen_items) if filter_seen else None
            ranks = rank_tiles(mesh, queries, table, tiles.targets, seen, tiles.used, bias=added)
            targets = rows_of(mesh, table, tiles.targets)
            scores = jnp.sum(queries * targets, axis=-1)
            if bias is not None:
                scores += bias_of(mesh, bias, tiles.targets, table)
            listed = scores > -jnp.inf
            if filter_seen:
                listed &= ~jax.vmap(target_seen)(tiles)
            if barred is not None:
                listed &= ~barred
            ranks = jnp.where(listed, ranks, MISSED)
            if not list_length:
                return Ranked(ranks, None)
            _, best = top_k_tiles(mesh, queries, table, list_length, seen, tiles.used, bias=added)
            return Ranked(ranks, row_map.ids(best))

        return map_rounds(mesh, one, (tiles, barred))

    return ranker


def rank_users(ranker: Ranker, params: Params, rows: jax.Array, dataset: Dataset,
               users: np.ndarray, targets: np.ndarray, ends: np.ndarray, *, reading: Reading,
               batch: int, devices: int = 1, reporter: Reporter | None = None,
               coverage: Coverage | None = None, bias: jax.Array | None = None) -> np.ndarray:
    """Ranks int32 `[M]` of `targets` for `users` with histories that end at `ends`.

    devices: of the ranker's mesh; bias: as a `Ranker` takes it.
    """
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
                                       batch=batch, devices=devices):
        # One call is in flight while the next one's tiles are made.
        answer = ranker(params, rows, tiles, bias)
        if before is not None:
            take(*before)
        before = answer, chosen
    if before is not None:
        take(*before)
    return ranks


def evaluate_served(served: Served, *, split: Split = "test",
                    settings: EvaluateConfig | None = None, baseline: bool = False,
                    bias: Given | None = None, reporter: Reporter | None = None
                    ) -> dict[str, Any]:
    """Metrics of one checkpoint with the protocol that they were measured by.

    settings: replaces the run's `evaluate` section.
    baseline: also rank every item by its popularity in the training part.
    bias: added to the scores of the items, see `rec_jax.inference.bias`; the protocol says so.

    Raises:
      InputError: nobody has a target in the split, the protocol leaves everybody out, or the bias
        is not one number for each item.
    """
    added = given_bias(served, bias)
    settings = settings or served.config.evaluate
    if settings.cold_users and not served.reading.front:
        raise InputError(f"evaluate.cold_users: nothing stands in front of the histories of run "
                         f"{served.run.folder}; expected a run with [begin]")
    dataset = served.dataset
    panel = choose_panel(dataset, split, settings, filled=served.filled)
    users, targets, ends = panel.users, panel.targets, panel.ends
    popularity = dataset.popularity()
    k = max(settings.ks)
    coverage = Coverage(popularity)
    make = make_apart_ranker if served.apart else make_ranker
    ranker = cast(Callable[..., Ranker], make)(
        served.encoder, dataset.num_items, served.mesh, filter_seen=settings.filter_seen,
        cold=cold_items(dataset, settings, served.filled),
        list_length=min(k, dataset.num_items), over=served.over)
    ranks = rank_users(ranker, served.params, served.rows, dataset, users, targets, ends,
                       reading=served.reading, batch=settings.batch, devices=served.mesh.size,
                       reporter=reporter, coverage=coverage, bias=bias_of_rows(served, added))
    result: dict[str, Any] = {
        "metrics": {**rank_metrics(ranks, settings.ks), **nan_to_none(coverage.result(k))},
        "protocol": protocol(dataset, split, settings, panel,
                             None if added is None else added.about, served.cold),
        "run": served.run.folder.name, "step": served.step, "seed": served.config.seed,
    }
    objective = served.config.objective
    if objective.needs.rates:
        predictor = RatingPredictor(objective, served.encoder, dataset, served.mesh,
                                    reading=served.reading, batch=settings.batch,
                                    over=served.over)
        result["metrics"] = {**predictor(served.params, served.rows, split), **result["metrics"]}
        result["protocol"]["ratings"] = len(predictor.rated(split).items)
    if baseline:
        result["popularity_baseline"] = rank_metrics(
            popularity_ranks(dataset, users, targets, ends, settings.filter_seen), settings.ks)
    return result


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

