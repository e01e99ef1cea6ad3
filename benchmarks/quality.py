"""Train a config, evaluate it on the test split, and record quality, protocol and time.

    python benchmarks/quality.py configs/ml1m.toml --set data.path=data/ml-1m --run runs/ml1m \\
        --out benchmarks/results/ml1m.json

An unfinished run is gone on with; of a finished one only the evaluation is repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import rec_jax
from rec_jax import config
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.run import Run
from rec_jax.train.log import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="TOML file of the run")
    parser.add_argument("--set", action="append", default=[], help="one line of TOML over it")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--out", required=True, help="JSON file to write")
    options = parser.parse_args()
    restart_with_tuned_malloc()  # as the command line does
    run = Run(Path(options.run))
    if run.config_path.exists():
        summary = rec_jax.train(resume=run.folder, progress=True)
    else:
        summary = rec_jax.train(options.config, overrides=options.set, run=run.folder,
                                progress=True)
    result = rec_jax.evaluate(run.folder, baseline=True, progress=True)
    valid = [line for line in read_metrics(run.metrics_path) if line["kind"] == "valid"]
    best = next(line for line in valid if line["step"] == summary["best_step"])
    settings = config.to_mapping(run.config())
    settings["data"]["path"] = Path(settings["data"]["path"]).name
    epochs = summary["steps"] / summary["steps_per_epoch"]
    path = record(options.out, {
        "test": result["metrics"], "popularity_baseline": result["popularity_baseline"],
        "protocol": result["protocol"], "seed": result["seed"],
        "steps": summary["steps"], "best_step": summary["best_step"],
        "valid_at_best": {name: value for name, value in best.items() if "@" in name},
        "seconds_per_epoch": summary["train_seconds"] / epochs,
        "seconds_to_best": best["seconds"], "train_seconds": summary["train_seconds"],
        "config": settings,
    })
    print(json.dumps({"out": str(path), **{name: result["metrics"][name]
                                           for name in ("hr@10", "ndcg@10")}}))


if __name__ == "__main__":
    main()
