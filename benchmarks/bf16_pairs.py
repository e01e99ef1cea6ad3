"""Rows in bf16 against rows in f32, all else alike: paired seeds of one config, and the interval.

    python benchmarks/bf16_pairs.py --data data/ml-100k/dataset --runs runs/bf16
    python benchmarks/bf16_pairs.py --data .. --runs .. --seeds 3     # this seed alone
    python benchmarks/bf16_pairs.py --runs runs/bf16 --summary        # of what is finished

A pair is two runs of a seed with `table.update = "dense"`. A run that was stopped is gone on
with, and one that is finished and evaluated is not done again: what was found lies in its folder,
in `test.json`. The record is written after every pair.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import rec_jax
from rec_jax import config
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.files import write_atomic
from rec_jax.run import Run

DTYPES = ("f32", "bf16")
FIXED = ("table.update=dense", "objective.backend=xla", "encoder.backend=xla")
# Two-sided 95 % points of Student's t by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/ml100k.toml", help="TOML file of the runs")
    parser.add_argument("--data", help="dataset folder, instead of the config's")
    parser.add_argument("--runs", required=True, help="folder of the run folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--set", action="append", default=[], help="one line of TOML over it")
    parser.add_argument("--metric", default="ndcg@10")
    parser.add_argument("--out", default="benchmarks/results/bf16_pairs.json")
    parser.add_argument("--summary", action="store_true", help="train nothing")
    options = parser.parse_args()
    restart_with_tuned_malloc()  # as the command line does
    folder = Path(options.runs)
    for seed in () if options.summary else options.seeds:
        for dtype in DTYPES:
            one_run(folder / f"seed{seed}-{dtype}", options, seed, dtype)
        summarise(folder, options)
    if options.summary:
        summarise(folder, options)


def one_run(folder: Path, options: argparse.Namespace, seed: int, dtype: str) -> None:
    """Train to the end and evaluate, as far as that is not done."""
    found = folder / "test.json"
    if found.exists():
        return
    run = Run(folder)
    if run.config_path.exists():
        summary = rec_jax.train(resume=folder, progress=True)
    else:
        data = [f"data.path='{options.data}'"] if options.data else []
        lines = [*FIXED, *data, *options.set, f"seed={seed}", f"table.dtype={dtype}"]
        summary = rec_jax.train(options.config, overrides=lines, run=folder, progress=True)
    result = rec_jax.evaluate(folder, progress=True)
    write_atomic(found, json.dumps({
        "seed": seed, "dtype": dtype, "test": result["metrics"], "protocol": result["protocol"],
        "steps": summary["steps"], "best_step": summary["best_step"],
        "train_seconds": summary["train_seconds"]}).encode())


def summarise(folder: Path, options: argparse.Namespace) -> None:
    """Record all pairs that are complete."""
    done: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("seed*-*/test.json")):
        run = json.loads(path.read_text())
        done.setdefault(run["seed"], {})[run["dtype"]] = run
    pairs = {seed: runs for seed, runs in sorted(done.items()) if set(runs) == set(DTYPES)}
    if not pairs:
        print("no pair is complete")
        return
    values = {dtype: [runs[dtype]["test"][options.metric] for runs in pairs.values()]
              for dtype in DTYPES}
    interval = paired(values["bf16"], values["f32"])
    settings = config.to_mapping(Run(folder / f"seed{next(iter(pairs))}-bf16").config())
    settings["data"]["path"] = Path(settings["data"]["path"]).name
    record(options.out, {
        "metric": options.metric, "seeds": list(pairs), **values, "difference": interval,
        "protocol": next(iter(pairs.values()))["f32"]["protocol"],
        "pairs": [{dtype: {name: runs[dtype][name] for name in (
            "test", "steps", "best_step", "train_seconds")} for dtype in DTYPES}
            for runs in pairs.values()],
        "config": settings})
    print(json.dumps({"seeds": list(pairs), **values, "difference": interval}))


def paired(one: list[float], other: list[float]) -> dict[str, Any]:
    """Mean of `one - other`, and its 95 % interval by Student's t; none of a single pair."""
    gaps = np.subtract(one, other)
    mean, count = float(gaps.mean()), len(gaps)
    if count < 2:
        return {"mean": mean, "pairs": count, "low": None, "high": None}
    point = T95[count - 2] if count - 2 < len(T95) else 1.96
    half = point * float(gaps.std(ddof=1)) / math.sqrt(count)
    return {"mean": mean, "pairs": count, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    main()
