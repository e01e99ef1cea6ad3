"""Cold items and cold users, as JSON: withheld items among themselves and among all, and people
without a history by their attributes beside popularity.

    python benchmarks/cold.py items data/ml-1m-cold0 data/ml-1m-cold1 data/ml-1m-cold2 \\
        --out benchmarks/results/cold_ml1m.json
    python benchmarks/cold.py items data/ml-1m-cold0 --run runs/ml1m_cold0 --out cold_run.json
    python benchmarks/cold.py users data/ml-100k/dataset --users data/ml-100k/ml-100k.user \\
        --out benchmarks/results/cold_users_ml100k.json
    python benchmarks/cold.py friends train.txt test.txt friends.txt --work data/lastfm \\
        --out benchmarks/results/cold_friends_lastfm.json

`items`: datasets of `rec-jax prepare --withhold 0.1` that differ in `withheld.seed` alone, with
item vectors; of each EASE, or the run that is named in the same place, and the mean of all.
`users`: a fifth of the users is held out by each of three seeds, with all that they did as targets.
`friends`: the same, by friendships; the interactions are `user item` and more on each line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

import rec_jax
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare_config import Columns, PrepareConfig
from rec_jax.inference.cold import ColdFill
from rec_jax.inference.cold_evaluate import cold_metrics
from rec_jax.inference.cold_rule import FILLS, ColdRule
from rec_jax.inference.friends import SHRINKAGE, read_friends
from rec_jax.inference.newcomers import Attributes, read_attributes

SEEDS = (0, 1, 2)
Mask = npt.NDArray[np.bool_]
Scores = Mapping[str, npt.NDArray[np.float64]]
AGES = (18, 25, 35, 45, 50, 56)
"""First years of the age groups of MovieLens-1M."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    items = verbs.add_parser("items")
    items.add_argument("datasets", nargs="+")
    items.add_argument("--run", action="append", default=[], help="run on the dataset in its place")
    items.add_argument("--fill", default="both", choices=FILLS)
    items.add_argument("--ridge", type=float, default=500.0, help="of EASE")
    items.add_argument("--keep-seen", action="store_true", help="seen items may come again")
    users = verbs.add_parser("users")
    users.add_argument("dataset")
    users.add_argument("--users", required=True, help="table of the users")
    users.add_argument("--columns", default="age,gender,occupation")
    users.add_argument("--shrinkage", type=float, default=1000.0)
    friends = verbs.add_parser("friends")
    friends.add_argument("logs", nargs=2, help="files of interactions")
    friends.add_argument("friendships")
    friends.add_argument("--work", required=True, help="new folder for the dataset")
    for verb in (items, users, friends):
        verb.add_argument("--out", required=True, help="JSON file to write")
    options = parser.parse_args()
    restart_with_tuned_malloc()
    if options.verb == "items":
        if options.run and len(options.run) != len(options.datasets):
            parser.error("expected a --run for each dataset, or none")
        found = cold_items(options)
    else:
        found = cold_users(options) if options.verb == "users" else cold_friends(options)
    record(options.out, found)
    print(json.dumps({"out": options.out, "mean": found["mean"]}))


def cold_items(options: argparse.Namespace) -> dict[str, Any]:
    """Of each dataset the result of the protocol, and the mean of their metrics."""
    fill, results = ColdFill(ColdRule(options.fill)), []
    for place, dataset in enumerate(options.datasets):
        if options.run:
            result = rec_jax.evaluate(options.run[place], cold=fill, progress=True,
                                      filter_seen=False if options.keep_seen else None)["cold"]
        else:
            lines = [f"ease.ridge={options.ridge}",
                     f"evaluate.filter_seen={str(not options.keep_seen).lower()}"]
            result = rec_jax.baseline(dataset, models="ease", overrides=lines, cold=fill,
                                      progress=True)["models"]["ease"]["cold"]
        results.append({"dataset": Path(dataset).name, **result})
    mean = mean_of([{"among_cold": each["among_cold"], "among_all": each["among_all"]}
                    for each in results])
    return {"model": "run" if options.run else "ease", "ridge": options.ridge, "mean": mean,
            "results": results}


def cold_users(options: argparse.Namespace) -> dict[str, Any]:
    """NDCG and recall of popularity, and of attributes, for users who are held out."""
    dataset = Dataset.open(options.dataset)
    columns = options.columns.split(",")
    table = read_attributes(dataset, options.users, columns)
    values = {name: column.map_elements(_age_group, return_dtype=column.dtype)
              if name == "age" else column for name, column in table.values.items()}

    def scored(known: Mask) -> Callable[[int], Scores]:
        attributes = Attributes(dataset, values, known=known, whole=True)
        popular = attributes.scores({})

        def scores(user: int) -> Scores:
            given = {name: value for name in columns
                     if (value := values[name][user]) is not None
                     and (values[name].filter(known) == value).any()}
            return {"popularity": popular,
                    "attributes": attributes.scores(given, options.shrinkage)}

        return scores

    return {"columns": columns, "shrinkage": options.shrinkage, **held_out(dataset, scored)}


def cold_friends(options: argparse.Namespace) -> dict[str, Any]:
    """NDCG and recall of popularity, and of friends, for users who are held out."""
    rows = pl.concat([pl.read_csv(path, has_header=False, separator="\t", infer_schema=False,
                                  columns=[0, 1]) for path in options.logs])
    rows.columns = ["user", "item"]
    work = Path(options.work)
    work.mkdir(parents=True)
    rows.write_parquet(work / "log.parquet")
    rec_jax.prepare(PrepareConfig(source=str(work / "log.parquet"), out=str(work / "dataset"),
                                  columns=Columns("user", "item")))
    dataset = Dataset.open(work / "dataset")
    friends = read_friends(dataset, options.friendships)

    def scored(known: Mask) -> Callable[[int], Scores]:
        some = dataclasses.replace(friends, known=known, whole=True)
        popular = some.scores(np.zeros(0, np.int64))

        def scores(user: int) -> Scores:
            own = friends.friends[[user]].indices.astype(np.int64)
            return {"popularity": popular, "friends": some.scores(own, hops=1),
                    "friends of friends too": some.scores(own)}

        return scores

    return {"shrinkage": SHRINKAGE, "friendships": int(friends.friends.nnz // 2),
            **held_out(dataset, scored)}


def held_out(dataset: Dataset, scored: Callable[[Mask], Callable[[int], Scores]],
             ) -> dict[str, Any]:
    """Metrics of each kind of scores for a fifth of the users, by each seed.

    scored: of the users that are known, what gives the scores `[V]` for one of the others.
    """
    results = []
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(dataset.num_users)
        held = np.sort(order[:dataset.num_users // 5])
        scores_of = scored(~np.isin(np.arange(dataset.num_users), held))
        ranks: dict[str, list[Any]] = {}
        for user in held:
            targets = np.unique(dataset.history(int(user)))
            for name, scores in scores_of(int(user)).items():
                ordered = np.sort(scores)
                ranks.setdefault(name, []).append(
                    len(ordered) - np.searchsorted(ordered, scores[targets]))
        results.append({"seed": seed, "users": len(held), **{
            name: cold_metrics(each, (5, 10, 20)) for name, each in ranks.items()}})
    return {"dataset": Path(dataset.folder).name, "split_hash": dataset.split_hash,
            "ties": "against the target", "targets": "all items of a held out user",
            "candidates": dataset.num_items,
            "mean": mean_of([{name: value for name, value in each.items()
                              if isinstance(value, Mapping)} for each in results]),
            "results": results}


def _age_group(age: str) -> str:
    return str(sum(float(age) >= first for first in AGES))


def mean_of(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of numbers in mappings of the same structure."""
    return {name: mean_of([tree[name] for tree in trees]) if isinstance(value, Mapping)
            else float(np.mean([tree[name] for tree in trees]))
            for name, value in trees[0].items()}


if __name__ == "__main__":
    main()
