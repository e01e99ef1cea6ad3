"""Full-ranking evaluation: every item of the catalogue competes, nothing is sampled.

A user's rank is counted while the item rows stream by (`kernels.target_rank`), so that no
array of users x items exists. Ties count against the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rec_jax.data.dataset import Dataset
from rec_jax.histories import Reading, Tiles, iterate_tiles
from rec_jax.mesh import ITEMS, Axes, MeshConfig, make_mesh
from rec_jax.metrics import Coverage, rank_metrics
from rec_jax.model import Encoder, Params
from rec_jax.progress import Reporter, Silent
from rec_jax.run import EvaluateConfig
from rec_jax.served import Served, map_tiles, tile_queries
from rec_jax.tables.on_mesh import catalogue_rank, catalogue_top_k

Split = Literal["valid", "test"]


class Ranked(NamedTuple):
    """One jitted call's answer. ranks: int32 `[G, T]`; best: int32 `[G, T, k]` or None."""

    ranks: jax.Array
    best: jax.Array | None


Ranker = Callable[[Params, jax.Array, Tiles], Ranked]


def make_ranker(encoder: Encoder, num_items: int, mesh: Mesh, *, filter_seen: bool,
                cold: np.ndarray | None = None, list_length: int = 0,
                over: Axes = (ITEMS,)) -> Ranker:
    """A jitted `(params, rows, tiles) -> Ranked`; with `list_length` k it recommends k items.

    Build it once: it is traced once for each shape and number of tiles.

    cold: bool `[num_items]`, items that do not compete; over: mesh axes that cut the rows.
    """
    out = None if cold is None else jnp.asarray(cold)

    @jax.jit
    def ranker(params: Params, rows: jax.Array, tiles: Tiles, out: jax.Array | None) -> Ranked:
        bias = None if out is None else jnp.pad(
            jnp.where(out, -jnp.inf, jnp.float32(0)), (0, rows.shape[0] - num_items))

        def one(tile: Tiles) -> Ranked:
            queries = tile_queries(encoder, params, rows, tile)
            seen = (tile.seen_offsets, tile.seen_items) if filter_seen else None
            ranks = catalogue_rank(mesh, queries, rows, tile.targets, seen, num_items=num_items,
                                   over=over, bias=bias)
            if not list_length:
                return Ranked(ranks, None)
            _, best = catalogue_top_k(mesh, queries, rows, list_length, seen,
                                      num_items=num_items, over=over, bias=bias)
            return Ranked(ranks, best)

        return map_tiles(one, tiles)

    return lambda params, rows, tiles: ranker(params, rows, tiles, out)


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


def cold_items(dataset: Dataset, settings: EvaluateConfig) -> np.ndarray | None:
    """Items that never occur in the training part, bool `[V]`, if they are not to compete."""
    return dataset.popularity() == 0 if settings.filter_cold else None


def choose_users(dataset: Dataset, split: Split, limit: int | None, seed: int,
                 cold: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, targets and history ends of a split; `limit` of them by a seeded shuffle.

    cold: bool `[V]`; users whose target is such an item are left out.
    """
    users, targets, ends = dataset.targets(split)
    if cold is not None:
        users, targets, ends = (each[~cold[targets]] for each in (users, targets, ends))
    if limit is not None and limit < len(users):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(users))[:limit])
        users, targets, ends = users[chosen], targets[chosen], ends[chosen]
    return users, targets, ends


def evaluate_served(served: Served, *, split: Split = "test",
                    settings: EvaluateConfig | None = None, baseline: bool = False,
                    reporter: Reporter | None = None) -> dict[str, Any]:
    """Metrics of one checkpoint with the protocol that they were measured by.

    settings: replaces the run's `evaluate` section.
    baseline: also rank every item by its popularity in the training part.
    """
    settings = settings or served.config.evaluate
    dataset = served.dataset
    cold = cold_items(dataset, settings)
    users, targets, ends = choose_users(dataset, split, None, served.config.seed, cold)
    popularity = dataset.popularity()
    k = max(settings.ks)
    coverage = Coverage(popularity)
    ranker = make_ranker(served.encoder, dataset.num_items, make_mesh(MeshConfig()),
                         filter_seen=settings.filter_seen, cold=cold,
                         list_length=min(k, dataset.num_items))
    ranks = rank_users(ranker, served.params, served.rows, dataset, users, targets, ends,
                       reading=served.reading, batch=settings.batch, reporter=reporter,
                       coverage=coverage)
    result: dict[str, Any] = {
        "metrics": {**rank_metrics(ranks, settings.ks), **coverage.result(k)},
        "protocol": protocol(dataset, split, settings, len(users)),
        "run": served.run.folder.name, "step": served.step, "seed": served.config.seed,
    }
    if baseline:
        result["popularity_baseline"] = rank_metrics(
            popularity_ranks(dataset, users, targets, ends, settings.filter_seen), settings.ks)
    return result


def protocol(dataset: Dataset, split: Split, settings: EvaluateConfig,
             users: int) -> dict[str, Any]:
    """What somebody needs to know to compare a number with another one."""
    return {
        "split": split, "split_rule": dataset.meta["split"], "split_hash": dataset.split_hash,
        "candidates": dataset.num_items, "users": users, "target": "first item of the split",
        "seen_items_filtered": settings.filter_seen,
        "cold_items_filtered": settings.filter_cold, "ties": "against the target",
        "ranking": "full catalogue",
    }


def popularity_ranks(dataset: Dataset, users: np.ndarray, targets: np.ndarray, ends: np.ndarray,
                     filter_seen: bool) -> np.ndarray:
    """Ranks int64 `[M]` if every user were shown the most popular training items first.

    Counts by two searches in the sorted popularities and one look at the user's own history,
    so it is O(V log V + interactions).
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
    return at_least - seen


def _seen_at_least(history: np.ndarray, target: int, popularity: np.ndarray) -> int:
    """How many distinct seen items, the target aside, would stand above or beside the target."""
    seen = np.unique(history)
    return int(np.sum((popularity[seen] >= popularity[target]) & (seen != target)))

