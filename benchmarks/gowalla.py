"""Gowalla in the split of the papers on graphs, with their metrics, as JSON.

    python benchmarks/gowalla.py prepare train.parquet test.parquet --out data/gowalla
    rec-jax train configs/gowalla_lightgcn.toml --run runs/gowalla_lightgcn
    python benchmarks/gowalla.py evaluate runs/gowalla_lightgcn* \\
        --out benchmarks/results/gowalla_lightgcn.json

`prepare`: both files have the columns `user` and `item`. A split that is given is one by time,
where the time is the number of the part. The papers have no validation part; here `--valid` users
of a seeded shuffle (by default 2,000) give one training interaction each to it.

`evaluate`: Recall@20 and NDCG@20 as He et al. (2020) have them: every item of a user's test part is
relevant, what stands before it is left out of the list, and users with a test part count alike.
Of several runs, such as those of some seeds, there are mean and range.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import rec_jax
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.config import to_mapping
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import Columns, PrepareConfig, SplitConfig
from rec_jax.inference.export import load_embeddings
from rec_jax.run import Run
from rec_jax.solvers.ranking import best_items
from rec_jax.train.log import read_metrics

K = 20
BLOCK = 512
TRAIN, VALID, TEST = 0, 1, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("prepare")
    making.add_argument("train")
    making.add_argument("test")
    making.add_argument("--valid", type=int, default=2000, help="users of the validation part")
    making.add_argument("--seed", type=int, default=0)
    asking = verbs.add_parser("evaluate")
    asking.add_argument("runs", nargs="+", metavar="run")
    for verb in (making, asking):
        verb.add_argument("--out", required=True, help="dataset folder, or JSON file to write")
    options = parser.parse_args()
    restart_with_tuned_malloc()
    if options.verb == "prepare":
        make_dataset(pl.read_parquet(options.train), pl.read_parquet(options.test), options.out,
                     options.valid, options.seed)
    else:
        each = [measure(run) for run in options.runs]
        values = {name: [one["test"][name] for one in each] for name in each[0]["test"]}
        record(options.out, {
            "runs": each, "mean": {name: statistics.fmean(got) for name, got in values.items()},
            "range": {name: [min(got), max(got)] for name, got in values.items()}})


def make_dataset(train: pl.DataFrame, test: pl.DataFrame, out: str, valid: int, seed: int) -> None:
    """The dataset folder `out` of two tables `user, item`.

    valid: how many users give one of their training interactions, drawn by `seed`, to validation.
    """
    drawn = train.with_row_index("place").sample(fraction=1, shuffle=True, seed=seed)
    several = drawn.filter(pl.len().over("user") > 1)  # one is left to train on
    chosen = several.unique("user", keep="first", maintain_order=True).head(valid)["place"]
    part = np.full(len(train), TRAIN)
    part[chosen.to_numpy()] = VALID
    both = pl.concat([train.with_columns(part=pl.Series(part)),
                      test.select(train.columns).with_columns(part=pl.lit(TEST, pl.Int64))])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "parts.parquet"
        both.write_parquet(source)
        prepare(PrepareConfig(
            source=str(source), out=out, columns=Columns("user", "item", time="part",
                                                         time_unit="s"),
            split=SplitConfig("time", valid_time=VALID, test_time=TEST)))


def measure(run: str) -> dict[str, Any]:
    """Both metrics of a run's best checkpoint, its config, and the seconds of its training."""
    model = rec_jax.load(run)
    with tempfile.TemporaryDirectory() as folder:
        items, users = (load_embeddings(rec_jax.export(
            model, out=Path(folder) / what, what=what))  # type: ignore[arg-type]
            for what in ("items", "users"))
        metrics = list_metrics(np.array(users.vectors), np.array(items.vectors),
                               model.served.dataset, bias=items.item_bias)
    config = to_mapping(model.served.config)
    config["data"]["path"] = Path(config["data"]["path"]).name
    return {"run": Path(run).name, "step": model.served.step, "test": metrics,
            "dataset": model.served.dataset.split_hash, "config": config,
            "seconds": max(line["seconds"] for line in read_metrics(Run(Path(run)).metrics_path)
                           if "seconds" in line)}


def list_metrics(users: np.ndarray, items: np.ndarray, dataset: Dataset, k: int = K,
                 bias: np.ndarray | None = None) -> dict[str, float]:
    """Recall@k and NDCG@k of vectors f32 `[U, d]` and `[V, d]`, means over users with a test part.

    bias: f32 `[V]`, added to the scores.

    Recall: the share of a user's different test items that are among the first k. NDCG: the sum of
    1 / log2(1 + rank) over those, by that of a list that begins with as many test items as it can.
    """
    offsets, ends = np.asarray(dataset.offsets), np.asarray(dataset.valid_end)
    asked = np.flatnonzero(offsets[1:] > ends)
    gains = 1 / np.log2(np.arange(2, k + 2))
    recalls, ndcgs = [], []
    for first in range(0, len(asked), BLOCK):
        block = asked[first:first + BLOCK]
        scores = users[block] @ items.T
        if bias is not None:
            scores += bias
        for row, user in enumerate(block):
            scores[row, dataset.items[offsets[user]:ends[user]]] = -np.inf
        for user, listed in zip(block, best_items(scores, k), strict=True):
            wanted = np.unique(dataset.items[ends[user]:offsets[user + 1]])
            hits = np.isin(listed, wanted)
            recalls.append(hits.sum() / len(wanted))
            ndcgs.append(hits @ gains / gains[:len(wanted)].sum())
    return {f"recall@{k}": float(np.mean(recalls)), f"ndcg@{k}": float(np.mean(ndcgs)),
            "users": float(len(asked))}


if __name__ == "__main__":
    main()
