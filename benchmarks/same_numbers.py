"""Two checkouts of the project train the same configs: are all numbers the same, and the speed?

    python benchmarks/same_numbers.py --before ../before --after . --work runs/same \
        --data data/ml-100k/dataset=data/ml-100k/dataset --data data/ml-1m=data/ml-1m

Every config whose dataset is given trains `--steps` steps in each checkout, with the kernels'
backends named, so that both compute with the same. Then every array of the last checkpoint is
held against its like, bit by bit. Where a difference is explained, name it with `--explain`.
`--rounds` further trainings in turn give the ratio of the speeds. `--resume` stops the run of the
first checkout half-way and lets the second go on with it: its end is held against the first's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from rec_jax.bench.record import record
from rec_jax.checkpoint import Checkpoints
from rec_jax.checkpoint.older import with_named_tables
from rec_jax.model.encoders import ENCODERS
from rec_jax.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "ml1m streamed": ("ml1m", 'table.update="streamed"'),
    "ml1m streamed untied": ("ml1m", 'table.update="streamed"', "table.tied=false"),
    "ml1m bf16 rows": ("ml1m", 'table.dtype="bf16"'),
    "ml100k untied": ("ml100k", "table.tied=false"),
    "ml100k sampled sparse": ("ml100k_sampled_softmax", 'table.update="sparse"'),
    "ml100k in batch sparse untied": ("ml100k_in_batch", 'table.update="sparse"',
                                      "table.tied=false"),
    "ml100k hard negatives sparse": ("ml100k_hard_negatives", 'table.update="sparse"'),
}
"""Further cases: a config, and what is set over it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="checkout to compare with")
    parser.add_argument("--after", default=str(ROOT), help="checkout that is compared")
    parser.add_argument("--data", action="append", default=[], help="config's path=folder")
    parser.add_argument("--work", required=True, help="folder of the runs; made anew")
    parser.add_argument("--only", nargs="*", help="names of cases")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=0, help="further pairs, for the speed")
    parser.add_argument("--backend", default="native", help="of objective and encoder")
    parser.add_argument("--resume", action="store_true", help="go on with runs of --before too")
    parser.add_argument("--explain", action="append", default=[], help="case=why it differs")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "same_numbers.json"))
    options = parser.parse_args()
    folders = dict(pair.split("=", 1) for pair in options.data)
    why = dict(pair.split("=", 1) for pair in options.explain)
    found = []
    for name, (config, *over) in cases().items():
        path = tomllib.loads((ROOT / "configs" / f"{config}.toml").read_text())["data"]["path"]
        if (options.only and name not in options.only) or path not in folders:
            continue
        found.append(compare(name, config, [*over, f"data.path={Path(folders[path]).resolve()}"],
                             options, why.get(name)))
        print(json.dumps(found[-1]), flush=True)
        record(Path(options.out), {"steps": options.steps, "backend": options.backend,
                                   "before": commit(options.before),
                                   "after": commit(options.after), "cases": found})


def cases() -> dict[str, tuple[str, ...]]:
    """Every config but those of a billion rows, and the variants."""
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.toml")
                   if not path.stem.startswith("billion")
                   and "data" in tomllib.loads(path.read_text()))  # an environment has none
    return {**{name: (name,) for name in names}, **VARIANTS}


def compare(name: str, config: str, over: list[str], options: argparse.Namespace,
            why: str | None) -> dict[str, Any]:
    """Train one case in both checkouts and compare what they saved."""
    work = Path(options.work)
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    runs = {}
    for number in range(1 + options.rounds):
        for side in ("before", "after") if number % 2 == 0 else ("after", "before"):
            run = work / f"{name.replace(' ', '_')}-{side}"
            shutil.rmtree(run, ignore_errors=True)
            checkout = Path(getattr(options, side)).resolve()
            seconds[side].append(train(checkout, config, run.resolve(), over, options))
            runs[side] = run
    arrays = [saved(runs[side], options.steps) for side in ("before", "after")]
    differing = differing_arrays(*arrays)
    resumed = None
    if options.resume:
        run = go_on(runs["before"], options)
        resumed = differing_arrays(arrays[0], saved(run, options.steps))
    ratios = [before / after for before, after in zip(seconds["before"][1:], seconds["after"][1:],
                                                      strict=True)]
    sizes = [size for size in differing.values() if not isinstance(size, str)]
    missing = [f"{path}: {size}" for path, size in differing.items() if isinstance(size, str)]
    return {"case": name, "arrays": len(arrays[1]), "differing": len(differing),
            "largest_difference": max(sizes, default=0.0), "missing": missing, "explained": why,
            "differing_when_resumed": None if resumed is None else len(resumed),
            "before_over_after_seconds": round(statistics.median(ratios), 3) if ratios else None}


def differing_arrays(first: dict[str, np.ndarray], second: dict[str, np.ndarray]
                     ) -> dict[str, float | str]:
    """By path the largest difference of arrays whose bits differ, or which of both lacks it."""
    found: dict[str, float | str] = {}
    for path in sorted(first.keys() | second.keys()):
        one, other = first.get(path), second.get(path)
        if one is None or other is None:
            found[path] = "only " + ("after" if one is None else "before")
        elif one.tobytes() != other.tobytes():
            found[path] = float(np.max(np.abs(one.astype("f8") - other.astype("f8"))))
    return found


def go_on(before: Path, options: argparse.Namespace) -> Path:
    """A copy of the first checkout's run, without its last checkpoint, finished by the second."""
    run = before.with_name(f"{before.name}-resumed")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(before, run)
    last = [path for path in (run / "checkpoints").iterdir()
            if path.name.split("_")[-1].lstrip("0") == str(options.steps)]
    for path in last:
        shutil.rmtree(path)
    if len(last) != 1:
        raise SystemExit(f"{run} has {len(last)} checkpoints of step {options.steps}")
    execute(Path(options.after).resolve(), ["--resume", str(run)])
    return run


def train(checkout: Path, config: str, run: Path, over: list[str],
          options: argparse.Namespace) -> float:
    """Seconds of the steps."""
    lines = [*over, f"train.steps={options.steps}", "train.evaluate_every=1000.0"]
    text = (ROOT / "configs" / f"{config}.toml").read_text()
    lines += [f'{part}.backend="{options.backend}"' for part in ("objective", "encoder")
              if "backend" in fields_of(text, part)]
    if options.resume:
        lines += [f"train.checkpoint_every={options.steps // 2}", "checkpoint.keep=3"]
    arguments = [str(ROOT / "configs" / f"{config}.toml"), "--run", str(run)]
    for line in lines:
        arguments += ["--set", line]
    return float(execute(checkout, arguments)["train_seconds"])


def execute(checkout: Path, arguments: list[str]) -> dict[str, Any]:
    """What `rec-jax train` of a checkout prints."""
    command = [sys.executable, "-m", "rec_jax", "train", *arguments, "--json"]
    done = subprocess.run(command, text=True, capture_output=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return dict(json.loads(done.stdout))


def fields_of(text: str, part: str) -> set[str]:
    """The keys of a config's objective or encoder."""
    kinds, default = {"objective": (OBJECTIVES, "next_item"),
                      "encoder": (ENCODERS, "transformer")}[part]
    kind = tomllib.loads(text).get(part, {}).get("kind", default)
    module = importlib.import_module(kinds[kind])
    return {field.name for field in dataclasses.fields(module.Config)}


def saved(run: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by item and path of today."""
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        opened = with_named_tables(checkpoints.open(step))
        return {f"{item}{path}": source.read(0, source.shape[0] if source.shape else 1)
                for item, sources in opened.items.items() for path, source in sources.items()}


def commit(checkout: str) -> str:
    done = subprocess.run(["git", "-C", checkout, "describe", "--always", "--dirty"], text=True,
                          capture_output=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
