"""Cold items and cold users, as JSON: withheld items among themselves and among all, and people
without a history by their attributes beside popularity.

    python benchmarks/cold.py items data/ml-1m-cold0 data/ml-1m-cold1 data/ml-1m-cold2 \\
        --out benchmarks/results/cold_ml1m.json
    python benchmarks/cold.py items data/ml-1m-cold0 --run runs/ml1m_cold0 --out cold_run.json
    python benchmarks/cold.py users data/ml-100k/dataset --users data/ml-100k/ml-100k.user \\
        --out benchmarks/results/cold_users_ml100k.json

`items`: datasets of `rec-jax prepare --withhold 0.1` that differ in `withheld.seed` alone, with
item vectors; of each EASE, or the run that is named in the same place, and the mean of all.
`users`: a fifth of the users is held out by each of three seeds, with all that they did as targets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rec_jax
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.inference.cold import ColdFill
from rec_jax.inference.cold_evaluate import cold_metrics
from rec_jax.inference.cold_rule import FILLS, ColdRule
from rec_jax.inference.newcomers import Attributes, read_attributes

SEEDS = (0, 1, 2)
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
    for verb in (items, users):
        verb.add_argument("--out", required=True, help="JSON file to write")
    options = parser.parse_args()
    restart_with_tuned_malloc()
    if options.verb == "items":
        if options.run and len(options.run) != len(options.datasets):
            parser.error("expected a --run for each dataset, or none")
        found = cold_items(options)
    else:
        found = cold_users(options)
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
    dataset = rec_jax.Dataset.open(options.dataset)
    columns = options.columns.split(",")
    table = read_attributes(dataset, options.users, columns)
    values = {name: column.map_elements(_age_group, return_dtype=column.dtype)
              if name == "age" else column for name, column in table.values.items()}
    results = []
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(dataset.num_users)
        held = np.sort(order[:dataset.num_users // 5])
        known = ~np.isin(np.arange(dataset.num_users), held)
        attributes = Attributes(dataset, values, known=known, whole=True)
        ranks: dict[str, list[Any]] = {"popularity": [], "attributes": []}
        for user in held:
            given = {name: value for name in columns
                     if (value := values[name][int(user)]) is not None
                     and (values[name].filter(known) == value).any()}
            targets = np.unique(dataset.history(int(user)))
            for name, scores in (("popularity", attributes.scores({})),
                                 ("attributes", attributes.scores(given, options.shrinkage))):
                ordered = np.sort(scores)
                ranks[name].append(len(ordered) - np.searchsorted(ordered, scores[targets]))
        results.append({"seed": seed, "users": len(held), **{
            name: cold_metrics(each, (5, 10, 20)) for name, each in ranks.items()}})
    return {"dataset": Path(options.dataset).name, "split_hash": dataset.split_hash,
            "columns": columns, "shrinkage": options.shrinkage, "ties": "against the target",
            "targets": "all items of a held out user", "candidates": dataset.num_items,
            "mean": mean_of([{name: each[name] for name in ("popularity", "attributes")}
                             for each in results]), "results": results}


def _age_group(age: str) -> str:
    return str(sum(float(age) >= first for first in AGES))


def mean_of(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of numbers in mappings of the same structure."""
    return {name: mean_of([tree[name] for tree in trees]) if isinstance(value, Mapping)
            else float(np.mean([tree[name] for tree in trees]))
            for name, value in trees[0].items()}


if __name__ == "__main__":
    main()
