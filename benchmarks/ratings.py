"""RMSE of predicted ratings on random folds, as JSON.

    python benchmarks/ratings.py prepare ml-100k.inter --films ml-100k.item \\
        --out data/ml-100k/folds
    python benchmarks/ratings.py measure data/ml-100k/folds \\
        --config configs/ratings_ml100k_svdpp.toml --runs runs/ratings \\
        --out benchmarks/results/ratings_ml100k.json

`prepare`: of a table with ratings (by default with the columns of MovieLens-100K here) the folds 0
to K - 1, which share no rating: fold k is the test part of the dataset OUT/k, all others its
training. A share `--valid` of the training ratings, drawn by the fold's number, is for validation:
settings are chosen with `--valid 0.1`, and measured with `--valid 0.01` and a fixed number of
epochs, so that the model is trained on almost all that is not the test. `--films`: a table of the
films, whose genres and years of release become the item vectors `genres`.

`measure`: a run a fold, RUNS/k, whose last checkpoint is asked; what is there and done is not
trained again. RMSE and MAE are over the ratings of the fold by users with a rating elsewhere,
within the range. `--peers` adds what `benchmarks/peers/ratings_surprise.py` printed of the same
folds.
"""

from __future__ import annotations

import argparse
import json
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
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import Columns, PrepareConfig, SplitConfig
from rec_jax.run import Run
from rec_jax.train.log import read_metrics

TRAIN, VALID, TEST = 0, 1, 2
METRICS = ("rmse", "mae")
COLUMNS = {"user": "user_id:token", "item": "item_id:token", "rating": "rating:float"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("prepare")
    making.add_argument("source", help="CSV or TSV file")
    for name, column in COLUMNS.items():
        making.add_argument(f"--{name}", default=column, help="its column")
    making.add_argument("--separator", default="\t")
    making.add_argument("--films", help="table of the films, with genres and years")
    making.add_argument("--folds", type=int, default=5)
    making.add_argument("--valid", type=float, default=0.01)
    making.add_argument("--seed", type=int, default=0, help="of the folds")
    measuring = verbs.add_parser("measure")
    measuring.add_argument("folds", help="what prepare made")
    measuring.add_argument("--config", required=True)
    measuring.add_argument("--runs", required=True, help="folder of the runs")
    measuring.add_argument("--set", action="append", default=[], help="a line laid over the config")
    measuring.add_argument("--peers", help="JSON file of other programs on the same folds")
    for verb in (making, measuring):
        verb.add_argument("--out", required=True, help="folder to make, or JSON file to write")
    options = parser.parse_args()
    restart_with_tuned_malloc()
    if options.verb == "prepare":
        names = {name: getattr(options, name) for name in COLUMNS}
        rows = pl.read_csv(options.source, separator=options.separator).select(
            pl.col(column).alias(name) for name, column in names.items())
        make_folds(rows, Path(options.out), options.folds, options.valid, options.seed)
        if options.films:
            films = pl.read_csv(options.films, separator=options.separator, quote_char=None,
                                infer_schema_length=0)
            for fold in range(options.folds):
                give_vectors(films, Path(options.out) / str(fold))
        return
    found = measure(Path(options.folds), options.config, Path(options.runs), options.set)
    if options.peers:
        found["peers"] = json.loads(Path(options.peers).read_text())
    record(options.out, found)
    print(json.dumps({"mean": found["mean"], "range": found["range"]}))


def make_folds(rows: pl.DataFrame, out: Path, folds: int, valid: float, seed: int) -> None:
    """The datasets OUT/0 and on of a table `user, item, rating`."""
    for fold, part in enumerate(parts_of(len(rows), folds, valid, seed)):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "parts.parquet"
            rows.with_columns(part=pl.Series(part)).write_parquet(source)
            prepare(PrepareConfig(
                source=str(source), out=str(out / str(fold)),
                columns=Columns("user", "item", time="part", rating="rating", time_unit="s"),
                split=SplitConfig("time", valid_time=VALID, test_time=TEST)))


def parts_of(count: int, folds: int, valid: float, seed: int) -> list[np.ndarray]:
    """Of each fold the part of every rating, int64 `[count]`."""
    fold_of = np.random.default_rng(seed).permutation(count) % folds
    found = []
    for fold in range(folds):
        drawn = np.random.default_rng([seed, fold]).random(count) < valid
        found.append(np.where(fold_of == fold, TEST, np.where(drawn, VALID, TRAIN)))
    return found


def give_vectors(films: pl.DataFrame, dataset: Path) -> None:
    """Item vectors `genres` of a dataset, from the columns of MovieLens-100K here."""
    ids, _, years, genres = films.get_columns()[:4]
    with tempfile.TemporaryDirectory() as folder:
        vectors, names = Path(folder) / "v.npy", Path(folder) / "ids.txt"
        np.save(vectors, film_vectors(genres.to_list(), years.to_list()))
        names.write_text("\n".join(ids) + "\n")
        rec_jax.embed(dataset, name="genres", vectors=vectors, ids=names)


def film_vectors(genres: list[str], years: list[str]) -> np.ndarray:
    """f32 `[n, c]` of length 1: a column a genre, whose films share 1 among theirs, one for each
    eight years of release from 1920 on, and one where the year is unknown."""
    names = sorted({name for each in genres for name in each.split()})
    found = np.zeros((len(genres), len(names) + 12), np.float32)
    for row, (each, year) in enumerate(zip(genres, years, strict=True)):
        own = each.split()
        found[row, [names.index(name) for name in own]] = len(own) ** -0.5
        known = year is not None and year.isdigit()
        found[row, len(names) + (1 + min(max((int(year) - 1920) // 8, 0), 10) if known else 0)] = 1
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def measure(folds: Path, config: str, runs: Path, lines: list[str]) -> dict[str, Any]:
    """Figures of a config on each fold, with their mean and range."""
    each = []
    for dataset in sorted(folds.iterdir(), key=lambda path: int(path.name)):
        run = Run(runs / dataset.name)
        if not run.report_path.exists():
            begun = run.config_path.exists()
            rec_jax.train(None if begun else config, run=None if begun else run.folder,
                          overrides=[] if begun else [f"data.path='{dataset}'", *lines],
                          resume=run.folder if begun else None, progress=True)
        log = read_metrics(run.metrics_path)
        last = max(line["step"] for line in log)
        result = rec_jax.evaluate(run.folder, step=last)
        each.append({"fold": int(dataset.name), "steps": last,
                     "split_hash": result["protocol"]["split_hash"],
                     "seconds": max(line["seconds"] for line in log if "seconds" in line),
                     **{name: result["metrics"][name] for name in METRICS}})
        settings = to_mapping(run.config())
    settings["data"]["path"] = folds.name
    return {"config": settings, "folds": each,
            "mean": {name: statistics.fmean(one[name] for one in each) for name in METRICS},
            "range": {name: [min(one[name] for one in each), max(one[name] for one in each)]
                      for name in METRICS}}


if __name__ == "__main__":
    main()
