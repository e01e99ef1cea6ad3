"""The time before the first step: with nothing kept, with everything kept, and of `--help`.

    python benchmarks/start.py DATASET [--rounds 3] [--out benchmarks/results/start.json]

DATASET is a dataset folder of MovieLens-100K. Each round starts each case once, in turn, as a
process of its own:

    cold      an empty cache folder: the native library is built and measured, all is compiled
    compiled  the library is there, no compiled program is
    warm      both are there
    help      `rec-jax --help`

Wall time is that of the whole process for `help`, and until the first step ended for the others,
as the run's summary says (`start_seconds`); CPU time is that of the process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rec_jax.bench.record import record

CASES = ("cold", "compiled", "warm", "help")
_RESULTS = Path(__file__).parent / "results" / "start.json"
_LIMIT = 600.0


def measure(case: str, dataset: Path, cache: Path, scratch: Path) -> dict[str, Any]:
    """Seconds of one start; `cache` is made to hold what the case is to find."""
    if case == "cold":
        shutil.rmtree(cache, ignore_errors=True)
    elif case == "compiled":
        for folder in cache.glob("programs-*"):
            shutil.rmtree(folder)
    words = ["--help"] if case == "help" else [
        "train", "ml100k", "--set", f"data.path={dataset}", "--set", "train.steps=1",
        "--run", str(scratch / "run"), "--json"]
    shutil.rmtree(scratch / "run", ignore_errors=True)
    before, begun = _children(), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "rec_jax", *words], capture_output=True,
                          text=True, timeout=_LIMIT, check=False,
                          env={**_environment(), "REC_JAX_CACHE": str(cache)})
    wall, cpu = time.perf_counter() - begun, _children() - before
    if done.returncode != 0:
        raise SystemExit(f"{case}: rec-jax ended with code {done.returncode}\n{done.stderr}")
    if case == "help":
        return {"seconds": wall, "cpu_seconds": cpu}
    summary = json.loads(done.stdout)
    parts = summary["start_seconds"]
    return {"seconds": sum(parts.values()), "process_seconds": wall, "cpu_seconds": cpu,
            "parts": parts, "backends": summary["backends"]}


def _environment() -> dict[str, str]:
    """Without what decides what this measures."""
    dropped = ("REC_JAX_AUTO", "REC_JAX_PROGRAMS", "JAX_COMPILATION_CACHE_DIR",
               "JAX_ENABLE_COMPILATION_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summarised(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, best and worst of the seconds, the median of the rest, and the runs themselves."""
    seconds = [one["seconds"] for one in runs]
    return {"seconds": round(statistics.median(seconds), 3),
            "best": round(min(seconds), 3), "worst": round(max(seconds), 3),
            "cpu_seconds": round(statistics.median(one["cpu_seconds"] for one in runs), 3),
            "runs": runs}


def main() -> None:
    """Measure all cases in turn, write the record, and print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="dataset folder of MovieLens-100K")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--out", type=Path, default=_RESULTS)
    given = parser.parse_args()
    cases = [case for case in CASES if case in given.cases.split(",")]
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for case in cases:
                found[case].append(measure(case, given.dataset.resolve(), Path(folder) / "cache",
                                           Path(folder)))
    result = {case: summarised(runs) for case, runs in found.items()}
    for case, figures in result.items():
        print(f"{case:9} {figures['seconds']:7.2f} s ({figures['best']:.2f} to "
              f"{figures['worst']:.2f}), CPU {figures['cpu_seconds']:.2f} s", file=sys.stderr)
    print(record(given.out, {"rounds": given.rounds, "cases": result}))


if __name__ == "__main__":
    main()
