"""Peak memory and speed of `prepare` on a generated Parquet log of 100 million rows.

    python benchmarks/prepare.py [--rows 100000000] [--work FOLDER]

The log is cut into eight files by time, so that a user's rows are spread over all of it. Each
job runs in a process of its own, whose peak resident memory the kernel reports. Results go to
benchmarks/results/prepare.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rec_jax.bench.record import record
from rec_jax.data.prepare import Columns, Filters, PrepareConfig, prepare
from rec_jax.data.synth import SynthConfig, synth

LIMIT_BYTES = 4 << 30
MEAN_LENGTH = 100
JOBS = {
    "plain": Filters(),
    "first of duplicates, 10-core": Filters(duplicates="first", user_core=10, item_core=10),
}


def job(name: str, files: list[str], out: str) -> None:
    """One `prepare`, in this process; prints its report and peak memory as JSON."""
    report = prepare(PrepareConfig(source=tuple(files), out=out, overwrite=True,
                                   columns=Columns(time="timestamp"), filters=JOBS[name]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"report": report.to_dict(), "peak_rss_bytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--work", type=Path, help="folder for several GB; a temporary one")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.job[0], arguments.job[2:], arguments.job[1])
        return
    work = Path(tempfile.mkdtemp(prefix="prepare-", dir=arguments.work))
    try:
        measure(arguments.rows, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def measure(rows: int, work: Path) -> None:
    users = 1 + rows * 1_005 // (1_000 * MEAN_LENGTH)  # lengths are random: not fewer rows
    config = SynthConfig(users=users, items=max(1_000, users), mean_length=MEAN_LENGTH, slices=8)
    made = synth(config, work / "log")
    size = sum(Path(file).stat().st_size for file in made.files)
    print(f"{made.interactions} rows, {size / 1e9:.2f} GB, {made.seconds:.0f} s", flush=True)
    results = {}
    for name in JOBS:
        began = time.monotonic()
        done = subprocess.run([sys.executable, __file__, "--job", name, str(work / "dataset"),
                               *made.files], check=True, capture_output=True, text=True)
        seconds = time.monotonic() - began
        found = json.loads(done.stdout)
        report = found["report"]
        results[name] = {
            "rows": report["rows"], "users": report["users"], "items": report["items"],
            "interactions": report["interactions"], "seconds": round(seconds, 1),
            "rows_per_second": round(report["rows"] / seconds),
            "peak_rss_bytes": found["peak_rss_bytes"],
            "below_limit": found["peak_rss_bytes"] < LIMIT_BYTES,
        }
        print(name, results[name], flush=True)
    record(Path(__file__).parent / "results" / "prepare.json", {
        "limit_bytes": LIMIT_BYTES, "source_bytes": size, "source_files": len(made.files),
        "load_average": os.getloadavg()[0], "generator_rows_per_second": round(
            made.interactions / made.seconds),
        "jobs": results})


if __name__ == "__main__":
    main()
