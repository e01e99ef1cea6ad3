"""Peak memory and speed of `prepare` on a generated Parquet log of 100 million rows.

    python benchmarks/prepare.py [--rows 100000000] [--work FOLDER] [--by alone processes ray]
        [--jobs plain] [--out benchmarks/results/prepare.json]

The log is cut into eight files by time, so that a user's rows are spread over all of it. Each
job runs in a process of its own, whose peak resident memory the kernel reports (without its
workers'). `--by`: one process, two processes, or two workers of Ray (which must be installed);
their folders are compared bit by bit.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rec_jax import tasks
from rec_jax.bench.record import record
from rec_jax.data.prepare import Columns, Filters, PrepareConfig, prepare
from rec_jax.data.synth import SynthConfig, synth

LIMIT_BYTES = 4 << 30
MEAN_LENGTH = 100
WORKERS = 2
JOBS = {
    "plain": Filters(),
    "first of duplicates, 10-core": Filters(duplicates="first", user_core=10, item_core=10),
}


def job(name: str, by: str, files: list[str], out: str) -> None:
    """One `prepare`, in this process; prints its report and peak memory as JSON."""
    began = time.monotonic()
    with workers(by) as some:
        ready = time.monotonic()
        report = prepare(PrepareConfig(source=tuple(files), out=out, overwrite=True,
                                       columns=Columns(time="timestamp"), filters=JOBS[name]),
                         tasks=some)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"report": report.to_dict(), "peak_rss_bytes": peak,
                      "seconds_to_workers": round(ready - began, 1)}))


def workers(by: str) -> AbstractContextManager[tasks.Tasks | None]:
    """Whoever does the tasks; a Ray of our own has as many workers as there are processes."""
    if by == "processes":
        return tasks.processes(WORKERS)
    if by == "ray":
        import ray

        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        return tasks.ray_cluster("local")
    return nullcontext()


def digest(folder: Path) -> str:
    """Of the names and bytes of all files."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            inside = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{path.relative_to(folder)} {inside}".encode())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--work", type=Path, help="folder for several GB; a temporary one")
    parser.add_argument("--by", nargs="+", default=["alone"], choices=["alone", "processes", "ray"])
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/prepare.json")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        name, by, out, *files = arguments.job
        job(name, by, files, out)
        return
    work = Path(tempfile.mkdtemp(prefix="prepare-", dir=arguments.work))
    try:
        measure(arguments, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def measure(arguments: argparse.Namespace, work: Path) -> None:
    rows = arguments.rows
    users = 1 + rows * 1_005 // (1_000 * MEAN_LENGTH)  # lengths are random: not fewer rows
    config = SynthConfig(users=users, items=max(1_000, users), mean_length=MEAN_LENGTH, slices=8)
    made = synth(config, work / "log")
    size = sum(Path(file).stat().st_size for file in made.files)
    print(f"{made.interactions} rows, {size / 1e9:.2f} GB, {made.seconds:.0f} s", flush=True)
    results = {}
    for name, by in itertools.product(arguments.jobs, arguments.by):
        began = time.monotonic()
        done = subprocess.run([sys.executable, __file__, "--job", name, by, str(work / "dataset"),
                               *made.files], check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - began
        found = json.loads(done.stdout.splitlines()[-1])
        report = found["report"]
        results[name if by == "alone" else f"{name}, {by}"] = {
            "by": by, "workers": 1 if by == "alone" else WORKERS,
            "rows": report["rows"], "users": report["users"], "items": report["items"],
            "interactions": report["interactions"], "seconds": round(seconds, 1),
            "seconds_to_workers": found["seconds_to_workers"],
            "rows_per_second": round(report["rows"] / seconds),
            "peak_rss_bytes": found["peak_rss_bytes"],
            "below_limit": found["peak_rss_bytes"] < LIMIT_BYTES,
            "digest": digest(work / "dataset"),
        }
        print(name, by, results, flush=True)
    for name in arguments.jobs:
        same = {one["digest"] for key, one in results.items() if key.startswith(name)}
        if len(same) != 1:
            raise SystemExit(f"the folders of {name} differ: {same}")
    record(arguments.out, {
        "limit_bytes": LIMIT_BYTES, "source_bytes": size, "source_files": len(made.files),
        "load_average": os.getloadavg()[0], "generator_rows_per_second": round(
            made.interactions / made.seconds),
        "jobs": results})


if __name__ == "__main__":
    main()
