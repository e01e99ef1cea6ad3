"""How well a model recommends items that nobody has met: the protocol of withheld items.

A dataset that was prepared with `withheld.share` keeps, beside its split, what each user did with
items that training never saw. A user is asked for at the end of their history, as in any other
evaluation of the split, and has two kinds of targets: all withheld items that they met, and the
split's own one.

    among cold   ranks of the cold targets among the withheld items alone
    among all    ranks of both kinds among all items, where cold items get `bias` on top

Scores of cold rows are not comparable with those of trained ones, so the bias is calibrated: every
second user validates, by what they did before the split's validation, and of biases that show a
cold item to 0, 5, .. 95 % of these users, the one is taken by which NDCG is best of both kinds
together, weighted by how often an interaction of the log is with a withheld item. The other users
test what is among all; ranks among cold items know no bias, and are of all users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.asking import made_once, map_rounds, tile_queries
from rec_jax.inference.blocks import host_rows
from rec_jax.inference.cold_edges import gives_edges
from rec_jax.inference.evaluate import popularity_ranks
from rec_jax.inference.histories import Tiles, iterate_tiles
from rec_jax.inference.protocol import Split, seen_targets
from rec_jax.inference.served import Served
from rec_jax.mesh import Axes
from rec_jax.metrics import MISSED, rank_metrics
from rec_jax.model.encoder import Encoder
from rec_jax.progress import Reporter, Silent
from rec_jax.run_sections import EvaluateConfig
from rec_jax.tables import Table
from rec_jax.tables.bias import place_bias
from rec_jax.tables.tiles import bias_of, rank_tiles, rows_of, top_k_tiles

_SHARES = np.arange(0, 20) / 20  # of users who see a cold item
Floats = npt.NDArray[np.float32]


class Asked(NamedTuple):
    """What a model says of some users, as far as ranks up to k need it.

    best: f32 `[M, k]`, the best scores of items that are not withheld, falling; ranks: int32 `[M]`,
    of the split's target among these; score: f32 `[M]`, of that target.
    cold_best: f32 `[M, k]`, the best scores of withheld items, falling; cold_scores: f32, and
    cold_ranks: int64 among the withheld items, both `[n]` for each user's n targets of these.
    """

    best: Floats
    ranks: npt.NDArray[np.int32]
    score: Floats
    cold_best: Floats
    cold_scores: list[Floats]
    cold_ranks: list[npt.NDArray[np.int64]]

    def take(self, which: npt.NDArray[np.bool_]) -> Asked:
        """What it says of those of them."""
        scores, ranks = ([each for each, taken in zip(part, which, strict=True) if taken]
                         for part in (self.cold_scores, self.cold_ranks))
        return Asked(self.best[which], self.ranks[which], self.score[which],
                     self.cold_best[which], scores, ranks)  # type: ignore[arg-type]

    def tell(self, places: npt.NDArray[np.int64], scores: Floats, people: People) -> None:
        """Fill in what `scores` f32 `[n, C]` of all withheld items say of users at `places`."""
        length = self.cold_best.shape[1]
        for place, own in zip(places.tolist(), scores, strict=True):
            rising = np.sort(own)  # NaN comes last, as if it were the best
            wanted = own[people.cold[place]]
            ranks = len(own) - np.searchsorted(rising, wanted, side="left")
            self.cold_best[place] = rising[::-1][:length]
            self.cold_scores[place] = wanted
            self.cold_ranks[place] = np.where(np.isfinite(wanted), ranks, MISSED).astype(np.int64)


class People(NamedTuple):
    """users: int64 `[M]`; ends: int64 `[M]`, of their histories; warm: int32 `[M]`, their targets
    of the split, -1 for none; cold: their withheld items, distinct, each int `[n]` counted from
    the first withheld one."""

    users: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    warm: npt.NDArray[np.int32]
    cold: list[npt.NDArray[np.int64]]

    def take(self, which: npt.NDArray[np.bool_]) -> People:
        """Those of them."""
        cold = [items for items, taken in zip(self.cold, which, strict=True) if taken]
        return People(self.users[which], self.ends[which], self.warm[which], cold)


Ask = Callable[[People, Reporter], Asked]


def nothing_yet(people: People, length: int, cold: int) -> Asked:
    """To be filled in. length: k; cold: how many items are withheld."""
    count = len(people.users)
    return Asked(np.zeros((count, length), np.float32), np.zeros(count, np.int32),
                 np.zeros(count, np.float32), np.zeros((count, min(length, cold)), np.float32),
                 [np.zeros(0, np.float32)] * count, [np.zeros(0, np.int64)] * count)


def evaluate_cold(served: Served, *, split: Split = "test",
                  settings: EvaluateConfig | None = None, reporter: Reporter | None = None,
                  asked: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Metrics of withheld items, and of the others beside them; see the head of this file.

    served: its cold items have got their rows (`cold.fill_cold`). asked: bool `[U]`, users who
      count; None: all, or where others gave what they did as edges, who did not.

    Raises:
      InputError: the dataset withholds no items, or nobody met one.
    """
    settings = settings or served.config.evaluate
    check_withheld(served.dataset)
    filled = np.zeros(1, bool) if served.filled is None else served.filled
    if asked is None and (served.cold or {}).get("fill") == "edges":
        asked = ~gives_edges(served.dataset)
    return measure_cold(
        served.dataset, _asker(served, settings), split, settings,
        asked=asked,
        given=(served.cold or {}).get("bias", 0.0), reporter=reporter,
        about={"cold_items": served.cold,
               "filled": int((filled & served.dataset.is_withheld()).sum())})


def check_withheld(dataset: Dataset) -> None:
    """Raises InputError where the dataset withholds no items."""
    if dataset.withheld is None:
        raise InputError(f"{dataset.folder} withholds no items, so nothing says how well new ones "
                         "are recommended; expected a dataset of prepare --withhold")


def measure_cold(dataset: Dataset, ask: Ask, split: Split, settings: EvaluateConfig, *,
                 about: dict[str, Any], given: float = 0.0, reporter: Reporter | None = None,
                 asked: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """The metrics by a model's answers.

    asked: bool `[U]`, users who count; None: all.

    about: what the protocol says of the rows of cold items; given: the bias that they have.
    """
    assert dataset.withheld is not None
    before, everybody = people_of(dataset, "valid"), people_of(dataset, split)
    if asked is not None:
        before, everybody = (each.take(asked[each.users]) for each in (before, everybody))
    validating = before.take(before.users % 2 == 0)
    k = 10 if 10 in settings.ks else max(settings.ks)
    first, told = (ask(each, reporter or Silent()) for each in (validating, everybody))
    tests = everybody.users % 2 == 1
    testing, others = everybody.take(tests), told.take(tests)
    weight = len(dataset.withheld) / (len(dataset.withheld) + dataset.num_interactions)
    bias = calibrate(first, validating, _missed(dataset, validating, settings), weight, k)
    missed = _missed(dataset, testing, settings)
    popular = popularity_ranks(dataset, testing.users, np.maximum(testing.warm, 0), testing.ends,
                               settings.filter_seen)[testing.warm >= 0]
    return {
        "among_cold": cold_metrics(told.cold_ranks, settings.ks),
        "among_all": {
            "calibrated": _among_all(others, testing, bias, missed, settings.ks, weight),
            "uncalibrated": _among_all(others, testing, -given, missed, settings.ks, weight),
            "without_cold": _among_all(others, testing, -np.inf, missed, settings.ks, weight),
            # Items without a training interaction are the least popular ones: all are missed.
            "popularity": _both(cold_metrics([np.full(len(items), MISSED) for items in
                                              testing.cold], settings.ks),
                                _up_to(rank_metrics(popular, settings.ks)), settings.ks, weight),
        },
        "bias": given + bias,
        "protocol": {
            "split": split, "split_hash": dataset.split_hash, "withheld": dataset.meta["withheld"],
            **about,
            "users_among_cold": sum(len(items) > 0 for items in everybody.cold),
            "users_validating": len(validating.users), "users_testing": len(testing.users),
            "users_testing_cold": sum(len(items) > 0 for items in testing.cold),
            "users_testing_warm": int((testing.warm >= 0).sum()),
            "recall": "hits / min(k, targets)", "cold_targets": "all withheld items of a user",
            "warm_target": "first item of the split", "weight_of_cold": weight,
            "seen_items_filtered": settings.filter_seen, "ties": "against the target",
            "calibration": f"ndcg@{k} of both, by weight, of every second user",
        },
    }


def people_of(dataset: Dataset, split: Split) -> People:
    """Users with a history before `split`, and their targets."""
    ends = np.asarray(dataset.train_end if split == "valid" else dataset.valid_end)
    users = np.flatnonzero(ends > dataset.offsets[:-1])
    targets, items, _ = dataset.targets(split)
    warm = np.full(dataset.num_users, -1, np.int32)
    warm[targets] = items
    assert dataset.withheld is not None and dataset.withheld_offsets is not None
    first, offsets = dataset.num_trained, dataset.withheld_offsets
    cold = [np.unique(dataset.withheld[offsets[user]:offsets[user + 1]]).astype(np.int64) - first
            for user in users]
    return People(users, ends[users], warm[users], cold)


def _asker(served: Served, settings: EvaluateConfig) -> Ask:
    served.check_there("an evaluation of cold items")
    dataset, mesh, over = served.dataset, served.mesh, served.over
    length = min(max(settings.ks), dataset.num_trained)
    total = served.rows.shape[0]
    barred = place_bias(total, mesh, barred=dataset.is_withheld(), over=over)
    bias = barred if served.bias is None else served.bias + barred
    first = dataset.num_trained
    cold_rows = host_rows(served, served.rows)[first:]
    cold_bias = (np.zeros(len(cold_rows), np.float32) if served.bias is None
                 else host_rows(served, served.bias[:, None])[first:, 0])

    answers = _jitted(served.encoder, dataset.num_items, mesh, over, settings.filter_seen, length)

    def ask(people: People, reporter: Reporter) -> Asked:
        reporter.begin(len(people.users))
        found = nothing_yet(people, length, len(cold_rows))
        for tiles, chosen in iterate_tiles(
                dataset, people.users, people.ends, np.maximum(people.warm, 0),
                reading=served.reading, batch=settings.batch, devices=mesh.size):
            queries, *rest = (np.asarray(leaf).reshape(-1, *leaf.shape[2:])[:len(chosen)]
                              for leaf in answers(served.params, served.rows, tiles, bias))
            found.tell(chosen, queries @ cold_rows.T + cold_bias, people)
            for whole, part in zip((found.best, found.ranks, found.score), rest, strict=True):
                whole[chosen] = part
            reporter.advance(len(chosen))
        return found

    return ask


@made_once
def _jitted(encoder: Encoder, num_items: int, mesh: Mesh, over: Axes, filter_seen: bool,
            length: int) -> Callable[..., Any]:
    """`(params, rows, tiles, bias)` -> queries, the scores of the best `length` warm items, and
    ranks and scores of targets among them."""

    @jax.jit
    def answers(params: Any, rows: jax.Array, tiles: Tiles, bias: jax.Array) -> Any:
        table = Table(rows, (), num_items, over)

        def one(tiles: Tiles) -> Any:
            queries = tile_queries(mesh, encoder, params, table, tiles)
            seen = (tiles.seen_offsets, tiles.seen_items) if filter_seen else None
            ranks = rank_tiles(mesh, queries, table, tiles.targets, seen, tiles.used, bias=bias)
            best, _ = top_k_tiles(mesh, queries, table, length, seen, tiles.used, bias=bias)
            score = jnp.sum(queries * rows_of(mesh, table, tiles.targets), axis=-1)
            return queries, best, ranks, score + bias_of(mesh, bias, tiles.targets, table)

        return map_rounds(mesh, one, tiles)

    return answers


def _missed(dataset: Dataset, people: People, settings: EvaluateConfig
            ) -> npt.NDArray[np.bool_]:
    """Whose target of the split is in their history and may not be recommended, bool `[M]`."""
    if not settings.filter_seen:
        return np.zeros(len(people.users), bool)
    return seen_targets(dataset, people.users, people.warm, people.ends)


def cold_ranks(asked: Asked, bias: float) -> list[npt.NDArray[np.int64]]:
    """Ranks of each user's cold targets among all items, right up to k. Ties count against a
    target; with a bias of -inf all are missed."""
    if bias == -np.inf:
        return [np.full(len(ranks), MISSED) for ranks in asked.cold_ranks]
    return [ranks + len(best) - np.searchsorted(best[::-1], own + np.float32(bias), side="left")
            for ranks, own, best in zip(asked.cold_ranks, asked.cold_scores, asked.best,
                                        strict=True)]


def warm_ranks(asked: Asked, bias: float) -> npt.NDArray[np.int64]:
    """Ranks `[M]` of the split's targets among all items, right up to k."""
    beside = asked.cold_best + np.float32(bias) >= asked.score[:, None]
    return asked.ranks + beside.sum(axis=1)


def calibrate(asked: Asked, people: People, missed: npt.NDArray[np.bool_], weight: float,
              k: int) -> float:
    """The bias of cold items by which NDCG@k of cold and warm targets, weighted, is best.

    missed: bool `[M]`, whose warm target may not be recommended; weight: of the cold ones.
    """
    if not any(len(items) for items in people.cold):
        raise InputError("no validating user met a withheld item; expected more users, or a larger "
                         "withheld.share")
    if not (people.warm >= 0).any():
        raise InputError("no validating user has a target that is not withheld; expected more "
                         "users, or a smaller withheld.share")
    margin = asked.best[:, min(k, asked.best.shape[1]) - 1] - asked.cold_best[:, 0]
    margin = margin[np.isfinite(margin)]
    if not margin.size:  # every list has room for all cold items
        return 0.0

    def quality(bias: float) -> float:
        return float(_among_all(asked, people, bias, missed, (k,), weight)["both"][f"ndcg@{k}"])

    # Between two margins: no rounding decides who sees an item.
    ordered = np.sort(margin)
    place = (_SHARES * (len(ordered) - 1)).astype(int)
    between = (ordered[place] + ordered[np.minimum(place + 1, len(ordered) - 1)]) / 2
    return max(between.tolist(), key=quality)


def _among_all(asked: Asked, people: People, bias: float, missed: npt.NDArray[np.bool_],
               ks: tuple[int, ...], weight: float) -> dict[str, dict[str, float]]:
    there = people.warm >= 0
    warm = np.where(missed, MISSED, warm_ranks(asked, bias))[there]
    return _both(cold_metrics(cold_ranks(asked, bias), ks), _up_to(rank_metrics(warm, ks)), ks,
                 weight)


def _up_to(metrics: dict[str, float]) -> dict[str, float]:
    """Those that ranks up to k decide."""
    return {name: value for name, value in metrics.items() if "@" in name}


def _both(cold: dict[str, float], warm: dict[str, float], ks: tuple[int, ...], weight: float
          ) -> dict[str, dict[str, float]]:
    both = {f"ndcg@{k}": weight * cold[f"ndcg@{k}"] + (1 - weight) * warm[f"ndcg@{k}"] for k in ks}
    return {"cold": cold, "warm": warm, "both": both}


def cold_metrics(ranks: list[npt.NDArray[np.int64]], ks: tuple[int, ...]) -> dict[str, float]:
    """Recall@k, hits / min(k, targets), and NDCG@k of users with several targets each, by their
    ranks; users without any are left out.

    Raises:
      InputError: nobody has a target.
    """
    ranks = [each for each in ranks if len(each)]
    if not ranks:
        raise InputError("nobody who is tested met a withheld item; expected more users, or a "
                         "larger withheld.share")
    found = {}
    ideal = np.cumsum(1 / np.log2(np.arange(2, max(map(len, ranks)) + 2)))
    for k in ks:
        hits = [each[each <= k] for each in ranks]
        found[f"recall@{k}"] = float(np.mean([
            len(hit) / min(k, len(each)) for hit, each in zip(hits, ranks, strict=True)]))
        found[f"ndcg@{k}"] = float(np.mean([
            np.sum(1 / np.log2(1 + hit)) / ideal[min(k, len(each)) - 1]
            for hit, each in zip(hits, ranks, strict=True)]))
    return found
