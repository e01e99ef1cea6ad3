"""Useful share of positions, packed against padded, on MovieLens-1M and Amazon Beauty.

    python benchmarks/packing.py [--data FOLDER]

A position is useful if it has a target. The ratio of rows is what packing saves in an epoch; the
ratio of targets a second is measured on real training steps (d = 64, 2 blocks, exact softmax),
one of each layout in turn.
The files may not be redistributed; without them the script says so and writes nothing. Results
go to benchmarks/results/packing.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from rec_jax import config
from rec_jax.bench.record import record
from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import PrepareConfig, prepare
from rec_jax.run import RunConfig
from rec_jax.train.build import build
from rec_jax.train.step import place_batch

ROOT = Path(__file__).resolve().parents[1]
ROWS = 64
TRAIN_ROWS = 16
SETS = {
    "ml-1m": ("ml-1m/ml-1m.txt", "pairs", 200),
    "beauty": ("amazon-beauty/beauty.txt", "pairs", 50),
    "beauty, 5-core": ("s3rec-beauty/Beauty.txt", "lists", 50),
}


def measure(dataset: Dataset, length: int, window: Any) -> dict[str, Any]:
    """Shares, rows and milliseconds a batch of both layouts of `dataset`."""
    packed, padded = (BatchStream(dataset, length=length, rows=ROWS, window=window, pack=pack)
                      for pack in (True, False))
    return {
        "targets": packed.targets_per_epoch,
        "rows_packed": packed.rows_per_epoch,
        "rows_padded": padded.rows_per_epoch,
        "useful_packed": round(packed.useful_share, 4),
        "useful_padded": round(padded.useful_share, 4),
        "rows_ratio": round(padded.rows_per_epoch / packed.rows_per_epoch, 3),
        "batch_milliseconds": round(1e3 * seconds_a_batch(packed), 2),
    }


def training_speed(folder: str, length: int, steps: int = 12) -> dict[str, Any]:
    """Targets a second of the training step in both layouts, and their ratio."""
    jobs = []
    for pack in (True, False):
        built = build(config.build(RunConfig, {
            "data": {"path": folder, "length": length, "pack": pack},
            "train": {"rows": TRAIN_ROWS}}))
        jobs.append([built, built.state, []])
    for number in range(steps + 1):
        for job in jobs:
            built, state, rates = job
            batch = {name: value[None] for name, value in next(built.stream).items()}
            targets = int((batch["targets"] >= 0).sum())
            began = time.perf_counter()
            job[1], metrics = built.step(state, place_batch(batch, built.mesh))
            jax.block_until_ready(metrics)
            if number:  # the first one compiles
                rates.append(targets / (time.perf_counter() - began))
    packed, padded = (statistics.median(job[2]) for job in jobs)
    return {"rows": TRAIN_ROWS, "targets_per_second_packed": round(packed),
            "targets_per_second_padded": round(padded), "ratio": round(packed / padded, 3)}


def seconds_a_batch(stream: BatchStream, count: int = 30) -> float:
    """Median time to make one batch on one core."""
    next(stream)
    spent = []
    for _ in range(count):
        began = time.perf_counter()
        next(stream)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name, (file, form, length) in SETS.items():
        path = arguments.data / file
        if not path.is_file():
            print(f"{name}: {file} not found in --data; skipped")
            continue
        with tempfile.TemporaryDirectory() as folder:
            prepare(PrepareConfig(source=str(path), out=f"{folder}/dataset", format=form))
            dataset = Dataset.open(f"{folder}/dataset")
            results[name] = {"length": length, "users": dataset.num_users} | {
                window: measure(dataset, length, window) for window in ("last", "chunks")}
            results[name]["training"] = training_speed(f"{folder}/dataset", length)
        print(name, results[name])
    if results:
        record(Path(__file__).parent / "results" / "packing.json",
               {"rows_a_batch": ROWS, "sets": results})


if __name__ == "__main__":
    main()
